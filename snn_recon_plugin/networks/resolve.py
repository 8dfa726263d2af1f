"""Resolve the readout: measure on the net how its scores follow from the readout layer's currents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NetworkError, OptionError, UnsupportedModuleError
from .decode import DECODERS, PER_STEP_READOUTS, step_weights
from .filters import Response, measure_response, measure_subthreshold
from .forward import Forward
from .layers import NetworkMap
from .libraries import library_of
from .locate import Found, kinds_for, locate, locate_by_function
from .output_filters import filters_of
from .output_probe import Probe, check_alone, run_probe
from .population import outputs_per_class
from .readout import Readout, Source
from .structures import describe

__all__ = ["resolve_readout"]


def resolve_readout(
    net: nn.Module,
    net_map: NetworkMap,
    inputs: Any,
    forward: Forward,
    kind: str = "auto",
    *,
    allow: Sequence[str] = ("exact",),
    scores: Callable[[Any], Tensor] | None = None,
    prefer: str | None = None,
    classes: int | None = None,
) -> Readout:
    """Find the filter that turns readout currents into the net's own scores, by measurement on the net.

    Random currents take the place of the readout's output for one pass, so that the decision depends neither on the
    weights nor on whether the hidden layers spike; what the net returns is then compared with each known readout.  Where
    it returns spikes, "auto" takes their count, unless the output neuron was built as an integrator, ``reset_mechanism="none"``,
    and membranes are returned as well; of membranes over time it takes the mean.  Scores at every step are taken only where they
    are asked for.

    Args:
        net: the net; left as found.
        net_map: its map.
        inputs: one batch of inputs; a few samples will do.
        forward: how the net is called.
        kind: ``"auto"``, or the readout to use.
        allow: which of :data:`EXACTNESS` the caller can handle.
        scores: the user's function from the net's output to scores ``[B, C]``, for outputs that no known readout explains.
        prefer: ``"spikes"`` or ``"membranes"``, what the training loss takes where the net returns both; None leaves it to the
            output neuron.
        classes: how many classes the outputs stand for, where several of them stand for one; None for one each.

    Returns:
        The readout.

    Raises:
        CaptureError: if a pass doesn't reach the readout as the map says.
        NetworkError: if no known readout gives the net's output, or several do.
        OptionError: if ``kind`` is unknown, or doesn't fit a net with or without an output neuron.
        UnsupportedModuleError: if the readout isn't of an allowed exactness, the output neuron can't be simulated alone, or
            something stands before it.
    """
    kinds, per_class = kinds_for(net_map, kind, allow), outputs_per_class(net_map.readout.out_features, classes)
    probe = run_probe(net, net_map, inputs, forward)
    measure = partial(_response, net_map, net_map.readout.out_features, probe.values.device, allow)
    response = measure(len(probe.values))
    if net_map.readout.neuron_name is not None and net_map.readout.neuron is not None:
        check_alone(net_map.readout.neuron_name, net_map.readout.neuron, probe)
    if kind in PER_STEP_READOUTS and not response.affine:
        raise UnsupportedModuleError(
            f"readout={kind!r} for the output neuron {net_map.readout.neuron_name!r}, whose membrane resets",
            "a membrane that is affine in its input current at every step",
            "pass readout='membrane_mean', or construct the neuron with reset_mechanism='none'",
        )
    again = partial(run_probe, net, net_map, inputs, forward)
    if scores is not None:
        function = _Checked(scores, net_map.readout.out_features)
        found = locate_by_function(probe, kinds, kind, function, affine=response.affine, again=again)
    else:
        spikes_first = _spikes_first(net_map, probe, response, prefer)
        found = locate(probe, kinds, kind, spikes_first=spikes_first, again=again)
    exactness = _exactness(found, response)
    if exactness not in allow:
        raise UnsupportedModuleError(
            f"a readout {found.kind}, which is {exactness}",
            f"one that is {' or '.join(allow)}",
            "pass another one by readout= or scores=",
        )
    weights = step_weights(found.kind, len(probe.values)) if found.weights is None else found.weights
    filters = None if response.units is None else filters_of(found.kind, weights, response.units)
    if per_class > 1 and (scores is not None or found.link != "identity" or filters is not None):
        what = "scores=" if scores is not None else found.link if filters is None else "an output neuron with a leak each"
        raise OptionError(
            f"{classes} classes of {per_class} outputs each, and {what}",
            "spikes or membranes of alike outputs, which are summed over a class",
            "return these from forward, leave scores= out, and build the output neuron with one beta",
        )
    filter_ = per_class * (weights @ response.matrix) if filters is None else filters.filters[filters.index].mean(0)
    return Readout(
        kind=found.kind,
        exactness=exactness,
        filter=filter_,
        bias_gain=float(filter_.sum()),
        constant=per_class * float(weights @ response.rest) if filters is None else float(filters.constants.mean()),
        output_index=found.index,
        time_dim=found.time_dim,
        response=response,
        function=None if scores is None else _Checked(scores, net_map.readout.out_features),
        link=found.link,
        imitation=found.imitation,
        others=tuple(Source(other.kind, other.index, other.time_dim, per_class) for other in found.others),
        per_class=per_class,
        filters=filters,
        measure=measure,
    )


def _spikes_first(net_map: NetworkMap, probe: Probe, response: Response, prefer: str | None) -> bool:
    """Return whether spikes decide where the net returns spikes and membranes."""
    if probe.spikes is None or not bool((probe.spikes != 0).any()):
        return False  # a threshold out of reach makes an integrator of any neuron
    if prefer is not None:
        return prefer == "spikes"
    neuron = net_map.readout.neuron
    return not (response.affine and neuron is not None and library_of(neuron).integrates(neuron))


def _response(net_map: NetworkMap, outputs: int, device: torch.device, allow: Sequence[str], steps: int) -> Response:
    """Measure the output neuron over some steps; without one, currents are what is read."""
    name, neuron = net_map.readout.neuron_name, net_map.readout.neuron
    if neuron is None or name is None:
        return Response(torch.eye(steps, dtype=torch.float64), torch.zeros(steps, dtype=torch.float64))
    try:
        return measure_response(name, neuron, steps, outputs, device)
    except UnsupportedModuleError:
        if "surrogate" not in allow:
            raise
        return measure_subthreshold(name, neuron, steps, outputs, device)


def _exactness(found: Found, response: Response) -> str:
    if not response.affine:
        return "surrogate"
    if found.kind == "custom":
        return "surrogate" if found.weights is None else "exact"
    return DECODERS[found.kind].exactness


@dataclass(frozen=True)
class _Checked:
    """A user's function from outputs to scores, whose result is checked."""

    function: Callable[[Any], Tensor]
    classes: int

    def __call__(self, outputs: Any) -> Tensor:
        try:
            scores = self.function(outputs)
        except Exception as error:
            raise NetworkError(
                f"scores(output) raised {type(error).__name__}: {error}, for an output that is {describe(outputs)}",
                "a function from what forward returns to scores",
                "pass scores=lambda output: ... for an output of this kind",
            ) from error
        if isinstance(scores, Tensor) and not bool(torch.isfinite(scores).all()):
            raise NetworkError(
                "scores(output) that are NaN or infinite, for an output of the net",
                "finite scores, also where no neuron spikes",
                "let scores(output) divide by nothing that may be 0 and take no logarithm of 0, or use torch.nan_to_num",
            )
        if isinstance(scores, Tensor) and scores.ndim == 2 and scores.shape[1] == self.classes:
            return scores
        raise NetworkError(
            f"scores of shape {list(scores.shape)}" if isinstance(scores, Tensor) else f"scores of type {type(scores).__name__}",
            f"a tensor [batch, {self.classes}]",
            "let scores(output) return one score for each sample and output",
        )
