"""Reconstruction of hidden layers from the input up: each gets the candidates that a temporary readout on its spikes selects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError, UnsupportedModuleError
from ..networks.private.parameters import Values
from ..networks.structure.layers import HiddenLayer
from .gains import choose_gain, choose_own, explain_fixed
from .hidden_task import HiddenTask, LayerDecision, LayerWitnesses
from .neuron import average_units, measure_excitability, merge_units, place_unit_values, read_unit_values
from .recurrent import explain_recurrent, find_recurrent_layer
from .recurrent_choice import choose_recurrent
from .samplers import LeakChoice, choose_leak, draw_candidates, get_sampler, split_by_leak
from .select import describe_selection, find_usable, make_problem, select
from .simulate import SimulatedLayer, check_together, simulate_layer
from .site import Candidates, LayerSite, weight_of


def rebuild_layer(task: HiddenTask, number: int) -> tuple[LayerDecision, Values]:
    """Rebuild one hidden layer above those with new values, or keep its weights up to a gain; return the values to write."""
    layer, layers = task.net_map.hidden[number], task.net_map.hidden
    leak = choose_leak(task, layer)
    reason = explain_not_rebuilt(layer, layers)
    recurrent = None if explain_fixed(layer, layers) else find_recurrent_layer(layer)
    try:
        if recurrent is not None:
            return choose_recurrent(task, number, recurrent, leak)
        if not reason:
            with merge_units(layer.neuron, len(weight_of(layer.synapse))):
                subsets = [task.used_samples, *([task.compared_samples[0]] if task.compares else [])]
                alone, *compared = simulate_layer(task, layer, subsets)
                rebuilt = _select_rows(task, number, alone, leak)
                own = choose_own(task, number, compared[0], rebuilt[1]) if task.compares else None
                return (replace(own[0], offers_leaks=rebuilt[0].offers_leaks), own[1]) if own else rebuilt
    except UnsupportedModuleError as error:
        reason = error.found
    except DataError as error:
        if not task.compares:
            text = error.found if repr(layer.name) in error.found else f"hidden layer {layer.name!r}: {error.found}"
            raise DataError(text, error.needed, error.fix) from error
        reason = error.found
    gain, values = choose_gain(task, number)
    if gain.reason and gain.reason != reason:
        reason = f"{reason}; {gain.reason}"
    return replace(gain, reason=reason), values


def explain_not_rebuilt(layer: HiddenLayer, layers: Sequence[HiddenLayer]) -> str:
    """Return the reason why one of a net's hidden layers can't be rebuilt row by row, empty if it can."""
    fixed = explain_fixed(layer, layers) or explain_fixed(replace(layer, norm=None)) or explain_recurrent(layer)
    if fixed:
        return fixed
    library = layer.library
    weight = getattr(layer.synapse, "weight", None)
    if not isinstance(layer.synapse, nn.Linear) or not isinstance(weight, Tensor):
        return f"the rows of a {type(layer.synapse).__name__} can't be replaced"
    if library.inhibits(layer.neuron):
        return "neurons that inhibit each other"
    with merge_units(layer.neuron, len(weight)):
        try:
            with average_units(layer.neuron, len(weight)):
                units = weight.new_zeros(1, 1, len(weight) + 1)
                library.run(layer.neuron, units).spikes.expand_as(units)  # an error if parameters add axes
        except UnsupportedModuleError as error:
            return f"{error.found}, which can't be simulated alone"
        except RuntimeError:
            return "units with parameters of their own in a shape that candidates can't take; give each unit one value"
    return ""


def _select_rows(task: HiddenTask, number: int, alone: SimulatedLayer, leak: LeakChoice) -> tuple[LayerWitnesses, Values]:
    """Draw, simulate and select candidates for a layer, and check the selected ones together in the net."""
    layer, norm = alone.layer, alone.stage.norm
    width = len(weight_of(layer.synapse))
    if task.heterogeneous is None and len(alone.inputs) == 1 and leak.name not in read_unit_values(layer.neuron, width):
        leak = LeakChoice()  # all units have the same leak; where nothing changes, others cost accuracy
    site = _make_site(task, number, alone, leak.name)
    drawn = draw_candidates(get_sampler(task.witnesses), site, task.count_candidates(width), task.make_generator(number))
    emitted = alone.run(drawn)
    usable, dropped = find_usable(emitted)
    if len(usable) == 0:
        counts = ", ".join(f"{number} {name}" for name, number in dropped.items() if number)
        found = f"no candidates that distinguish samples: of {len(drawn)}, {counts}"
        fix = "check the inputs and the labels, or pass hidden='rescale'"
        raise DataError(found, "some that spike for a part of the samples", fix)
    candidates, emitted = drawn.take(usable), emitted.take(usable)
    order, used = select(make_problem(task, emitted), width)
    order = order[:width]
    chosen, rows = candidates.take(order), torch.arange(len(order), device=order.device)
    values = _replace_rows(layer, chosen, rows, norm)
    if norm is not None:
        values = {**values, **_fit_norm(norm, alone, chosen, rows)}
    check_together(task, layer, values, expected=emitted.take(order), rows=rows)
    decision = describe_selection(chosen, leak, name=layer.name, width=width, used=used, simulated=len(drawn), dropped=dropped)
    return replace(decision, offers_leaks=leak.is_offered(alone.inputs, site.fed_by_spikes)), values


def _make_site(task: HiddenTask, number: int, alone: SimulatedLayer, leak: str | None) -> LayerSite:
    """Return the site of a layer that is rebuilt, whose candidates differ in ``leak`` if it has a name."""
    layer, means = alone.layer, alone.means
    width = len(weight_of(layer.synapse))
    with average_units(layer.neuron, width):
        excitability = measure_excitability(layer.neuron, task.temporary.num_steps, means)
    site = LayerSite(
        layer.synapse,
        means,
        task.labels,
        excitability,
        alone.inputs.dtype is torch.uint8 and number > 0,  # binary inputs of the net are not spikes of a layer below
        unit_values={name: value for name, value in read_unit_values(layer.neuron, width).items() if name != leak},
        over_time=alone.inputs,
        biased=True if alone.stage.norm is not None else None,
    )
    if leak is not None:
        site = split_by_leak(site, layer.neuron, leak, task.temporary.num_steps)
    return site.split_steps(task.temporary.steps)


def _replace_rows(layer: HiddenLayer, chosen: Candidates, rows: Tensor, norm: nn.Module | None) -> Values:
    """Return the layer's parameters with some rows replaced; with too few distinct candidates the last rows stay."""
    weight, bias = weight_of(layer.synapse), layer.synapse.bias
    values = {(layer.synapse, "weight"): weight.detach().index_copy(0, rows, chosen.weight.to(weight))}
    if isinstance(bias, Tensor) and chosen.bias is not None:
        given = chosen.bias if norm is None else torch.zeros_like(chosen.bias)  # the norm has it instead
        values[layer.synapse, "bias"] = bias.detach().index_copy(0, rows, given.to(weight))
    return {**values, **place_unit_values(layer.neuron, chosen.unit_values, rows, len(weight))}


def _fit_norm(norm: Any, alone: SimulatedLayer, chosen: Candidates, rows: Tensor) -> Values:
    """Return the values with which a norm gives its input back, plus a bias, in evaluation; in training but for the batch."""
    mean, variance = alone.measure_norm(chosen)
    bias = mean if chosen.bias is None else mean + chosen.bias
    found = {"running_mean": mean, "running_var": variance, "weight": (variance + norm.eps).sqrt(), "bias": bias}
    return {
        (norm, name): getattr(norm, name).detach().index_copy(0, rows, value.to(getattr(norm, name)))
        for name, value in found.items()
    }
