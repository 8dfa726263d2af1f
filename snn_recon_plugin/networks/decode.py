"""What a net returns, and the decoders that turn values over time into scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import NetworkError
from .structures import describe

__all__ = [
    "ALL_READOUTS",
    "DECODERS",
    "LINEAR_READOUTS",
    "MAX_READOUTS",
    "PER_STEP_READOUTS",
    "READOUTS",
    "SPIKE_READOUTS",
    "Decoder",
    "agree",
    "as_tensor",
    "decode",
    "output_items",
    "step_weights",
    "unknown_output",
]


@dataclass(frozen=True)
class Decoder:
    """One way to turn values over time into scores.

    Args:
        of_spikes: whether it reads the output neuron's spikes, rather than membranes or currents.
        exactness: of the scores of a neuron that never resets, ``"exact"``, ``"majorised"`` or ``"surrogate"``.
        decode: from ``[T, B, C]`` to scores ``[B, C]``, or ``[B, T, C]`` at every step.
        weights: from T to the weight ``[T]`` of each step in the linear score: that score itself, or the one solved in its place.
    """

    of_spikes: bool
    exactness: str
    decode: Callable[[Tensor], Tensor]
    weights: Callable[[int], Tensor]


def _uniform(steps: int) -> Tensor:
    return torch.full((steps,), 1.0 / steps, dtype=torch.float64)


def _each(steps: int) -> Tensor:
    return torch.ones(steps, dtype=torch.float64)


def _final(steps: int) -> Tensor:
    weights = torch.zeros(steps, dtype=torch.float64)
    weights[-1] = 1.0
    return weights


def _first_spike(spikes: Tensor) -> Tensor:
    """A neuron that never spikes counts as one that spikes at the last step, as in snntorch.functional.accuracy_temporal."""
    late = torch.arange(len(spikes), 0, -1, device=spikes.device, dtype=spikes.dtype)
    return ((spikes != 0) * late[:, None, None]).amax(0).clamp_min(1) - len(spikes)


_OF_VALUES = {
    "mean": Decoder(False, "exact", lambda values: values.mean(0), _uniform),
    "sum": Decoder(False, "exact", lambda values: values.sum(0), _each),
    "last": Decoder(False, "exact", lambda values: values[-1], _final),
    "per_step": Decoder(False, "exact", lambda values: values.movedim(0, 1), _uniform),
    "max": Decoder(False, "majorised", lambda values: values.amax(0), _final),
}
# Spikes are a step function of the readout: the mean membrane is solved in their place.
_OF_SPIKES = {
    "spike_count": Decoder(True, "surrogate", lambda spikes: spikes.sum(0), _uniform),
    "spike_rate": Decoder(True, "surrogate", lambda spikes: spikes.mean(0), _uniform),
    "first_spike": Decoder(True, "surrogate", _first_spike, _uniform),
}
DECODERS: dict[str, Decoder] = {
    f"{values}_{name}": decoder for values in ("membrane", "linear") for name, decoder in _OF_VALUES.items()
} | _OF_SPIKES

READOUTS = ("membrane_mean", "membrane_sum", "membrane_last", "membrane_per_step")
LINEAR_READOUTS = ("linear_mean", "linear_sum", "linear_last", "linear_per_step")
# Scores at every step, for a loss at every step: never taken unasked, as values over time don't say how they are trained.
PER_STEP_READOUTS = ("membrane_per_step", "linear_per_step")
MAX_READOUTS = ("membrane_max", "linear_max")
SPIKE_READOUTS = tuple(_OF_SPIKES)
ALL_READOUTS = (*READOUTS, *LINEAR_READOUTS, *MAX_READOUTS, *SPIKE_READOUTS)


def output_items(returned: Any) -> Iterator[tuple[int | str | None, Tensor]]:
    """Yield what may hold the scores: the whole output, or an item of it, lists of steps stacked.

    Args:
        returned: what the net's forward returned.

    Yields:
        The index or key of the item, None for the whole output, and its tensor.
    """
    whole = as_tensor(returned)
    if whole is not None:
        yield None, whole
    if isinstance(returned, Mapping):
        pairs: list[tuple[Any, Any]] = list(returned.items())
    elif isinstance(returned, (tuple, list)):
        pairs = list(enumerate(returned))
    else:
        return
    for index, item in pairs:
        value = as_tensor(item)
        if value is not None:
            yield index, value


def as_tensor(item: Any) -> Tensor | None:
    """Read an item of a net's output.

    Args:
        item: the item.

    Returns:
        A tensor as it is, a list of equal tensors, one a step, stacked; None for anything else.
    """
    if isinstance(item, Tensor):
        return item
    if not isinstance(item, (tuple, list)) or not item or not all(isinstance(step, Tensor) for step in item):
        return None
    equal = all(step.shape == item[0].shape for step in item)
    return torch.stack(list(item)) if equal else None


def decode(kind: str, values: Tensor) -> Tensor:
    """Turn values over time into scores.

    Args:
        kind: one of :data:`ALL_READOUTS`.
        values: ``[T, B, C]``, spikes for :data:`SPIKE_READOUTS`, membranes or currents for the others.

    Returns:
        ``[B, C]``; for :data:`PER_STEP_READOUTS` ``[B, T, C]``.  For ``"first_spike"`` the negative step of the first spike,
        -T without any.
    """
    return DECODERS[kind].decode(values)


def step_weights(kind: str, steps: int) -> Tensor:
    """Give the weight that a decoder puts on each step; for a decoder that isn't linear, that of the linear score in its place.

    Args:
        kind: as for :func:`decode`.
        steps: how many steps, T.

    Returns:
        ``[T]`` float64.  Spikes are replaced by the mean subthreshold membrane, a maximum over time by the last step, scores
        at every step by their mean.
    """
    return DECODERS[kind].weights(steps) if kind in DECODERS else _uniform(steps)


def agree(left: Tensor, right: Tensor) -> bool:
    """Say whether two tensors hold the same values up to the rounding of single precision, or of a coarser one if they are.

    Args:
        left: any tensor.
        right: the tensor whose largest magnitude sets the scale.

    Returns:
        False also where the shapes differ.
    """
    if left.shape != right.shape:
        return False
    scale = max(float(right.abs().max()), 1e-12)
    coarsest = max((torch.finfo(t.dtype).eps for t in (left, right) if t.is_floating_point()), default=0.0)
    return float((left.double() - right.double()).abs().max()) <= max(1e-4, 8 * coarsest * (coarsest > 1e-6)) * scale


def unknown_output(returned: Any, shape: torch.Size | None = None, kinds: tuple[str, ...] = READOUTS) -> NetworkError:
    """Build the error for an output that no known readout explains.

    Args:
        returned: the output.
        shape: T, B and C, where they are known.
        kinds: the readout kinds that were tried.

    Returns:
        The error, to be raised.
    """
    known = "[time, batch, classes], [batch, time, classes] or [batch, classes]"
    if shape is not None:
        steps, batch, classes = shape
        known = f"[{steps}, {batch}, {classes}] or [{batch}, {steps}, {classes}] over time, or [{batch}, {classes}]"
    return NetworkError(
        f"a net that returns {describe(returned)}, whose values are none of {', '.join(kinds)} of the output layer",
        f"the output layer's membranes or currents over time, or their mean, sum or last step: {known}; nothing but the "
        "output neuron may change the layer's output before that, so no LSTM, normalisation or scaling",
        "return the recorded membranes from forward, or scores decoded from them, raw or as log_softmax(scores, dim=1) but "
        "not as softmax, or say how scores follow from the output by a function scores(output); a net with its time loop "
        "inside takes no over_time",
    )
