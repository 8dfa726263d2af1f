"""Readout kinds: how scores follow from the output layer's values over time.  A new kind is one entry of :data:`KINDS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ..errors import NetworkError
from .batches import describe

__all__ = [
    "ALL_READOUTS",
    "CUSTOM",
    "EXACTNESS",
    "KINDS",
    "SPIKE_READOUTS",
    "Decoding",
    "ReadoutKind",
    "as_tensor",
    "output_items",
    "same_values",
    "step_weights",
    "unknown_output",
]

Signal: TypeAlias = Literal["membrane", "current", "spike"]

EXACTNESS = ("exact", "majorised", "surrogate")
CUSTOM = "custom"  # the kind of scores of a user's function that no other kind gives


@dataclass(frozen=True)
class Decoding:
    """A way to turn values over time into scores.

    Args:
        name: the name by which a training loss prescribes it.
        decode: from ``[T, B, C]`` to scores ``[B, C]``, or ``[B, T, C]`` at every step.
        weights: from T to the weight of each step in the linear score, ``[T]`` float64.  If decoding is not linear, this is the
            linear score that is solved instead.
        single_step: whether each score is the value at one step, so that a ``log_softmax`` over classes may come before.
    """

    name: str
    decode: Callable[[Tensor], Tensor]
    weights: Callable[[int], Tensor]
    single_step: bool = False


@dataclass(frozen=True)
class ReadoutKind:
    """One kind of readout.

    Args:
        name: its name, as a user types it.
        signal: the values it decodes: membranes or spikes of the output neuron, or currents of a net without one.
        decoding: how it decodes them.
        exactness: for a neuron that never resets: ``"exact"`` if the scores are linear in the currents, ``"majorised"`` if they
            are a maximum of such, ``"surrogate"`` if they are spikes.
        per_step: whether there are scores at every step.
    """

    name: str
    signal: Signal
    decoding: Decoding
    exactness: Literal["exact", "majorised", "surrogate"] = "exact"
    per_step: bool = False

    def decode(self, values: Tensor) -> Tensor:
        """Turn values ``[T, B, C]`` into scores ``[B, C]``, or ``[B, T, C]`` at every step."""
        return self.decoding.decode(values)

    def decoded_by(self, decoding: str) -> ReadoutKind:
        """Return the kind that decodes the same signal in another way, such as ``"max"``."""
        return next(kind for kind in KINDS.values() if kind.signal == self.signal and kind.decoding.name == decoding)


def _uniform(steps: int) -> Tensor:
    return torch.full((steps,), 1.0 / steps, dtype=torch.float64)


def _each(steps: int) -> Tensor:
    return torch.ones(steps, dtype=torch.float64)


def _final(steps: int) -> Tensor:
    weights = torch.zeros(steps, dtype=torch.float64)
    weights[-1] = 1.0
    return weights


def _first_spike(spikes: Tensor) -> Tensor:
    """Return minus the step of the first spike; without any minus the last step, as snntorch.functional.accuracy_temporal does."""
    late = torch.arange(len(spikes), 0, -1, device=spikes.device, dtype=spikes.dtype)
    return ((spikes != 0) * late[:, None, None]).amax(0).clamp_min(1) - len(spikes)


_MEAN = Decoding("mean", lambda values: values.mean(0), _uniform)
_SUM = Decoding("sum", lambda values: values.sum(0), _each)
_LAST = Decoding("last", lambda values: values[-1], _final, single_step=True)
_PER_STEP = Decoding("per_step", lambda values: values.movedim(0, 1), _uniform, single_step=True)
_MAX = Decoding("max", lambda values: values.amax(0), _final)
# Spikes are a step function of the readout: the mean membrane is solved instead.
_COUNT = Decoding("count", lambda spikes: spikes.sum(0), _uniform)
_RATE = Decoding("rate", lambda spikes: spikes.mean(0), _uniform)
_FIRST = Decoding("first", _first_spike, _uniform)

# The kinds in the order in which they are tried.  Those at every step are taken only on request: values over time don't show
# how they are trained.
KINDS: dict[str, ReadoutKind] = {
    kind.name: kind
    for kind in (
        ReadoutKind("membrane_mean", "membrane", _MEAN),
        ReadoutKind("membrane_sum", "membrane", _SUM),
        ReadoutKind("membrane_last", "membrane", _LAST),
        ReadoutKind("membrane_per_step", "membrane", _PER_STEP, per_step=True),
        ReadoutKind("linear_mean", "current", _MEAN),
        ReadoutKind("linear_sum", "current", _SUM),
        ReadoutKind("linear_last", "current", _LAST),
        ReadoutKind("linear_per_step", "current", _PER_STEP, per_step=True),
        ReadoutKind("membrane_max", "membrane", _MAX, "majorised"),
        ReadoutKind("linear_max", "current", _MAX, "majorised"),
        ReadoutKind("spike_count", "spike", _COUNT, "surrogate"),
        ReadoutKind("spike_rate", "spike", _RATE, "surrogate"),
        ReadoutKind("first_spike", "spike", _FIRST, "surrogate"),
    )
}
ALL_READOUTS = tuple(KINDS)
SPIKE_READOUTS = tuple(kind.name for kind in KINDS.values() if kind.signal == "spike")


def step_weights(kind: str, steps: int) -> Tensor:
    """Return the weight of each step in the linear score of a kind, ``[T]`` float64; uniform for ``"custom"``."""
    return KINDS[kind].decoding.weights(steps) if kind in KINDS else _uniform(steps)


def output_items(returned: Any) -> Iterator[tuple[int | str | None, Tensor]]:
    """Yield each part of a net's output that may hold the scores: its index or key, None for the whole, and its tensor."""
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
    """Return a tensor as it is, and a list of equal tensors, one a step, stacked; None for anything else."""
    if isinstance(item, Tensor):
        return item
    if not isinstance(item, (tuple, list)) or not item or not all(isinstance(step, Tensor) for step in item):
        return None
    equal = all(step.shape == item[0].shape for step in item)
    return torch.stack(list(item)) if equal else None


def same_values(left: Tensor, right: Tensor) -> bool:
    """Return whether two tensors agree up to the rounding of single precision, or of a coarser one if they have it.

    The largest magnitude of ``right`` sets the scale.  Tensors of different shapes never agree.
    """
    if left.shape != right.shape:
        return False
    scale = max(float(right.abs().max()), 1e-12)
    coarsest = max((torch.finfo(t.dtype).eps for t in (left, right) if t.is_floating_point()), default=0.0)
    return float((left.double() - right.double()).abs().max()) <= max(1e-4, 8 * coarsest * (coarsest > 1e-6)) * scale


def unknown_output(returned: Any, kinds: Sequence[str], shape: torch.Size | None = None) -> NetworkError:
    """Build the error for an output that none of some readout kinds explains.

    Args:
        returned: the output.
        kinds: the kinds that were tried.
        shape: T, B and C, if they are known.
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
