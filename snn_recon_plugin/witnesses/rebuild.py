"""Reconstruction of hidden layers from the input up: each gets the candidates that a temporary readout on its spikes selects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..errors import DataError, SilentLayerError, UnsupportedModuleError
from ..networks import HiddenLayer, library_of, replace_parameters
from .compare import choose_own
from .hidden_task import HiddenTask, LayerGain, ParameterValues, check_samples, take_first_batches
from .neuron import average_units, find_unit_parameters, measure_excitability, merge_units, take_unit_parameters
from .recurrent import choose_draw, find_recurrent_layer, make_recurrent_site
from .rescale import choose_gain, evaluate_at_rate, explain_fixed, scale_parameters
from .samplers import WitnessOptions, count_kinds, get_sampler
from .select import SelectionProgram, describe_dropped, generate_candidates
from .simulate import Emitted, Simulator, assign_rows, make_simulator, run_layer
from .site import CONVOLUTIONS, Candidates, LayerSite, count_groups, weight_of

__all__ = ["LayerDecision", "LayerWitnesses", "explain_not_rebuilt", "reconstruct_layers"]

_FLIPPED = 0.01  # share of features that rounding may change by a spike
_FLIPPED_MIXED = 0.05  # the same if the net's autocast rounds to 16 bits; measured up to 0.015


@dataclass(frozen=True)
class LayerWitnesses:
    """Outcome for a hidden layer that was rebuilt.

    Args:
        name: the synapse's name.
        width: rows of the layer.
        selected: number of replaced rows: all, or the number of distinct candidates if that is smaller.
        simulated: number of candidates simulated.
        used: number of candidates that the group lasso gave a weight.
        violating: number of fresh candidates, drawn after the last solve, that would improve the temporary readout.  It measures
            how far the selection is from optimal; 0 of 0 if all candidates were drawn at once.
        priced: number of these fresh candidates.
        objective: of the group lasso, at ``strength``.
        strength: factor of its penalty.
        dropped: numbers of dead, always-on and double candidates.
        kinds: number of selected candidates of each kind, by the name of the sampler that drew them.
    """

    name: str
    width: int
    selected: int
    simulated: int
    used: int
    violating: int
    priced: int
    objective: float
    strength: float
    dropped: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)


LayerDecision: TypeAlias = LayerWitnesses | LayerGain


def reconstruct_layers(
    task: HiddenTask, options: WitnessOptions, progress: Callable[[str], None] | None = None
) -> tuple[list[LayerDecision], ParameterValues]:
    """Rebuild every hidden layer that can be rebuilt, given the new layers below; rescale or keep the others.

    ``progress`` is called with the name of every finished layer.

    Returns:
        One outcome a layer, from the input up, and the values to write.

    Raises:
        DataError: a single class, no candidate that separates samples, or, with witnesses="own", unusable rows.
        SilentLayerError: a layer that can't be rebuilt and does not spike at any gain of its weights.
    """
    values: ParameterValues = {}
    outcomes: list[LayerDecision] = []
    for number, layer in enumerate(task.net_map.hidden):
        outcome, written = _decide_layer(task, options, number, values)
        values.update(written)
        outcomes.append(outcome)
        if progress is not None:
            progress(layer.name)
    return outcomes, values


def explain_not_rebuilt(layer: HiddenLayer, layers: Sequence[HiddenLayer], unit_parameters: bool = False) -> str:
    """Return the reason why one of a net's hidden layers can't be rebuilt row by row, empty if it can."""
    fixed = explain_fixed(layer, layers)
    if fixed:
        return fixed
    library = library_of(layer.neuron)
    if layer.synapse is layer.neuron or library.recurrence(layer.neuron) is not None:
        return "recurrent: own weights"
    weight = getattr(layer.synapse, "weight", None)
    if not isinstance(layer.synapse, (nn.Linear, *CONVOLUTIONS)) or not isinstance(weight, Tensor):
        return f"the rows of a {type(layer.synapse).__name__} can't be replaced"
    if library.inhibits(layer.neuron):
        return "neurons that inhibit each other"
    with merge_units(layer.neuron, len(weight)):
        names = find_unit_parameters(layer.neuron, len(weight))
        if names and not unit_parameters:
            return f"units with a {' and a '.join(names)} of their own; unit_parameters=True rebuilds them"
        try:
            with average_units(layer.neuron, len(weight)):
                library.run(layer.neuron, weight.new_zeros(1, 1, len(weight) + 1))
        except UnsupportedModuleError as error:
            return f"{error.found}, which can't be simulated alone"
        except RuntimeError:
            return "units with parameters of their own in a shape that candidates can't take; give each unit one value"
    return ""


def _decide_layer(
    task: HiddenTask, options: WitnessOptions, number: int, below: ParameterValues
) -> tuple[LayerDecision, ParameterValues]:
    """Rebuild a layer; keep its weights up to a gain or a draw if it can't be rebuilt."""
    layer = task.net_map.hidden[number]
    reason = explain_not_rebuilt(layer, task.net_map.hidden, options.unit_parameters)
    if not reason:
        try:
            with replace_parameters(below), merge_units(layer.neuron, len(weight_of(layer.synapse))):
                return _rebuild_layer(task, options, number)
        except UnsupportedModuleError as error:
            reason = error.found.removeprefix(f"hidden layer {layer.name!r}: ")
        except DataError as error:
            if not options.compare:
                found = error.found if repr(layer.name) in error.found else f"hidden layer {layer.name!r}: {error.found}"
                raise DataError(found, error.needed, error.fix) from error
            reason = error.found
    return _keep_layer(task, options, number, below, reason)


def _keep_layer(
    task: HiddenTask, options: WitnessOptions, number: int, below: ParameterValues, reason: str
) -> tuple[LayerGain, ParameterValues]:
    """Keep a layer's weights up to a gain; replace those of a recurrent layer if a whole-layer draw is better."""
    layer = task.net_map.hidden[number]
    recurrent = find_recurrent_layer(layer)
    try:
        own = choose_gain(task, number, below)
    except SilentLayerError:
        if recurrent is None:
            raise
        own = LayerGain(layer.name, 1.0, 0.0, 0.0)  # a draw may spike
    values = {} if own.gain == 1.0 else scale_parameters(layer, own.gain)
    if own.reason and own.reason != reason:
        reason = f"{reason}; {own.reason}"
    kept = replace(own, reason=reason), values
    if recurrent is None or options.witnesses == "own":
        return kept
    with replace_parameters(below):
        site = make_recurrent_site(task, recurrent)
    if site is None:
        return kept
    width = len(recurrent.weight)
    draw = choose_draw(
        recurrent,
        site,
        own,
        get_sampler("traces" if options.witnesses == "auto" else options.witnesses),
        options.count_candidates(width) // width,
        task.make_generator(number),
        lambda drawn, rate: evaluate_at_rate(task, number, {**below, **drawn}, rate),
    )
    if draw is None and not own.heldout_loss:
        raise SilentLayerError(
            f"hidden layer {layer.name!r}, which spikes neither at any gain of its weights nor in any of its draws",
            "spikes of at least some of its neurons",
            "check the inputs' scale and the thresholds, or pass a larger n_candidates for more draws",
        )
    return draw or (replace(own, reason=f"{reason}, better than draws of the whole layer"), values)


def _rebuild_layer(task: HiddenTask, options: WitnessOptions, number: int) -> tuple[LayerDecision, ParameterValues]:
    """Select candidates for a layer and check them together in the net, which holds the new layers below.

    If layers are compared and its own weights are no worse, these are kept up to a gain.
    """
    layer = task.net_map.hidden[number]
    width = len(weight_of(layer.synapse))
    simulator = make_simulator(task, layer, task.compared_samples[0] if options.compare else None)
    site, generator = _make_site(task, number, simulator), task.make_generator(number)
    pool = generate_candidates(site, simulator, _make_program(task), options, width, generator)
    if len(pool.candidates) < width and options.witnesses == "own":
        raise DataError(
            f"{len(pool.candidates)} of the {width} own rows of hidden layer {layer.name!r} that tell samples apart "
            f"({describe_dropped(pool.dropped)})",
            "all of them, for witnesses='own'",
            "pass other witnesses, such as 'auto', or hidden='rescale'",
        )
    selection = pool.selection
    first, filled = next(assign_rows(pool.candidates.take(selection.order), width, count_groups(layer.synapse)))
    order, rows = selection.order[first[filled]], filled.nonzero()[:, 0]
    values = _replace_rows(layer, pool.candidates.take(order), rows)
    _check_together(task, layer, values, pool.emitted.take(order), rows)
    if options.compare and (own := choose_own(task, number, simulator, values)) is not None:
        return own
    return LayerWitnesses(
        name=layer.name,
        width=width,
        selected=len(order),
        simulated=pool.simulated,
        used=selection.used,
        violating=pool.violating,
        priced=pool.priced,
        objective=selection.objective,
        strength=selection.strength,
        dropped=pool.dropped,
        kinds=count_kinds(options.witnesses, pool.candidates.take(order)),
    ), values


def _make_site(task: HiddenTask, number: int, simulator: Simulator) -> LayerSite:
    """Return the site of a layer that is rebuilt."""
    layer = task.net_map.hidden[number]
    width = len(weight_of(layer.synapse))
    check_samples(layer, simulator.samples, len(task.targets))
    try:
        with average_units(layer.neuron, width):
            excitability = measure_excitability(layer.neuron, task.temporary.num_steps, simulator.inputs)
    except UnsupportedModuleError as error:
        raise UnsupportedModuleError(f"hidden layer {layer.name!r}: {error.found}", error.needed, error.fix) from error
    site = LayerSite(
        layer.synapse,
        simulator.inputs,
        task.labels,
        excitability,
        simulator.fed_by_spikes and number > 0,  # binary inputs of the net are not spikes of a layer below
        units=width if find_unit_parameters(layer.neuron, width) else 0,
        over_time=simulator.over_time,
    )
    return site.split_steps(task.temporary.steps)


def _make_program(task: HiddenTask) -> SelectionProgram:
    """Return the group lasso of the temporary readout."""
    temporary, rows = task.temporary, task.rows
    bias_column = temporary.bias_column(len(task.used_samples)) if task.net_map.readout.bias is not None else None
    weights = None if task.weights is None else temporary.take_rows(task.weights)[rows]
    return SelectionProgram(temporary.take_rows(task.targets)[rows], task.loss, task.num_outputs, bias_column, weights)


def _replace_rows(layer: HiddenLayer, chosen: Candidates, rows: Tensor) -> ParameterValues:
    """Return the layer's parameters with some rows replaced; with too few distinct candidates the last rows stay."""
    weight, bias = weight_of(layer.synapse), layer.synapse.bias
    values: ParameterValues = {(layer.synapse, "weight"): weight.detach().index_copy(0, rows, chosen.weight.to(weight))}
    if chosen.bias is not None:
        assert isinstance(bias, Tensor)
        values[layer.synapse, "bias"] = bias.detach().index_copy(0, rows, chosen.bias.to(weight))
    if chosen.units is not None:
        unit_of = torch.arange(len(weight), device=chosen.units.device).index_copy(0, rows, chosen.units)
        values.update(take_unit_parameters(layer.neuron, unit_of))
    return values


def _check_together(task: HiddenTask, layer: HiddenLayer, values: ParameterValues, expected: Emitted, rows: Tensor) -> None:
    """Refuse selected rows whose spikes differ together in the net from those of each candidate alone."""
    few = take_first_batches(task.batches)
    roundings: list[float] = []
    with replace_parameters(values):
        found = run_layer(task, layer, few, roundings.append).take(rows).features
    samples = task.used_samples
    samples = samples[samples < len(found) // task.temporary.rows_each]
    compared = task.temporary.find_rows(samples.to(found.device))
    if len(compared) == 0:  # none of these samples took part in the selection
        return
    alone = expected.features[: len(compared)]
    wrong = float(((found[compared] - alone).abs() > 1e-3 * float(alone.abs().max())).float().mean())
    if wrong > (_FLIPPED_MIXED if any(roundings) else _FLIPPED):
        raise UnsupportedModuleError(
            f"hidden layer {layer.name!r}: its neurons do something else with the selected rows than with each as a "
            f"candidate, for {100 * wrong:.0f} % of samples and neurons, so that they depend on more than their own row, as "
            "with a normalisation, quantised weights or spikes fed back by hand",
            "neurons that depend on their own row alone: no spikes fed back by hand, no stage between that treats rows unlike",
            "pass hidden='rescale', which keeps the layers' own weights",
        )
