"""Choice between a recurrent layer's own weights, whole-layer draws, and layers built in generations, by held-out samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..errors import DataError, SilentLayerError, UnsupportedModuleError
from ..networks import replace_parameters
from .clock import FirstGeneration, make_clock, simulate_first
from .compare import TRIED_LOSS_RATIO, HeldOutLoss
from .decisions import LayerDecision, LayerGain, LayerWitnesses
from .gates import add_latches
from .generations import build_generations
from .hidden_task import HiddenTask, ParameterValues
from .leaks import LeakChoice
from .neuron import average_units, place_unit_values
from .recurrent import RecurrentLayer, RecurrentSite, list_draws, make_recurrent_site
from .rescale import RATE_ABOVE, TIE_LOSS_RATIO, find_gain, make_scaled_layer, scale_parameters, settle_gain
from .samplers import WitnessOptions, get_sampler, traces
from .select import SelectionProgram
from .simulate import check_together

# Held-out loss of a layer without latches above which these are tried, as a share of the loss of a bias alone.
_LATCH_LOSS_SHARE = 0.25
_CANDIDATES_FACTOR = 2  # candidates of a built layer, for each one of a feed-forward layer of its width


@dataclass(frozen=True)
class _Tried:
    """Weights that were tried."""

    loss: float  # held-out, of the temporary readout; infinite if the layer does not spike
    decision: LayerDecision
    values: ParameterValues


@dataclass(frozen=True)
class _Search:
    """A recurrent layer whose weights are to be chosen, in a net that holds the new values of the layers below."""

    task: HiddenTask
    options: WitnessOptions
    number: int  # of the layer
    recurrent: RecurrentLayer
    seen: RecurrentSite
    leak: LeakChoice
    program: SelectionProgram
    evaluate: HeldOutLoss

    @property
    def width(self) -> int:
        """Neurons of the layer, N."""
        return len(self.recurrent.weight)

    @property
    def neuron(self) -> nn.Module:
        """The layer's neuron."""
        return self.recurrent.layer.neuron


def choose_recurrent(
    task: HiddenTask, options: WitnessOptions, number: int, recurrent: RecurrentLayer, leak: LeakChoice, program: SelectionProgram
) -> tuple[LayerDecision, ParameterValues] | None:
    """Return the weights that do best on samples that chose none.

    If layers are compared, a tie keeps the layer's own weights, without a gain if that ties too.  If not, these are kept only if
    nothing else spikes.  The net holds the new values of the layers below.  None if the order of time and samples in its inputs is
    unknown.
    """
    layer = recurrent.layer
    seen = make_recurrent_site(task, recurrent, leak.name)
    if seen is None:
        return None
    search = _Search(task, options, number, recurrent, seen, leak, program, HeldOutLoss(task, layer))
    gain, gained = _try_gains(search)
    own = _Tried(gain.heldout_loss[gain.gain], gain, gained)
    tried = {"own weights": own, **_try_others(search, own, gain)}
    spiking = [name for name, one in tried.items() if math.isfinite(one.loss)]
    if not spiking:
        raise SilentLayerError(
            f"hidden layer {layer.name!r}, which spikes neither at any gain of its weights nor in any of its draws",
            "spikes of at least some of its neurons",
            "check the inputs' scale and the thresholds, or pass a larger n_candidates for more draws",
        )
    allowed = spiking if options.compare else [name for name in spiking if name != "own weights"] or spiking
    name = min(allowed, key=lambda one: tried[one].loss)
    if options.compare and TIE_LOSS_RATIO * tried[name].loss >= own.loss:
        name = "own weights"
    best = tried.pop(name)
    others = ", ".join(f"{one.loss:.3g} of {other}" for other, one in tried.items())
    parts = best.decision.reason, f"{name}: held-out loss {best.loss:.3g}" + (f" against {others}" if others else "")
    return replace(best.decision, reason="; ".join(part for part in parts if part)), best.values


def _try_gains(search: _Search) -> tuple[LayerGain, ParameterValues]:
    """Return the layer's own weights with the better of a gain of one and one at a usual firing rate."""
    layer = search.recurrent.layer
    losses = {1.0: search.evaluate({})[0]}
    try:
        scaled = make_scaled_layer(search.task, layer)
    except SilentLayerError:
        return LayerGain(layer.name, heldout_loss=losses), {}
    gain = find_gain(scaled, RATE_ABOVE)
    if gain is not None:
        losses[gain] = search.evaluate(scale_parameters(layer, gain))[0]
    return settle_gain(scaled, losses, "recurrent")


def _try_others(search: _Search, own: _Tried, gain: LayerGain) -> dict[str, _Tried]:
    """Return a layer built on a clock, one with latches too, a random layer, and one built on a reservoir.

    Latches are tried only if a layer without them leaves much of the loss.  Random layers are tried only if the layer's own
    weights are near the built ones.  A reservoir is one half of the better of own weights and a random layer, and is tried only if
    its loss, too, is near the built ones'.
    """
    recurrent, others = search.recurrent, dict[str, _Tried]()
    buildable = search.seen.simulated
    clock = _build_on_clock(search) if buildable else None
    if clock is not None:
        others["a layer built on a clock"] = clock
        enough = _LATCH_LOSS_SHARE * search.evaluate.validation.evaluate_nothing()
        if recurrent.autapses and recurrent.tonic is not None and clock.loss > enough:
            latches = _build_on_clock(search, latches=True)
            if latches is not None:
                others["a layer built on a clock and latches"] = latches
    least, reservoir = min((one.loss for one in others.values()), default=math.inf), own
    if own.loss <= TRIED_LOSS_RATIO * least:
        others["a draw of the whole layer"] = draw = min(_try_draws(search, gain), key=lambda one: one.loss)
        reservoir = min(own, draw, key=lambda one: one.loss)
    fits_reservoir = isinstance(search.options.witnesses, str)  # a user's own function draws rows of the layer's inputs alone
    if buildable and fits_reservoir and search.width > 1 and reservoir.loss <= TRIED_LOSS_RATIO * least:
        built = _build_on_reservoir(search, reservoir.values)
        if built is not None:
            others["a layer built on a reservoir"] = built
    return others


def _try_draws(search: _Search, own: LayerGain) -> Iterator[_Tried]:
    """Yield whole-layer draws and their losses, infinite if no gain makes one spike."""
    task, options, recurrent = search.task, search.options, search.recurrent
    sampler = traces if options.witnesses == "auto" else get_sampler(options.witnesses)
    count = options.count_candidates(search.width) // search.width
    draws = list_draws(recurrent, search.seen.site, sampler, count, task.make_generator(search.number))
    for number, (values, rate) in enumerate(draws, start=1):
        gain, written = None, values
        with replace_parameters(values), suppress(SilentLayerError):
            gain = find_gain(make_scaled_layer(task, recurrent.layer), rate)
            if gain is not None:
                written = values | scale_parameters(recurrent.layer, gain)
        loss = math.inf if gain is None else search.evaluate(written)[0]
        yield _Tried(loss, replace(own, gain=1.0, reason=f"draw {number} of {count}", draw=number), written)


def _build_on_clock(search: _Search, latches: bool = False) -> _Tried | None:
    recurrent = search.recurrent
    inputs = search.seen.inputs.expand(search.task.temporary.num_steps, -1, -1)

    def make() -> FirstGeneration | None:
        has_tonic, dtype = recurrent.tonic is not None, recurrent.weight.dtype
        first = make_clock(search.neuron, inputs, search.width, has_tonic, recurrent.autapses, dtype)
        if first is None or not latches:
            return first
        return add_latches(search.neuron, search.seen, first, search.width, search.task.make_generator(search.number))

    return _build_on(search, make)


def _build_on_reservoir(search: _Search, values: ParameterValues) -> _Tried | None:
    """Return a layer built on the first half of one with some values."""
    inputs = search.seen.inputs.expand(search.task.temporary.num_steps, -1, -1)
    with replace_parameters(values):
        weights = search.recurrent.take(search.width // 2)
    return _build_on(search, lambda: simulate_first("reservoir", search.neuron, inputs, *weights))


def _build_on(search: _Search, make: Callable[[], FirstGeneration | None]) -> _Tried | None:
    """Return a layer built on a first generation.

    None if there is none, if too few candidates are usable, or if they do together what none does alone.
    """
    with average_units(search.neuron, search.width), suppress(DataError, UnsupportedModuleError):
        first = make()
        return None if first is None else _build_behind(search, first)
    return None


def _build_behind(search: _Search, first: FirstGeneration) -> _Tried | None:
    task, recurrent, sampler = search.task, search.recurrent, get_sampler(search.options.witnesses)
    generator = task.make_generator(search.number)
    count = _CANDIDATES_FACTOR * search.options.count_candidates(search.width - len(first))
    behind = torch.arange(len(first), search.width)
    built = build_generations(task, recurrent, search.seen, first, sampler, search.program, count, generator)
    if built is None:
        return None
    units = place_unit_values(search.neuron, built.rows.unit_values, behind.to(recurrent.weight.device), search.width)
    values = recurrent.make_values(*built.weights) | units
    check_together(task, recurrent.layer, values, built.emitted, behind)
    decision = LayerWitnesses(
        name=recurrent.layer.name,
        width=search.width,
        selected=len(built.rows),
        simulated=built.simulated,
        used=built.selection.used,
        objective=built.selection.objective,
        strength=built.selection.strength,
        dropped=built.dropped,
        leaks=search.leak.count(built.rows.unit_values),
        kinds=dict(Counter(built.kinds)),
    )
    return _Tried(search.evaluate(values)[0], decision, values)
