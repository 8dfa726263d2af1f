"""Recurrent layers: their parameters and inputs, and random weights of a whole layer, for reservoirs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModuleError
from ..networks.calls.calls import CONSTANT, possible_layouts
from ..networks.libraries.library import Recurrence
from ..networks.private.parameters import Values
from ..networks.structure.layers import HiddenLayer
from .gains import explain_fixed_parameters
from .hidden_task import HiddenTask
from .neuron import average_units, measure_excitability
from .samplers import draw_candidates, split_by_leak
from .simulate import collect_inputs, layout_of_inputs
from .site import LayerSite, Sampler
from .stage import Stage, follow_stage

_Place: TypeAlias = tuple[nn.Module, str]  # of a parameter

_RATES = (0.06, 0.12, 0.03)  # of draws, in spikes a neuron and step, used in turn
# Standard deviation of a draw's current if all neurons spike, in thresholds, used in turn.  None keeps the recurrent weights.
_RECURRENT_STDS = (0.3, None, 1.0, 0.1)


@dataclass(frozen=True)
class RecurrentLayer:
    """A recurrent layer and its parameters, each a module and a name."""

    layer: HiddenLayer
    input_weight: _Place  # (N, D)
    input_bias: _Place | None  # (N,)
    recurrent_weight: _Place  # (N, N)
    recurrent_bias: _Place | None  # (N,)
    autapses: bool  # whether a neuron may have a weight from itself

    @property
    def neuron(self) -> nn.Module:
        """The layer's neuron."""
        return self.layer.neuron

    @property
    def width(self) -> int:
        """Neurons of the layer, N."""
        return len(self.weight)

    @property
    def weight(self) -> Tensor:
        """Value of the input weight."""
        value: Tensor = getattr(*self.input_weight)
        return value.detach()

    @property
    def tonic(self) -> _Place | None:
        """Parameter that holds a current of each neuron at every step; None without any."""
        return self.input_bias or self.recurrent_bias

    def take(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return input weights (k, D), recurrent weights (k, k) and tonic currents (k,) of the first ``count`` neurons."""
        matrix, tonic = getattr(*self.recurrent_weight).detach(), self.weight.new_zeros(len(self.weight))
        for place in (self.input_bias, self.recurrent_bias):
            if place is not None:
                tonic = tonic + getattr(*place).detach()
        return self.weight[:count], matrix[:count, :count], tonic[:count]

    def make_values(self, inputs: Tensor, recurrent: Tensor, tonic: Tensor) -> Values:
        """Return the values to write for weights (N, D) and (N, N) and tonic currents (N,)."""
        values = {self.input_weight: inputs.to(self.weight), self.recurrent_weight: recurrent.to(self.weight)}
        for place, value in ((self.recurrent_bias, torch.zeros_like(tonic)), (self.tonic, tonic)):
            if place is not None:
                values[place] = value.to(self.weight)
        return values


@dataclass(frozen=True)
class RecurrentSite:
    """A recurrent layer with its inputs, classes and excitability, for samplers and simulations."""

    recurrent: RecurrentLayer
    site: LayerSite
    inputs: Tensor  # (T, n, D), or (1, n, D) if constant, of the samples that take part; bytes if all are 0 or 1
    labels: Tensor  # (T, n), classes at each step, or (1, n)
    steps: Tensor | None = None  # (K,), steps whose targets the site's samples have; None for one target a sample


def find_recurrent_layer(layer: HiddenLayer) -> RecurrentLayer | None:
    """Return a recurrent layer's parameters; None unless these are a Linear and a dense recurrence that can all be replaced."""
    recurrence, own = layer.library.recurrence(layer.neuron), layer.weights
    dense = own.module is layer.neuron or isinstance(layer.synapse, nn.Linear)
    if recurrence is None or recurrence.weight is None or own.weight is None or not dense:
        return None
    weight, bias = (own.module, own.weight), None if own.bias is None else (own.module, own.bias)
    if explain_fixed_parameters([place for place in (weight, bias) if place is not None]) or _explain_fixed(recurrence):
        return None
    own_bias = None if recurrence.bias is None else (recurrence.weight[0], "bias")
    return RecurrentLayer(layer, weight, bias, recurrence.weight, own_bias, recurrence.autapses)


def explain_recurrent(layer: HiddenLayer) -> str:
    """Return the reason why the rows of a layer with recurrence can't be rebuilt one by one; empty for other layers."""
    recurrence = layer.library.recurrence(layer.neuron)
    return "" if recurrence is None else _explain_fixed(recurrence) or "recurrent: own weights"


def _explain_fixed(recurrence: Recurrence) -> str:
    if recurrence.weight is None:
        return ""
    module, name = recurrence.weight
    return explain_fixed_parameters([(module, name), *([] if recurrence.bias is None else [(module, "bias")])], "recurrence's ")


def make_recurrent_site(task: HiddenTask, recurrent: RecurrentLayer, leak: str | None = None) -> RecurrentSite:
    """Return the site of a recurrent layer, rows split by ``leak``; refuse currents that are not made by its synapse alone."""
    layer = recurrent.layer
    if isinstance(layer.synapse, nn.Linear):
        layout = layout_of_inputs(task, layer, Stage())
    else:
        shapes = [call.shape for call in task.recorder.record_inputs(layer, task.recorder.batches[0])]
        possible = possible_layouts(shapes, task.temporary.num_steps)
        layout = next((layout for layout in possible if not layout.startswith("folded")), None)
    if layout is None:
        fix = "fold factors into the weights, or pass hidden='rescale', which keeps the layer's weights"
        raise UnsupportedModuleError(_explain_currents(task, layer), "currents as the synapse returns them", fix)
    used, steps, num_steps = task.used_samples, task.temporary.steps, task.temporary.num_steps
    (inputs,) = collect_inputs(task, layer, layout, [used])
    mean = inputs.mean(0, dtype=recurrent.weight.dtype)
    with average_units(layer.neuron, recurrent.width):
        excitability = measure_excitability(layer.neuron, num_steps, mean)
    # Binary inputs of the net are not spikes of a layer below.
    above = inputs.dtype is torch.uint8 and layer is not task.net_map.hidden[0]
    # An image at every step differs in what a reservoir adds; one image for all steps in a single call can't.
    over_time = inputs if layout == CONSTANT else inputs.expand(num_steps, -1, -1)
    site = LayerSite(_copy_as_linear(recurrent, recurrent.tonic), mean, task.labels, excitability, above, over_time=over_time)
    if leak is not None:
        site = split_by_leak(site, layer.neuron, leak, num_steps)
    labels = task.labels.reshape(len(used), -1).T
    if steps is not None:
        following = torch.searchsorted(steps, torch.arange(num_steps))
        labels = labels[following.clamp_max(len(labels) - 1).to(labels.device)]
    return RecurrentSite(recurrent, site.split_steps(steps), inputs, labels, steps)


def _explain_currents(task: HiddenTask, layer: HiddenLayer) -> str:
    """Return why a recurrent layer's currents are not what its synapse makes of its inputs."""
    stage = follow_stage(task.recorder, layer)
    if not stage.joined and (stage.behind or stage.norm is not None):
        return "recurrent, with a function between its synapse and its neuron, such as a factor or a norm"
    return "recurrent, and its currents are the outputs of its synapse in no known order of time and samples"


def list_draws(
    recurrent: RecurrentLayer, site: LayerSite, sampler: Sampler, *, count: int, generator: torch.Generator
) -> Iterator[tuple[Values, float]]:
    """Yield draws of a whole layer, before a gain, and the firing rate at which each is to be tried."""
    # One gain for the whole layer is chosen afterwards, so currents are in units of the rheobase.
    excitability = replace(site.excitability, rheobase=1.0, half_rate=2.0, relay_weight=1.0)
    site = replace(site, synapse=_copy_as_linear(recurrent, recurrent.input_bias), excitability=excitability, variants=())
    limits = recurrent.layer.library.threshold(recurrent.layer.neuron)
    threshold, weight, width = 1.0 if limits is None else limits[1], recurrent.weight, len(recurrent.weight)
    for number in range(count):
        rows = draw_candidates(sampler, site, width, generator)
        rows = rows.take(torch.arange(width, device=rows.weight.device) % len(rows))
        values = {recurrent.input_weight: rows.weight.to(weight)}
        if recurrent.input_bias is not None and rows.bias is not None:
            values[recurrent.input_bias] = rows.bias.to(weight)
        std = _RECURRENT_STDS[number % len(_RECURRENT_STDS)]
        if std is not None:
            drawn = torch.randn(width, width, generator=generator) * (std * threshold / width**0.5)
            if not recurrent.autapses:
                drawn.fill_diagonal_(0.0)
            values[recurrent.recurrent_weight] = drawn.to(weight)
        yield values, _RATES[number % len(_RATES)]


def _copy_as_linear(recurrent: RecurrentLayer, bias: _Place | None) -> nn.Linear:
    """Return a Linear that shares the values of the input weight, and of a bias."""
    weight = recurrent.weight
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(getattr(*bias).detach(), requires_grad=False)
    return linear
