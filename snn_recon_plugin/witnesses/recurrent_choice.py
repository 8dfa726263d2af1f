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
from .latches import add_latches
from .leaks import choose_leak
from .neuron import average_units, place_unit_values, shape_unit_values
from .recurrent import RecurrentLayer, RecurrentSite, make_recurrent_site
from .replace import check_together
from .rescale import RATE_ABOVE, TIE, find_gain, find_ties, make_scaled_layer, scale_parameters, settle_ties
from .samplers import SAMPLERS, WitnessOptions, get_sampler, traces
from .select import SelectionProgram

__all__ = ["choose_recurrent"]

_FAR = 1.5  # ratio of the loss of a layer's own weights to that of a built one above which random weights are not tried
_MUCH = 0.25  # held-out loss of a layer without latches above which these are tried, as a share of the loss of a bias alone
_MORE = 2  # candidates of a built layer, for each one of a feed-forward layer of its width


_Weights: TypeAlias = tuple[LayerDecision, ParameterValues]
_Own: TypeAlias = tuple[LayerGain, ParameterValues]


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

    The net holds the new values of the layers below.  None if the order of time and samples in its inputs is unknown.
    """
    layer = recurrent.layer
    seen = make_recurrent_site(task, recurrent, choose_leak(task, layer, options).name)
    if seen is None:
        return None
    search = _Search(task, options, number, recurrent, seen, program, make_judge(task, layer))
    own, losses = _try_gains(search)
    mine: tuple[float, _Own] = losses[own.gain], (own, {} if own.gain == 1.0 else scale_parameters(layer, own.gain))
    found: dict[str, tuple[float, _Weights]] = {"own weights": mine, **_find_others(search, mine)}
    name = min(found, key=lambda one: found[one][0])
    least = found[name][0]
    if math.isinf(least):
        raise _silent(recurrent)
    if TIE * least >= mine[0]:
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


def _find_others(search: _Search, mine: tuple[float, _Own]) -> dict[str, tuple[float, _Weights]]:
    """Return a layer built on a clock, one with latches too, a random layer, and one built on a reservoir.

    Latches are tried only if a layer without them leaves much of the loss.

    Random layers are tried only if the layer's own weights are not far behind the clock.  A reservoir is one half of the own
    weights or of a random layer, and is tried only if these are near the clock.
    """
    recurrent, found = search.recurrent, dict[str, tuple[float, _Weights]]()
    buildable = search.seen.simulated and recurrent.recurrent_weight is not None and search.options.witnesses != "draws"
    clock = _build_on_clock(search) if buildable else None
    if clock is not None:
        found["a layer built on a clock"] = clock
        if recurrent.autapses and recurrent.tonic is not None and clock[0] > _MUCH * search.judge.validation.evaluate_nothing():
            latches = _build_on_clock(search, latches=True)
            if latches is not None:
                found["a layer built on a clock and latches"] = latches
    least = min((loss for loss, _ in found.values()), default=math.inf)
    best: tuple[float, _Weights] = mine
    if mine[0] <= _FAR * least:
        found["a draw of the whole layer"] = draw = min(_try_draws(search, mine[1][0]), key=lambda tried: tried[0])
        best = min(mine, draw, key=lambda tried: tried[0])
    # A user's own function draws rows of the layer's inputs alone, and gates need a clock.
    hears_others = search.options.witnesses in SAMPLERS and search.options.witnesses != "gates"
    if buildable and hears_others and search.width > 1 and best[0] <= NEAR * least:
        reservoir = _build_on_reservoir(search, best[1][1])
        if reservoir is not None:
            found["a layer built on a reservoir"] = reservoir
    return found


def _build_on_clock(search: _Search, latches: bool = False) -> tuple[float, _Weights] | None:
    recurrent, steps = search.recurrent, search.task.temporary.num_steps
    with average_units(search.neuron, search.width):
        tonic = recurrent.tonic is not None
        first = make_clock(search.neuron, search.seen.inputs, steps, search.width, tonic, recurrent.autapses)
        if first is not None and latches:
            first = add_latches(search.neuron, search.seen, first, search.width, search.task.make_generator(search.number))
        return None if first is None else _build_on(search, first)


def _build_on_reservoir(search: _Search, values: ParameterValues) -> tuple[float, _Weights] | None:
    """Return a layer built on the first half of one with some values."""
    with average_units(search.neuron, search.width):
        with replace_parameters(values):
            weight, matrix, currents = search.recurrent.take(search.width // 2)
        inputs = search.seen.inputs.expand(search.task.temporary.num_steps, -1, -1)
        return _build_on(search, make_reservoir(search.neuron, inputs, weight, currents, matrix))


def _build_on(search: _Search, first: First) -> tuple[float, _Weights] | None:
    """Return a layer built on a first generation; None if too few candidates are usable, or do together what none does alone."""
    task, recurrent, sampler = search.task, search.recurrent, get_sampler(search.options.witnesses)
    count, generator = _MORE * search.options.count_candidates(search.width - len(first)), task.make_generator(search.number)
    try:
        built = build_generations(task, recurrent, search.seen, first, sampler, search.program, count, generator)
        if built is None:
            return None
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
