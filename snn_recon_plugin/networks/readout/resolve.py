"""Resolve the readout: measure on the net how its scores follow from the readout layer's currents."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ...errors import OptionError, UnsupportedModuleError
from ..calls.forward import Forward
from ..libraries import library_of
from ..structure.graph import Probe, check_neuron_alone, run_probe
from ..structure.layers import NetworkMap
from .filters import OutputResponse, Scale, fit_scale, measure_response
from .match import Match, match_output
from .readout import CUSTOM, KINDS, Readout, step_weights


def resolve_readout(
    net: nn.Module,
    net_map: NetworkMap,
    inputs: Any,
    *,
    forward: Forward,
    kind: str = "auto",
    signal: str | None = None,
    classes: int | None = None,
) -> Readout:
    """Find the filter that turns readout currents into the net's own scores, by a pass with random ones in their place.

    ``"auto"`` counts spikes if the net returns them, unless it also returns membranes and the output neuron was built as an
    integrator, ``reset_mechanism="none"``.  Of membranes over time it takes the mean.  Scores at every step are taken only on
    request.  ``inputs`` are a few samples.  ``signal`` is what the training loss takes if the net returns both, "spikes" or
    "membranes".  ``classes`` is the number of classes if several outputs stand for one.
    """
    layer = net_map.readout
    kinds, per_class = _fitting_kinds(net_map, kind), outputs_per_class(layer.out_features, classes)
    probe = run_probe(net, net_map, inputs, forward)
    measure = partial(_measure, net_map, probe.values.device)
    response, before, gain = measure(len(probe.values)), None, 1.0
    if layer.neuron_name is not None and layer.neuron is not None:
        before = _scale_before(layer.neuron_name, probe)
        if before is not None and (gain := float(1 / before.factor.abs().median())) > 1:  # a smaller factor hides spikes
            probe = run_probe(net, net_map, inputs, forward, gain=gain)
        check_neuron_alone(layer.neuron_name, probe)
    again = partial(run_probe, net, net_map, inputs, forward, gain=max(1.0, gain))
    spikes_first = _spikes_first(net_map, probe, response, signal)
    found = match_output(probe, kinds, kind, spikes_first=spikes_first, affine=response.affine, again=again)
    per_class = found.source.per_class if found.source.summed else per_class
    scores = layer.out_features // per_class
    if classes not in (None, scores):
        raise OptionError(f"classes={classes} for a net that returns {scores} scores", "a score a class", "leave classes= out")
    if per_class > 1:
        _check_population(found, response, f"{scores} classes of {per_class} outputs each")
    # The sum of an offset over time depends on the number of steps.
    readout = replace(_readout(found, response, per_class), measure=measure if found.scale is None else None)
    readout = _scaled(readout, before, found.scale)
    return _binary(readout) if layer.out_features == 1 else readout


def _scale_before(name: str, probe: Probe) -> Scale | None:
    """Return the scale between the readout layer and its neuron, None for none; refuse any other change of the current."""
    assert probe.entered is not None
    if probe.entered.shape == probe.currents.shape and torch.equal(probe.entered, probe.currents):
        return None
    scale = fit_scale(probe.currents, probe.entered)
    if scale is None:
        raise UnsupportedModuleError(
            f"something between the readout layer and its neuron {name!r} changes the current, and not by one factor and offset "
            "for each output, the same at all steps",
            "the readout layer's output as it is, or scaled as by a batch norm: no noise, clamp, softmax or second input",
            "remove it, or put it before the readout layer",
        )
    return scale


def _scaled(readout: Readout, before: Scale | None, after: Scale | None) -> Readout:
    """Add the scales before and after the output neuron; the latter is one of the layer's output if the scores are linear.

    Factors that make outputs alike are undone in the layer, as if they were scaled before a neuron of alike outputs.
    """
    if readout.factors is not None:
        before = Scale(1 / readout.factors, torch.zeros_like(readout.factors)).after(before)
    if after is None:
        return replace(readout, scale=before)
    if readout.exactness == "surrogate":
        return replace(readout, scale=before, own_scale=after)
    each = readout.per_class
    shift = (after.factor - 1) * readout.constant / each + after.offset
    as_current = Scale(after.factor, shift / (readout.bias_gain / each))
    shifted, linear = bool((shift != 0).any()), readout.exactness == "exact"
    if (shifted and (readout.per_step or not linear)) or (not linear and bool((after.factor < 0).any())):
        raise UnsupportedModuleError(
            f"an offset or a negative factor of the output neuron's values in forward, for a readout {readout.kind}",
            "values that are multiplied by positive factors alone, or one linear score a sample",
            "let forward return the mean over time in place of the maximum; if it returns all steps, pass "
            "readout='membrane_mean', or 'linear_mean' without an output neuron",
        )
    return replace(readout, scale=as_current.after(before))


def _binary(readout: Readout) -> Readout:
    """Let a single spiking output decide for class 1 if it spikes at more than half of the steps, unless forward adds an offset.

    The user's own offset stands for the number of spikes that the user's test asks for.
    """
    if not readout.of_spikes or (readout.own_scale is not None and bool((readout.own_scale.offset != 0).any())):
        return readout
    if readout.kind == "first_spike":
        found = "readout='first_spike' for a single output"
        raise OptionError(found, "a number of spikes, which decides between classes 0 and 1", "pass readout='spike_count'")
    middles = {"spike_count": len(readout.filter) / 2, CUSTOM["spike"]: sum(readout.weights) / 2}
    middles |= dict.fromkeys(("spike_rate", "spike_per_step"), 0.5)
    factor = 1.0 if readout.own_scale is None else float(readout.own_scale.factor)
    others = tuple(replace(other, middle=middles.get(other.kind, 0.0)) for other in readout.others)
    return replace(readout, middle=factor * middles[readout.kind], others=others)


def _readout(found: Match, response: OutputResponse, per_class: int) -> Readout:
    """Build the readout of a match: the filter is the response weighted by the decoding."""
    weights = step_weights(found.source.kind, len(response.rest))
    if found.source.weights:
        weights = torch.tensor(found.source.weights, dtype=torch.float64)
        if found.source.of_spikes:  # the mean of the membranes is solved, as for counts
            weights = weights / weights.abs().sum()
    kind, units = KINDS.get(found.source.kind), response.units
    exactness = "exact" if kind is None else kind.decoding.exactness
    if found.source.of_spikes or not response.affine or units is not None:
        exactness = "surrogate"
    return Readout(
        **vars(replace(found.source, per_class=per_class)),
        exactness=exactness,
        filter=per_class * (weights @ response.matrix),
        constant=per_class * float(weights @ response.rest),
        response=response,
        link=found.link,
        others=tuple(replace(other, per_class=per_class) for other in found.others),
        factors=None if units is None else units.factors(weights, spiking=found.source.of_spikes),
    )


def _check_population(found: Match, response: OutputResponse, population: str) -> None:
    """Refuse several outputs for each class if their values can't be summed."""
    if found.link == "identity" and response.units is None:
        return
    how = "an output neuron with a leak each" if response.units is not None else found.link
    needed = "spikes or membranes of alike outputs, which are summed over a class"
    fix = "return these from forward, and build the output neuron with one beta"
    raise OptionError(f"{population}, and {how}", needed, fix)


def _spikes_first(net_map: NetworkMap, probe: Probe, response: OutputResponse, signal: str | None) -> bool:
    if probe.spikes is None or not bool((probe.spikes != 0).any()):
        return False  # a threshold out of reach makes an integrator of any neuron
    if signal is not None:
        return signal == "spikes"
    neuron = net_map.readout.neuron
    return not (response.affine and neuron is not None and library_of(neuron).integrates(neuron))


def _measure(net_map: NetworkMap, device: torch.device, steps: int) -> OutputResponse:
    """Measure the output neuron over some steps; without one, the values are the currents."""
    readout = net_map.readout
    if readout.neuron is None or readout.neuron_name is None:
        return OutputResponse(torch.eye(steps, dtype=torch.float64), torch.zeros(steps, dtype=torch.float64))
    return measure_response(readout.neuron_name, readout.neuron, steps, outputs=readout.out_features, device=device)


def _fitting_kinds(net_map: NetworkMap, kind: str) -> tuple[str, ...]:
    """Return the readout kinds that fit a net with or without an output neuron, exact ones first, and refuse others asked for."""
    alone = net_map.readout.neuron is None
    fitting = tuple(name for name, entry in KINDS.items() if (entry.signal == "current") == alone)
    if kind != "auto" and kind not in fitting:
        found = f"readout={kind!r} for a net {'without' if alone else 'with'} an output neuron"
        raise OptionError(found, f"one of {', '.join(fitting)}", "pass readout='auto'")
    return fitting


def outputs_per_class(outputs: int, classes: int | None) -> int:
    """Return the number of outputs for each class; 1 if ``classes`` is None."""
    if classes is None:
        return 1
    if outputs % classes:
        fix = "leave classes= out: a single output decides between classes 0 and 1"
        if outputs > 1:
            fix = f"pass a classes= that divides {outputs}, as num_classes= of the loss; or give the readout {classes} outputs"
        found = f"{classes} classes for a readout of {outputs} outputs"
        raise OptionError(found, "a number of outputs that is a multiple of the number of classes, as in a population code", fix)
    return outputs // classes
