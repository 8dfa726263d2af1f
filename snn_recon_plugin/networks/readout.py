"""The readout: how a net's scores follow from the currents of its readout layer, as one temporal filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NetworkError, OptionError, UnsupportedModuleError
from .decode import LINEAR_READOUTS, READOUTS, agree, as_tensor, decode, output_items, step_weights, unknown_output
from .filters import measure_response
from .forward import Forward
from .layers import NetworkMap
from .output_probe import Probe, check_alone, run_probe

__all__ = ["Readout", "resolve_readout"]


@dataclass(frozen=True, eq=False)
class Readout:
    """Scores as a function of the readout layer's currents: ``score = sum_t filter[t] * current[t] + constant``.

    With currents ``W s[t] + b`` that is ``W phi + bias_gain * b + constant``, ``phi = sum_t filter[t] s[t]``.

    Args:
        kind: one of :data:`READOUTS`, or of :data:`LINEAR_READOUTS` where no output neuron follows.
        exactness: ``"exact"``: the scores are affine in the readout's weight and bias.
        filter: ``[T]`` float64 on the CPU, change of the score for a unit current at each step.
        bias_gain: the filter's sum.
        constant: the score without any current.
        output_index: which item of the net's output holds the scores or membranes; None for all of it.
        time_dim: the time axis of that item where it has one.
    """

    kind: str
    exactness: str
    filter: Tensor
    bias_gain: float
    constant: float
    output_index: int | str | None
    time_dim: int = 0

    def scores(self, outputs: Any) -> Tensor:
        """Decode what the net's forward returned.

        Args:
            outputs: the net's output on one batch, of the structure seen when the readout was resolved.

        Returns:
            ``[B, C]``, the net's own scores.

        Raises:
            NetworkError: if the output has another structure now.
        """
        item = outputs if self.output_index is None else outputs[self.output_index]
        value = as_tensor(item)
        if value is not None and value.ndim == 3:
            return decode(self.kind, value.movedim(self.time_dim, 0))
        if value is not None and value.ndim == 2:
            return value
        raise unknown_output(outputs)


def resolve_readout(net: nn.Module, net_map: NetworkMap, inputs: Any, forward: Forward, kind: str = "auto") -> Readout:
    """Find the filter that turns readout currents into the net's own scores, by measurement on the net.

    Random currents take the place of the readout's output for one pass, so that the decision depends neither on the
    weights nor on whether the hidden layers spike; what the net returns is then compared with each known readout.

    Args:
        net: the net; left as found.
        net_map: its map.
        inputs: one batch of inputs.
        forward: how the net is called.
        kind: ``"auto"``, or the readout to use.

    Returns:
        The readout.

    Raises:
        CaptureError: if a pass doesn't reach the readout as the map says.
        NetworkError: if no known readout gives the net's output, or several do.
        OptionError: if ``kind`` is unknown, or doesn't fit a net with or without an output neuron.
        UnsupportedModuleError: if the output neuron resets, differs from unit to unit, or something stands before it.
    """
    kinds = _kinds(net_map, kind)
    probe = run_probe(net, net_map, inputs, forward)
    name, neuron = net_map.readout.neuron_name, net_map.readout.neuron
    steps, _, outputs = probe.values.shape
    if neuron is None or name is None:
        matrix, rest = torch.eye(steps, dtype=torch.float64), torch.zeros(steps, dtype=torch.float64)
    else:
        response = measure_response(name, neuron, steps, outputs, probe.values.device)
        matrix, rest = response.matrix, response.rest
        check_alone(name, probe)
    found = _locate(probe, kinds, kind)
    weights = step_weights(found.kind, steps)
    filter_ = weights @ matrix
    return Readout(
        kind=found.kind,
        exactness="exact",
        filter=filter_,
        bias_gain=float(filter_.sum()),
        constant=float(weights @ rest),
        output_index=found.index,
        time_dim=found.time_dim,
    )


def _kinds(net_map: NetworkMap, kind: str) -> tuple[str, ...]:
    """Give the kinds that fit the net, after checking the one asked for."""
    fitting = LINEAR_READOUTS if net_map.readout.neuron is None else READOUTS
    if kind == "auto" or kind in fitting:
        return fitting
    if kind in (*READOUTS, *LINEAR_READOUTS):
        what = "without an output neuron" if net_map.readout.neuron is None else "with an output neuron"
        raise OptionError(f"readout={kind!r} for a net {what}", f"one of {', '.join(fitting)}", "pass readout='auto'")
    raise OptionError(f"readout={kind!r}", f"one of auto, {', '.join((*READOUTS, *LINEAR_READOUTS))}", "pass readout='auto'")


@dataclass(frozen=True)
class _Found:
    kind: str
    index: int | str | None
    time_dim: int = 0


def _locate(probe: Probe, kinds: tuple[str, ...], wanted: str) -> _Found:
    """Find the item of the net's output that holds membranes over time, or decoded scores."""
    items = list(output_items(probe.returned))
    for index, value in items:
        for time_dim in (0, 1):
            if value.ndim == 3 and agree(value.movedim(time_dim, 0), probe.values):
                return _Found(kinds[0] if wanted == "auto" else wanted, index, time_dim)
    decoded = {kind: decode(kind, probe.values) for kind in kinds}
    fits = [_Found(kind, index) for kind in kinds for index, value in items if agree(value, decoded[kind])]
    if not fits:
        _refuse_spikes(probe, items)
        raise unknown_output(probe.returned, probe.values.shape, kinds)
    return _pick(fits, wanted, steps=len(probe.values))


def _pick(fits: list[_Found], wanted: str, steps: int) -> _Found:
    """Pick among the readouts that give decoded scores of the net."""
    fitting = list(dict.fromkeys(found.kind for found in fits))
    if wanted != "auto":
        for found in fits:
            if found.kind == wanted:
                return found
        raise OptionError(
            f"readout={wanted!r} for a net that returns {' and '.join(fitting)}",
            "a readout that the net returns",
            "pass readout='auto'",
        )
    # Over a single step all of them are the same.
    if len(fitting) > 1 and steps > 1:
        raise NetworkError(f"an output that agrees with {' and '.join(fitting)}", "one of them", f"pass readout={fitting[0]!r}")
    return fits[0]


def _refuse_spikes(probe: Probe, items: list[tuple[int | str | None, Tensor]]) -> None:
    """Say so where the net returns its output neuron's spikes rather than its membrane."""
    if probe.spikes is None:
        return
    forms = [probe.spikes, probe.spikes.movedim(0, 1), probe.spikes.sum(0), probe.spikes.mean(0)]
    if any(agree(value, form) for _, value in items for form in forms):
        raise UnsupportedModuleError(
            "a net that returns its output neuron's spikes, which are a step function of the readout",
            "the output neuron's membrane (spiking outputs are not handled yet)",
            "return the membrane as well, e.g. output=True on the output neuron, or return spk, mem from forward",
        )
