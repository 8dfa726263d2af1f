"""Choice between a recurrent layer's own weights, whole-layer draws, and layers built in generations, by held-out samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import nn

from ..errors import DataError, SilentLayerError, UnsupportedModuleError
from ..networks import replace_parameters
from .compare import NEAR, Judge, make_judge
from .decisions import LayerDecision, LayerGain, LayerWitnesses
from .draws import list_draws
from .first_generation import First, make_clock, make_reservoir
from .generations import Generations, build_generations
from .hidden_task import RIDGES, HiddenTask, ParameterValues, take_first_batches
from .leaks import choose_leak
from .neuron import average_units, place_unit_values, shape_unit_values
from .recurrent import RecurrentLayer, RecurrentSite, make_recurrent_site
from .replace import check_together
from .rescale import RATE_ABOVE, TIE, find_gain, find_ties, make_scaled_layer, scale_parameters, settle_ties
from .samplers import SAMPLERS, WitnessOptions, get_sampler, traces
from .select import SelectionProgram

__all__ = ["choose_recurrent"]

_MORE = 2  # candidates of a built layer, for each one of a feed-forward layer of its width


_Weights: TypeAlias = tuple[LayerDecision, ParameterValues]


@dataclass(frozen=True)
class _Search:
    """A recurrent layer whose weights are to be chosen, in a net that holds the new values of the layers below."""

    task: HiddenTask
    options: WitnessOptions
    number: int  # of the layer
    recurrent: RecurrentLayer
    seen: RecurrentSite
    program: SelectionProgram
    judge: Judge

    @property
    def width(self) -> int:
        """Neurons of the layer, N."""
        return len(self.recurrent.weight)

    @property
    def neuron(self) -> nn.Module:
        """The layer's neuron."""
        return self.recurrent.layer.neuron


def choose_recurrent(
    task: HiddenTask, options: WitnessOptions, number: int, recurrent: RecurrentLayer, program: SelectionProgram
) -> tuple[LayerDecision, ParameterValues] | None:
    """Return the weights that do best on samples that chose none; a tie keeps the layer's own, without a gain if that ties too.

    The net holds the new values of the layers below.  None if the layer's inputs can't be told apart by time and sample.
    """
    layer = recurrent.layer
    seen = make_recurrent_site(task, recurrent, choose_leak(task, layer, options).name)
    if seen is None:
        return None
    search = _Search(task, options, number, recurrent, seen, program, make_judge(task, layer))
    own, losses = _try_gains(search)
    found: dict[str, tuple[float, _Weights]] = {}
    found["own weights"] = (losses[own.gain], (own, {} if own.gain == 1.0 else scale_parameters(layer, own.gain)))
    found["a draw of the whole layer"] = min(_try_draws(search, own), key=lambda tried: tried[0])
    if seen.simulated and recurrent.recurrent_weight is not None and options.witnesses != "draws":
        with average_units(layer.neuron, search.width):
            found |= _build(search, *min(found.values(), key=lambda tried: tried[0]))
    name = min(found, key=lambda one: found[one][0])
    least = found[name][0]
    if math.isinf(least):
        raise _silent(recurrent)
    if TIE * least >= losses[own.gain]:
        name = "own weights"
    loss, (decision, values) = found.pop(name)
    others = ", ".join(f"{loss:.3g} of {other}" for other, (loss, _) in found.items())
    parts = decision.reason, f"{name}: held-out loss {loss:.3g}" + (f" against {others}" if others else "")
    return replace(decision, reason="; ".join(part for part in parts if part)), values


def _try_gains(search: _Search) -> tuple[LayerGain, dict[float, float]]:
    """Return the layer's own weights with the better of a gain of one and one at a usual firing rate, and all losses."""
    layer = search.recurrent.layer
    losses = {1.0: search.judge({}, RIDGES)[0]}
    try:
        scaled = make_scaled_layer(search.task.net, take_first_batches(search.task.batches), layer, search.task.forward)
    except SilentLayerError:
        return LayerGain(layer.name, 1.0, 0.0, 0.0, losses), losses
    gain = find_gain(scaled, RATE_ABOVE)
    if gain is not None:
        losses[gain] = search.judge(scale_parameters(layer, gain), RIDGES)[0]
    best = settle_ties(find_ties(losses), {gain: scaled.rate(gain) for gain in losses})
    return LayerGain(layer.name, best, scaled.rate(1.0), scaled.rate(best), losses, "recurrent"), losses


def _try_draws(search: _Search, own: LayerGain) -> Iterator[tuple[float, _Weights]]:
    """Yield whole-layer draws and their losses, infinite if no gain makes one spike."""
    task, options, recurrent = search.task, search.options, search.recurrent
    sampler = traces if options.witnesses == "auto" else get_sampler(options.witnesses)
    count = options.count_candidates(search.width) // search.width
    draws = list_draws(recurrent, search.seen.site, sampler, count, task.make_generator(search.number))
    for number, (values, rate) in enumerate(draws, start=1):
        gain, scaled_values = None, ParameterValues()
        with replace_parameters(values), suppress(SilentLayerError):
            scaled = make_scaled_layer(task.net, take_first_batches(task.batches), recurrent.layer, task.forward)
            gain = find_gain(scaled, rate)
            scaled_values = {} if gain is None else scale_parameters(recurrent.layer, gain)
        loss = math.inf if gain is None else search.judge({**values, **scaled_values}, RIDGES)[0]
        decision = replace(own, gain=1.0, rate_after=rate, reason=f"draw {number} of {count}", draw=number)
        yield loss, (decision, {**values, **scaled_values})


def _build(search: _Search, loss: float, best: _Weights) -> dict[str, tuple[float, _Weights]]:
    """Return layers built on a clock, and on one half of the best weights so far, where enough candidates are usable.

    A reservoir of weights that are far behind the clock is not tried.
    """
    recurrent, inputs, found = search.recurrent, search.seen.inputs, dict[str, tuple[float, _Weights]]()
    steps, tonic = search.task.temporary.num_steps, recurrent.tonic is not None
    clock = make_clock(search.neuron, inputs, steps, search.width, tonic, recurrent.autapses)
    if clock is not None and (built := _build_on(search, clock)) is not None:
        found["a layer built on a clock"] = built
        if loss > NEAR * built[0]:
            return found
    known = search.options.witnesses in SAMPLERS  # a user's own function draws rows of the layer's inputs alone
    if search.width > 1 and known:
        with replace_parameters(best[1]):
            weight, matrix, currents = recurrent.take(search.width // 2)
        reservoir = make_reservoir(search.neuron, inputs.expand(steps, -1, -1), weight, currents, matrix)
        if (built := _build_on(search, reservoir)) is not None:
            found["a layer built on a reservoir"] = built
    return found


def _build_on(search: _Search, first: First) -> tuple[float, _Weights] | None:
    """Return a layer built on a first generation; None if too few candidates are usable, or do together what none does alone."""
    task, recurrent, sampler = search.task, search.recurrent, get_sampler(search.options.witnesses)
    count, generator = _MORE * search.options.count_candidates(search.width - len(first)), task.make_generator(search.number)
    try:
        built = build_generations(task, recurrent, search.seen, first, sampler, search.program, count, generator)
        values = _make_values(search, built)
        check_together(task, recurrent.layer, values, built.emitted, torch.arange(len(first), search.width))
    except (DataError, UnsupportedModuleError):
        return None
    return search.judge(values, RIDGES)[0], (_describe(search, built), values)


def _make_values(search: _Search, built: Generations) -> ParameterValues:
    """Return the values to write."""
    values = search.recurrent.make_values(built.inputs, built.recurrent, built.tonic)
    leak, leaks = search.seen.leak, built.rows.leaks
    if leak is None or leaks is None:
        return values
    rows = torch.arange(len(built.first), search.width, device=leaks.device)
    units = place_unit_values(search.neuron, {leak: leaks}, rows, search.width)
    return values | shape_unit_values(search.neuron, units, 0)


def _describe(search: _Search, built: Generations) -> LayerWitnesses:
    selection, leaks = built.selection, built.rows.leaks
    return LayerWitnesses(
        name=search.recurrent.layer.name,
        width=search.width,
        selected=len(built.rows.kinds),
        simulated=built.simulated,
        used=selection.used,
        violating=0,
        priced=0,
        objective=selection.objective,
        strength=selection.strength,
        dropped=built.dropped,
        leaks={} if leaks is None else dict(sorted(Counter(leaks.tolist()).items())),
        kinds=dict(Counter(built.kinds)),
    )


def _silent(recurrent: RecurrentLayer) -> SilentLayerError:
    return SilentLayerError(
        f"hidden layer {recurrent.layer.name!r}, which spikes neither at any gain of its weights nor in any of its draws",
        "spikes of at least some of its neurons",
        "check the inputs' scale and the thresholds, or pass a larger n_candidates for more draws",
    )
