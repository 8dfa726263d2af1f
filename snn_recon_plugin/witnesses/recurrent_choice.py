"""Choice between a recurrent layer's own weights, whole-layer draws, and layers built in generations, by held-out samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..errors import DataError, SilentLayerError, UnsupportedModuleError
from ..networks import replace_parameters
from .compare import make_judge
from .decisions import LayerDecision, LayerGain, LayerWitnesses
from .draws import choose_draw
from .generations import First, Generations, build_generations, make_clock, make_reservoir
from .hidden_task import RIDGES, HiddenTask, ParameterValues
from .leaks import choose_leak
from .neuron import average_units, place_unit_values, shape_unit_values
from .recurrent import RecurrentLayer, RecurrentSite, make_recurrent_site
from .replace import check_together
from .rescale import TIE, evaluate_at_rate
from .samplers import SAMPLERS, WitnessOptions, get_sampler
from .select import SelectionProgram

__all__ = ["choose_recurrent"]

_MORE = 2  # candidates of a built layer, for each one of a feed-forward layer of its width


@dataclass(frozen=True)
class _Search:
    """A recurrent layer whose weights are to be chosen."""

    task: HiddenTask
    options: WitnessOptions
    number: int  # of the layer
    below: ParameterValues  # new values of the layers below
    recurrent: RecurrentLayer
    seen: RecurrentSite

    @property
    def width(self) -> int:
        """Neurons of the layer, N."""
        return len(self.recurrent.weight)

    @property
    def neuron(self) -> nn.Module:
        """The layer's neuron."""
        return self.recurrent.layer.neuron


def choose_recurrent(
    task: HiddenTask,
    options: WitnessOptions,
    number: int,
    below: ParameterValues,
    recurrent: RecurrentLayer,
    own: tuple[LayerGain, ParameterValues],
    program: SelectionProgram,
) -> tuple[LayerDecision, ParameterValues]:
    """Return what does best on held-out samples at the net's readout; a tie keeps the layer's own weights times a gain."""
    layer = task.net_map.hidden[number]
    with replace_parameters(below):
        seen = make_recurrent_site(task, recurrent, choose_leak(task, layer, options).name)
    if seen is None:
        return own
    search = _Search(task, options, number, below, recurrent, seen)
    found: dict[str, tuple[LayerDecision, ParameterValues]] = {"own weights": own}
    draw = _find_draw(search, own[0])
    if draw is not None:
        found["a draw of the whole layer"] = draw
    if seen.simulated and recurrent.recurrent_weight is not None:
        with average_units(layer.neuron, search.width):
            found |= _build(search, (draw or own)[1], program)
    with replace_parameters(below):
        judge = make_judge(task, layer)
        losses = {name: judge(values, RIDGES)[0] for name, (_, values) in found.items()}
    best = min(losses, key=lambda name: losses[name])
    if math.isinf(losses[best]):
        raise _silent(recurrent)
    if TIE * losses[best] >= losses["own weights"]:
        best = "own weights"
    decision, values = found[best]
    others = ", ".join(f"{loss:.3g} of {name}" for name, loss in losses.items() if name != best)
    parts = decision.reason, f"held-out loss {losses[best]:.3g}" + (f" against {others}" if others else "")
    return replace(decision, reason="; ".join(part for part in parts if part)), values


def _find_draw(search: _Search, own: LayerGain) -> tuple[LayerGain, ParameterValues] | None:
    """Return the best whole-layer draw."""
    task, options, number, below = search.task, search.options, search.number, search.below
    return choose_draw(
        search.recurrent,
        search.seen.site,
        own,
        get_sampler("traces" if options.witnesses == "auto" else options.witnesses),
        options.count_candidates(search.width) // search.width,
        task.make_generator(number),
        lambda drawn, rate: evaluate_at_rate(task, number, {**below, **drawn}, rate),
    )


def _build(search: _Search, best: ParameterValues, program: SelectionProgram) -> dict[str, tuple[LayerDecision, ParameterValues]]:
    """Return layers built on a clock, and on one half of the best weights so far, where enough candidates are usable."""
    task, recurrent, seen = search.task, search.recurrent, search.seen
    sampler, found = get_sampler(search.options.witnesses), dict[str, tuple[LayerDecision, ParameterValues]]()
    for first in _list_first(search, best):
        count = _MORE * search.options.count_candidates(search.width - len(first))
        try:
            built = build_generations(task, recurrent, seen, first, sampler, program, count, task.make_generator(search.number))
            values = _make_values(search, built)
            rows = torch.arange(len(first), search.width)
            with replace_parameters(search.below):
                check_together(task, recurrent.layer, values, built.emitted, rows)
        except (DataError, UnsupportedModuleError):
            continue
        found[f"a layer built on a {first.kind}"] = _describe(search, built), values
    return found


def _list_first(search: _Search, best: ParameterValues) -> Iterator[First]:
    """Yield the first generations to build on."""
    neuron, recurrent, inputs = search.neuron, search.recurrent, search.seen.inputs
    steps, tonic = search.task.temporary.num_steps, recurrent.tonic is not None
    clock = make_clock(neuron, inputs, steps, search.width, tonic, recurrent.autapses)
    if clock is not None:
        yield clock
    known = search.options.witnesses in SAMPLERS  # a user's own function draws rows of the layer's inputs alone
    if search.width > 1 and known:
        with replace_parameters(best):
            weight, matrix, currents = recurrent.take(search.width // 2)
        yield make_reservoir(neuron, inputs.expand(steps, -1, -1), weight, currents, matrix)


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
