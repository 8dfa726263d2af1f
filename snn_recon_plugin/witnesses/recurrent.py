"""Whole-layer draws for recurrent layers, whose neurons depend on each other and can't be selected row by row.

A draw has input rows from a sampler, new recurrent weights, and a gain that gives a firing rate.  The held-out loss of a temporary
readout chooses between the draws and the layer's own weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModuleError
from ..networks import HiddenLayer, can_replace, is_frozen, library_of, replace_parameters
from .hidden_task import HiddenTask, LayerGain, ParameterValues
from .layer_inputs import find_layout, join_batches, record_first_currents, record_inputs
from .neuron import Excitability
from .rescale import TIE, scale_parameters
from .samplers import Sampler, draw_candidates
from .site import LayerSite

__all__ = ["RecurrentLayer", "choose_draw", "find_recurrent_layer", "make_recurrent_site"]

_RATES = (0.06, 0.12, 0.03)  # spikes a neuron and step, used in turn
# Standard deviation of the current if all neurons spike, in thresholds, used in turn.  None keeps the layer's recurrent weights.
_RECURRENT_STDS = (0.3, None, 1.0, 0.1)
_USUAL_MEMORY = 0.9  # memory assumed for a neuron with unknown equations
_MAX_LEAK = 0.99  # keeps the delay of a neuron that never forgets finite


@dataclass(frozen=True)
class RecurrentLayer:
    """A recurrent layer and its parameters, each a module and a name."""

    layer: HiddenLayer
    input_weight: tuple[nn.Module, str]  # (N, D)
    input_bias: tuple[nn.Module, str] | None  # (N,)
    recurrent_weight: tuple[nn.Module, str] | None  # (N, N); None if it is frozen or can't be replaced
    autapses: bool  # whether a neuron may have a weight from itself

    @property
    def weight(self) -> Tensor:
        """Value of the input weight."""
        value: Tensor = getattr(*self.input_weight)
        return value.detach()


def find_recurrent_layer(layer: HiddenLayer) -> RecurrentLayer | None:
    """Return a recurrent layer's parameters; None unless its input weight is a plain matrix that can be replaced."""
    recurrence = library_of(layer.neuron).recurrence(layer.neuron)
    if recurrence is None or recurrence.weight is None or (recurrence.inputs is None and not isinstance(layer.synapse, nn.Linear)):
        return None
    weight = recurrence.inputs or (layer.synapse, "weight")
    bias = None if recurrence.inputs is not None or layer.synapse.bias is None else (layer.synapse, "bias")
    if not all(can_replace(*place) and not is_frozen(*place) for place in (weight, bias) if place is not None):
        return None
    value = getattr(*recurrence.weight)
    replaceable = isinstance(value, Tensor) and value.requires_grad and can_replace(*recurrence.weight)
    return RecurrentLayer(layer, weight, bias, recurrence.weight if replaceable else None, recurrence.autapses)


def make_recurrent_site(task: HiddenTask, recurrent: RecurrentLayer) -> LayerSite | None:
    """Return the site of a recurrent layer; None if the order of time and samples in its inputs is unknown.

    Currents are in units of the rheobase, since one gain for the whole layer is chosen afterwards.  The net holds the new values of
    the layers below.
    """
    layer = recurrent.layer
    recorded, fed_by_spikes = record_inputs(task, layer)
    if isinstance(layer.synapse, nn.Linear):
        layout = find_layout(layer.synapse, recorded[0], record_first_currents(task, layer))
    else:
        layout = _find_own_layout(recorded[0], task.temporary.num_steps)
    if layout is None:
        return None
    inputs = join_batches(task, layout, recorded)
    over_time = inputs[:, task.used_samples.to(inputs.device)]
    excitability = Excitability(1.0, 2.0, 1.0, _find_memory(layer.neuron))
    site = LayerSite(
        _copy_as_linear(recurrent), over_time.float().mean(0), task.labels, excitability, fed_by_spikes, over_time=over_time
    )
    return site.split_steps(task.temporary.steps)


def _copy_as_linear(recurrent: RecurrentLayer) -> nn.Linear:
    """Return a Linear that shares the values of the input weight and bias."""
    weight = recurrent.weight
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=recurrent.input_bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if recurrent.input_bias is not None:
        linear.bias = nn.Parameter(getattr(*recurrent.input_bias).detach(), requires_grad=False)
    return linear


def _find_own_layout(calls: Sequence[Tensor], steps: int) -> str | None:
    """Return the layout of a neuron that holds its input weights, from the shapes of its calls."""
    if len(calls) == steps and calls[0].dim() == 2:
        return "steps"
    if len(calls) != 1 or calls[0].dim() != 3 or steps not in calls[0].shape[:2]:
        return None
    return "time_first" if len(calls[0]) == steps else "batch_first"


def _find_memory(neuron: nn.Module) -> float:
    """Return the memory of a neuron, as in ``Excitability``; a usual value if its equations are unknown."""
    try:
        dynamics = library_of(neuron).dynamics(neuron)
    except UnsupportedModuleError:
        return _USUAL_MEMORY
    delay = sum(leak / (1 - min(leak, _MAX_LEAK)) for leak in (dynamics.leak, dynamics.synapse))
    return delay / (1 + delay)


def choose_draw(
    recurrent: RecurrentLayer,
    site: LayerSite,
    own: LayerGain,
    sampler: Sampler,
    count: int,
    generator: torch.Generator,
    evaluate: Callable[[ParameterValues, float], tuple[float, float]],
) -> tuple[LayerGain, ParameterValues] | None:
    """Return the best of ``count`` draws and the values to write; None unless it is better than the layer's own weights.

    ``own`` is the decision for these.  ``evaluate`` returns the gain at which a draw fires at a rate, and the held-out loss there.
    """
    before = own.heldout_loss.get(own.gain, math.inf)
    best: tuple[LayerGain, ParameterValues] | None = None
    least, losses = before, list[float]()
    for number in range(count):
        values = _draw_values(recurrent, site, sampler, number, generator)
        rate = _RATES[number % len(_RATES)]
        gain, loss = evaluate(values, rate)
        losses.append(loss)
        if loss < least and TIE * loss < before:  # a tie does not justify a change
            least = loss
            with replace_parameters(values):
                scaled = {**values, **scale_parameters(recurrent.layer, gain)}
            text = f"draw {number + 1} of {count}: held-out loss {loss:.3g}, own weights {before:.3g}"
            best = replace(own, gain=1.0, rate_after=rate, reason=text, draw=number + 1), scaled
    return None if best is None else (replace(best[0], draw_losses=tuple(losses)), best[1])


def _draw_values(
    recurrent: RecurrentLayer, site: LayerSite, sampler: Sampler, number: int, generator: torch.Generator
) -> ParameterValues:
    """Return the values of one draw, before its gain."""
    weight, neuron = recurrent.weight, recurrent.layer.neuron
    width = len(weight)
    rows = draw_candidates(sampler, site, width, generator)
    rows = rows.take(torch.arange(width, device=rows.weight.device) % len(rows))
    values: ParameterValues = {recurrent.input_weight: rows.weight.to(weight)}
    if recurrent.input_bias is not None and rows.bias is not None:
        values[recurrent.input_bias] = rows.bias.to(weight)
    std = _RECURRENT_STDS[number % len(_RECURRENT_STDS)]
    if recurrent.recurrent_weight is not None and std is not None:
        limits = library_of(neuron).threshold(neuron)
        threshold = 1.0 if limits is None else limits[1]
        drawn = torch.randn(width, width, generator=generator) * (std * threshold / width**0.5)
        if not recurrent.autapses:
            drawn.fill_diagonal_(0.0)
        values[recurrent.recurrent_weight] = drawn.to(weight)
    return values
