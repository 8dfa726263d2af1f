"""Whole-layer draws: what a recurrent layer is offered instead of rows, since each of its neurons depends on all others.

A draw has input rows by a sampler, recurrent weights of its own, and one gain that makes it fire at a given rate.  The best of the
draws and of the layer's own weights is kept, judged as gains are: by the held-out loss of a temporary convex readout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.networks import (
    Forward,
    HiddenLayer,
    StoredBatch,
    can_replace,
    is_frozen,
    library_of,
    neuron_currents,
    replace_parameters,
)

from .generation import drawn_rows
from .recorded import FEW, in_time, layout_of, record_inputs
from .rescale import TIE, LayerGain
from .response import Response
from .samplers import Sampler
from .site import Site
from .trials import scaled_values

__all__ = ["Places", "best_of_draws", "places_of", "site_of"]

_RATES = (0.06, 0.12, 0.03)  # spikes a neuron and step, of one draw after the other
# Size of the recurrent weights of a draw: standard deviation of what all spikes together would bring, in thresholds.  None keeps
# the layer's own.
_RECURRENCES = (0.3, None, 1.0, 0.1)
_USUAL_MEMORY = 0.9

Values = dict[tuple[nn.Module, str], Tensor]


@dataclass(frozen=True)
class Places:
    """Where a recurrent layer has its parameters.

    Args:
        rows: module and name of the weight from the inputs, (N, D).
        bias: module and name of the bias that comes with it, or None.
        recurrent: module and name of the weight from the layer's own spikes, (N, N); None where it is frozen or can't be replaced.
        autapses: whether a neuron may feed itself.
    """

    rows: tuple[nn.Module, str]
    bias: tuple[nn.Module, str] | None
    recurrent: tuple[nn.Module, str] | None
    autapses: bool


def places_of(layer: HiddenLayer) -> Places | None:
    """The parameters of a recurrent layer; None where its input weights are frozen, or no plain matrix that can be replaced."""
    recurrence = library_of(layer.neuron).recurrence(layer.neuron)
    if recurrence is None or recurrence.weight is None or (recurrence.inputs is None and not isinstance(layer.synapse, nn.Linear)):
        return None
    rows = recurrence.inputs or (layer.synapse, "weight")
    bias = None if recurrence.inputs is not None or layer.synapse.bias is None else (layer.synapse, "bias")
    recurrent, weight = recurrence.weight, getattr(*recurrence.weight)
    free = isinstance(weight, Tensor) and weight.requires_grad and can_replace(*recurrent)  # frozen recurrence stays as it is
    if not all(can_replace(*place) and not is_frozen(*place) for place in (rows, bias) if place is not None):
        return None
    return Places(rows, bias, recurrent if free else None, recurrence.autapses)


def site_of(
    net: nn.Module,
    batches: Sequence[StoredBatch],
    layer: HiddenLayer,
    places: Places,
    forward: Forward,
    labels: Tensor,
    rows: Tensor,
    steps: int,
) -> Site | None:
    """A recurrent layer as samplers see it; None where the order of time and samples in its inputs can't be told.

    Currents are in units of their own, a rheobase of 1: one gain for the whole layer comes afterwards.

    Args:
        net: the net, held by ``preserved``, with what was decided for the layers below.
        batches: the samples.
        layer: the layer.
        places: of its parameters.
        forward: how the net is called.
        labels: class indices of the samples that take part, at every look.
        rows: (k,), which those are.
        steps: of the net.
    """
    recorded, fed_by_spikes = record_inputs(net, batches, layer, forward)
    if isinstance(layer.synapse, nn.Linear):
        layout = layout_of(layer.synapse, recorded[0], neuron_currents(net, batches[:1], layer, forward, keep=FEW))
    else:
        layout = _layout(recorded[0], steps)
    if layout is None:
        return None
    shares = [batch.rows.stop - batch.rows.start for batch in batches]
    still = layout == "still"
    parts = [in_time(layout, calls, 1 if still else steps)[:, :share] for calls, share in zip(recorded, shares, strict=True)]
    over_time = torch.cat(parts, 1)[:, rows.to(parts[0].device)]
    weight: Tensor = getattr(*places.rows)
    stand_in = nn.Linear(weight.shape[1], weight.shape[0], bias=places.bias is not None, device="meta")
    stand_in.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if places.bias is not None:
        stand_in.bias = nn.Parameter(getattr(*places.bias).detach(), requires_grad=False)
    response = Response(1.0, 2.0, 1.0, _memory(layer.neuron))
    return Site(stand_in, over_time.float().mean(0), labels, response, fed_by_spikes, over_time=over_time)


def _layout(calls: Sequence[Tensor], steps: int) -> str | None:
    """In which order a neuron that holds its input weights sees time and samples: step by step, or all steps in one call."""
    if len(calls) == steps and calls[0].dim() == 2:
        return "steps"
    if len(calls) != 1 or calls[0].dim() != 3 or steps not in calls[0].shape[:2]:
        return None
    return "time_first" if len(calls[0]) == steps else "batch_first"


def best_of_draws(
    layer: HiddenLayer,
    places: Places,
    site: Site,
    own: LayerGain,
    sampler: Sampler,
    count: int,
    generator: torch.Generator,
    judge: Callable[[Values, float], tuple[float, float]],
) -> tuple[LayerGain, Values] | None:
    """The best draw, where it is better than the layer's own weights; None where none is.

    Args:
        layer: the layer.
        places: of its parameters.
        site: what samplers see of it.
        own: what was decided for its own weights.
        sampler: of the input rows.
        count: how many draws.
        generator: of everything random.
        judge: gives for a draw and a firing rate the gain that makes it fire so, and the held-out loss there.

    Returns:
        What was decided, and the values to write.
    """
    before = own.heldout_loss.get(own.gain, math.inf)
    best, draw, fired, chosen, losses = before, 0, math.nan, Values(), list[float]()
    for number in range(count):
        values = _draw(layer, places, site, sampler, number, generator)
        rate = _RATES[number % len(_RATES)]
        gain, loss = judge(values, rate)
        losses.append(loss)
        if loss < best and TIE * loss < before:  # a tie is no reason to change a layer
            best, draw, fired = loss, number + 1, rate
            with replace_parameters(values):
                chosen = {**values, **scaled_values(layer, gain)}
    if not draw:
        return None
    text = f"draw {draw} of {count}: held-out loss {best:.3g}, own weights {before:.3g}"
    return replace(own, gain=1.0, rate_after=fired, reason=text, draw=draw, draw_losses=tuple(losses)), chosen


def _draw(layer: HiddenLayer, places: Places, site: Site, sampler: Sampler, number: int, generator: torch.Generator) -> Values:
    """One draw, before its gain; recurrent weights of several sizes come in turn."""
    weight: Tensor = getattr(*places.rows)
    width = len(weight)
    made = drawn_rows(sampler, site, width, generator)
    made = made.take(torch.arange(width, device=made.weight.device) % len(made))
    values: Values = {places.rows: made.weight.to(weight)}
    if places.bias is not None and made.bias is not None:
        values[places.bias] = made.bias.to(weight)
    size = _RECURRENCES[number % len(_RECURRENCES)]
    if places.recurrent is not None and size is not None:
        limits = library_of(layer.neuron).threshold(layer.neuron)
        threshold = 1.0 if limits is None else limits[1]
        fresh = torch.randn(width, width, generator=generator) * (size * threshold / width**0.5)
        if not places.autapses:
            fresh.fill_diagonal_(0.0)
        values[places.recurrent] = fresh.to(weight)
    return values


def _memory(neuron: nn.Module) -> float:
    """What is left of an input a step later, as in ``Response``; usual values for a neuron whose equations aren't known."""
    try:
        dynamics = library_of(neuron).dynamics(neuron)
    except UnsupportedModuleError:
        return _USUAL_MEMORY
    delay = sum(left / (1 - min(left, 0.99)) for left in (dynamics.leak, dynamics.synapse))
    return delay / (1 + delay)
