"""Choice between a recurrent layer's own weights, whole-layer draws, and layers built in generations, by held-out samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from ..errors import DataError, SilentLayerError, UnsupportedModuleError
from ..networks.private.parameters import Values, with_values
from .clock import FirstGeneration, add_latches, make_clock, simulate_first
from .driven_layer import make_driven_layer
from .gains import RATE_ABOVE, TIE_LOSS_RATIO, TRIED_LOSS_RATIO, measure_losses, settle_gain
from .generations import build_generations
from .hidden_task import HiddenTask, LayerDecision, LayerGain, LayerWitnesses
from .leaks import LeakChoice
from .neuron import average_units, place_unit_values
from .recurrent import RecurrentLayer, RecurrentSite, list_draws, make_recurrent_site
from .samplers import WitnessOptions, get_sampler, traces
from .select import make_program
from .simulate import check_together

# Held-out loss of a layer without latches above which these are tried, as a share of the loss of a bias alone.
_LATCH_LOSS_SHARE = 0.25


@dataclass(frozen=True)
class _Tried:
    loss: float  # held-out, of the temporary readout; infinite if the layer does not spike
    decision: LayerDecision
    values: Values


@dataclass(frozen=True)
class _Search:
    """A recurrent layer whose weights are to be chosen."""

    task: HiddenTask
    options: WitnessOptions
    number: int  # of the layer
    seen: RecurrentSite
    leak: LeakChoice

    @property
    def recurrent(self) -> RecurrentLayer:
        return self.seen.recurrent

    def measure(self, values: Values) -> float:
        with with_values(values):
            return measure_losses(self.task, self.recurrent.layer, (1.0,))[0][0]


def choose_recurrent(
    task: HiddenTask, options: WitnessOptions, number: int, *, recurrent: RecurrentLayer, leak: LeakChoice
) -> tuple[LayerDecision, Values] | None:
    """Return the weights that do best on samples that chose none.

    If layers are compared, a tie keeps the layer's own weights, without a gain if that ties too.  If not, these are kept only if
    nothing else spikes.  None if the order of time and samples in the layer's inputs is unknown.
    """
    layer = recurrent.layer
    seen = make_recurrent_site(task, recurrent, leak.name)
    if seen is None:
        return None
    search = _Search(task, options, number, seen, leak)
    gain, gained = _try_gains(search)
    own = _Tried(gain.heldout_loss[gain.gain], gain, gained)
    tried = {"own weights": own, **_try_others(search, own, gain)}
    spiking = [name for name, one in tried.items() if math.isfinite(one.loss)]
    if not spiking:
        found = f"hidden layer {layer.name!r}, which spikes neither at any gain of its weights nor in any of its draws"
        fix = "check the inputs' scale and the thresholds, or pass a larger n_candidates for more draws"
        raise SilentLayerError(found, "spikes of at least some of its neurons", fix)
    allowed = spiking if options.compare else [name for name in spiking if name != "own weights"] or spiking
    name = min(allowed, key=lambda one: tried[one].loss)
    if options.compare and TIE_LOSS_RATIO * tried[name].loss >= own.loss:
        name = "own weights"
    best = tried.pop(name)
    others = ", ".join(f"{one.loss:.3g} of {other}" for other, one in tried.items())
    parts = best.decision.reason, f"{name}: held-out loss {best.loss:.3g}" + (f" against {others}" if others else "")
    return replace(best.decision, reason="; ".join(part for part in parts if part)), best.values


def _try_gains(search: _Search) -> tuple[LayerGain, Values]:
    """Return the layer's own weights with the better of a gain of one and one at a usual firing rate."""
    layer = search.recurrent.layer
    driven, losses = make_driven_layer(search.task, layer), {1.0: search.measure({})}
    gain = driven.find_gain(RATE_ABOVE)
    if gain is not None:
        losses[gain] = search.measure(driven.values(gain))
    return settle_gain(driven, losses, "recurrent")


def _try_others(search: _Search, own: _Tried, gain: LayerGain) -> dict[str, _Tried]:
    """Return a layer built on a clock, one with latches too, a random layer, and one built on a reservoir.

    Latches are tried only if a layer without them leaves much of the loss.  Random layers are tried only if the layer's own
    weights are near the built ones.  A reservoir is one half of the better of own weights and a random layer, and is tried only if
    its loss, too, is near the built ones'.
    """
    recurrent, others = search.recurrent, dict[str, _Tried]()
    clock = _build_on(search, "clock")
    if clock is not None:
        others["a layer built on a clock"] = clock
        enough = _LATCH_LOSS_SHARE * search.task.comparison.evaluate_nothing()
        if recurrent.autapses and recurrent.tonic is not None and clock.loss > enough:
            latches = _build_on(search, "latches")
            if latches is not None:
                others["a layer built on a clock and latches"] = latches
    least, reservoir = min((one.loss for one in others.values()), default=math.inf), own
    if own.loss <= TRIED_LOSS_RATIO * least:
        others["a draw of the whole layer"] = draw = min(_try_draws(search, gain), key=lambda one: one.loss)
        reservoir = min(own, draw, key=lambda one: one.loss)
    fits_reservoir = isinstance(search.options.witnesses, str)  # a user's own function draws rows of the layer's inputs alone
    if fits_reservoir and recurrent.width > 1 and reservoir.loss <= TRIED_LOSS_RATIO * least:
        built = _build_on(search, "reservoir", reservoir.values)
        if built is not None:
            others["a layer built on a reservoir"] = built
    return others


def _try_draws(search: _Search, own: LayerGain) -> Iterator[_Tried]:
    """Yield whole-layer draws and their losses, infinite if no gain makes one spike."""
    task, options, recurrent = search.task, search.options, search.recurrent
    sampler = traces if options.witnesses == "auto" else get_sampler(options.witnesses)
    count = options.count_candidates(recurrent.width) // recurrent.width
    generator = task.make_generator(search.number)
    draws = list_draws(recurrent, search.seen.site, sampler, count=count, generator=generator)
    for number, (values, rate) in enumerate(draws, start=1):
        with with_values(values):
            driven = make_driven_layer(task, recurrent.layer)
            gain = driven.find_gain(rate)
            written = values if gain is None else {**values, **driven.values(gain)}
        loss = math.inf if gain is None else search.measure(written)
        yield _Tried(loss, replace(own, gain=1.0, reason=f"draw {number} of {count}", draw=number), written)


def _build_on(search: _Search, kind: str, values: Values | None = None) -> _Tried | None:
    """Return a layer built on a first generation of a kind.

    None if there is none, if too few candidates are usable, or if they do together what none does alone.
    """
    with average_units(search.recurrent.neuron, search.recurrent.width), suppress(DataError, UnsupportedModuleError):
        first = _make_first(search, kind, values or {})
        return None if first is None else _build_behind(search, first)
    return None


def _make_first(search: _Search, kind: str, values: Values) -> FirstGeneration | None:
    """Return a clock, a clock with latches, or a reservoir: the first half of the layer with some values."""
    recurrent, seen = search.recurrent, search.seen
    inputs = seen.inputs.expand(search.task.temporary.num_steps, -1, -1)
    if kind == "reservoir":
        with with_values(values):
            weights = recurrent.take(recurrent.width // 2)
        return simulate_first(kind, recurrent.neuron, inputs, *weights)
    clock = make_clock(
        recurrent.neuron,
        inputs,
        recurrent.width,
        tonic=recurrent.tonic is not None,
        autapses=recurrent.autapses,
        dtype=recurrent.weight.dtype,
    )
    if clock is None or kind == "clock":
        return clock
    return add_latches(seen, clock, search.task.make_generator(search.number))


def _build_behind(search: _Search, first: FirstGeneration) -> _Tried | None:
    """Return a layer whose other rows are selected behind a first generation."""
    task, recurrent = search.task, search.recurrent
    behind = torch.arange(len(first), recurrent.width)
    built = build_generations(
        search.seen,
        first,
        search.options,
        program=make_program(task),
        filters=task.temporary.filters,
        generator=task.make_generator(search.number),
    )
    if built is None:
        return None
    units = place_unit_values(recurrent.neuron, built.rows.unit_values, behind.to(recurrent.weight.device), recurrent.width)
    values = {**recurrent.make_values(*built.weights), **units}
    check_together(task, recurrent.layer, values, expected=built.emitted, rows=behind)
    decision = LayerWitnesses(
        name=recurrent.layer.name,
        width=recurrent.width,
        selected=len(built.rows),
        simulated=built.simulated,
        used=built.selection.used,
        objective=built.selection.objective,
        strength=built.selection.strength,
        dropped=built.dropped,
        leaks=search.leak.count(built.rows.unit_values),
        kinds=dict(Counter(built.kinds)),
    )
    return _Tried(search.measure(values), decision, values)
