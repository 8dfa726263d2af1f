"""Choice between a recurrent layer's own weights, whole-layer draws, and layers built in generations, by held-out samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from ..errors import DataError, SilentLayerError
from ..networks import replace_parameters
from .decisions import LayerDecision, LayerGain, LayerWitnesses
from .draws import choose_draw
from .generations import First, Generations, build_generations, make_clock, make_reservoir
from .hidden_task import HiddenTask, ParameterValues
from .recurrent import RecurrentLayer, RecurrentSite, make_recurrent_site
from .rescale import TIE, evaluate_at_rate, evaluate_heldout
from .samplers import WitnessOptions, get_sampler
from .select import SelectionProgram

__all__ = ["choose_recurrent"]


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
    with replace_parameters(below):
        seen = make_recurrent_site(task, recurrent)
    if seen is None:
        return own
    decisions: dict[str, tuple[LayerDecision, ParameterValues]] = {"own weights": own}
    draw = _choose_draw(task, options, number, below, recurrent, seen, own[0])
    if draw is not None:
        decisions["draw of the whole layer"] = draw
    if seen.simulated and recurrent.recurrent_weight is not None:
        for built, values in _build(task, options, number, below, recurrent, seen, (draw or own)[1], program):
            decisions[f"built on a {next(iter(built.kinds))}"] = built, values
    losses = {name: evaluate_heldout(task, number, {**below, **values}) for name, (_, values) in decisions.items()}
    best = min(losses, key=lambda name: losses[name])
    if math.isinf(losses[best]):
        raise _silent(recurrent)
    if TIE * losses[best] >= losses["own weights"]:
        best = "own weights"
    others = ", ".join(f"{loss:.3g} {name}" for name, loss in losses.items() if name != best)
    text = f"held-out loss {losses[best]:.3g}" + (f" against {others}" if others else "")
    decision, values = decisions[best]
    return replace(decision, reason=f"{decision.reason}; {text}" if decision.reason else text), values


def _choose_draw(
    task: HiddenTask,
    options: WitnessOptions,
    number: int,
    below: ParameterValues,
    recurrent: RecurrentLayer,
    seen: RecurrentSite,
    own: LayerGain,
) -> tuple[LayerGain, ParameterValues] | None:
    width = len(recurrent.weight)
    return choose_draw(
        recurrent,
        seen.site,
        own,
        get_sampler("traces" if options.witnesses == "auto" else options.witnesses),
        options.count_candidates(width) // width,
        task.make_generator(number),
        lambda drawn, rate: evaluate_at_rate(task, number, {**below, **drawn}, rate),
    )


def _build(
    task: HiddenTask,
    options: WitnessOptions,
    number: int,
    below: ParameterValues,
    recurrent: RecurrentLayer,
    seen: RecurrentSite,
    best: ParameterValues,
    program: SelectionProgram,
) -> Iterator[tuple[LayerWitnesses, ParameterValues]]:
    """Yield layers built on a clock, and on a half of the best weights so far, as far as enough candidates are usable."""
    width = len(recurrent.weight)
    sampler = get_sampler(options.witnesses)
    for first in _list_first(recurrent, seen, best, task.temporary.num_steps):
        count = options.count_candidates(width - len(first))
        try:
            built = build_generations(task, recurrent, seen, first, sampler, program, count, task.make_generator(number))
        except DataError:
            continue
        values = recurrent.make_values(built.inputs, built.recurrent, built.tonic)
        yield _describe(recurrent, built), values


def _list_first(recurrent: RecurrentLayer, seen: RecurrentSite, best: ParameterValues, steps: int) -> Iterator[First]:
    neuron, weight, width = recurrent.layer.neuron, recurrent.weight, len(recurrent.weight)
    clock = make_clock(neuron, seen.inputs, steps, width, recurrent.tonic is not None, recurrent.autapses)
    if clock is not None:
        yield clock
    if width > 1:
        half = width // 2
        with replace_parameters(best):
            tonic = sum(
                (getattr(*place).detach() for place in {recurrent.input_bias, recurrent.recurrent_bias} if place is not None),
                weight.new_zeros(width),
            )
            assert recurrent.recurrent_weight is not None
            matrix = getattr(*recurrent.recurrent_weight).detach()
            yield make_reservoir(neuron, seen.inputs, recurrent.weight[:half], tonic[:half], matrix[:half, :half])


def _describe(recurrent: RecurrentLayer, built: Generations) -> LayerWitnesses:
    selection = built.selection
    return LayerWitnesses(
        name=recurrent.layer.name,
        width=len(built.kinds),
        selected=len(built.rows.kinds),
        simulated=built.simulated,
        used=selection.used,
        violating=0,
        priced=0,
        objective=selection.objective,
        strength=selection.strength,
        dropped=built.dropped,
        kinds=dict(Counter(built.kinds)),
    )


def _silent(recurrent: RecurrentLayer) -> SilentLayerError:
    return SilentLayerError(
        f"hidden layer {recurrent.layer.name!r}, which spikes neither at any gain of its weights nor in any of its draws",
        "spikes of at least some of its neurons",
        "check the inputs' scale and the thresholds, or pass a larger n_candidates for more draws",
    )
