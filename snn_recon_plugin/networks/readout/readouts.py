"""Readout kinds: how scores follow from the output layer's values over time.  A new kind is one entry of :data:`KINDS`.

In a population code, neighbouring outputs belong to one class, whose score is the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import NetworkError
from ..calls.batches import describe

CUSTOM = "custom"  # the kind of scores that are another weighted sum over time


@dataclass(frozen=True)
class Decoding:
    """A way to turn values over time into scores."""

    name: str  # by which a training loss prescribes it
    decode: Callable[[Tensor], Tensor]  # from [T, B, C] to scores [B, C], or [B, T, C] at every step
    weights: Callable[[int], Tensor]  # from T to the steps' weights in the linear score, [T] float64; not linear: in the one solved
    # For a neuron that never resets: linear scores; the maximum over time of such; or those of a spiking output neuron, whose
    # decisions follow the linear score only after weight and bias are scaled and shifted.
    exactness: Literal["exact", "majorised", "surrogate"] = "exact"
    single_step: bool = False  # each score is the value at one step, so that a log_softmax over classes may come before
    per_step: bool = False  # there are scores at every step


@dataclass(frozen=True)
class ReadoutKind:
    """A decoding of membranes or spikes of the output neuron, or of currents of a net without one."""

    name: str  # as a user types it
    signal: Literal["membrane", "current", "spike"]
    decoding: Decoding

    def decoded_by(self, decoding: str) -> ReadoutKind:
        """Return the kind that decodes the same signal in another way, such as ``"max"``."""
        return next(kind for kind in KINDS.values() if kind.signal == self.signal and kind.decoding.name == decoding)


def _uniform(steps: int) -> Tensor:
    return torch.full((steps,), 1.0 / steps, dtype=torch.float64)


def _final(steps: int) -> Tensor:
    weights = torch.zeros(steps, dtype=torch.float64)
    weights[-1] = 1.0
    return weights


def _first_spike(spikes: Tensor) -> Tensor:
    """Return minus the step of the first spike; without any minus the last step."""
    late = torch.arange(len(spikes), 0, -1, device=spikes.device, dtype=spikes.dtype)
    return ((spikes != 0) * late[:, None, None]).amax(0).clamp_min(1) - len(spikes)


_MEAN = Decoding("mean", lambda values: values.mean(0), _uniform)
_SUM = Decoding("sum", lambda values: values.sum(0), partial(torch.ones, dtype=torch.float64))
_LAST = Decoding("last", lambda values: values[-1], _final, single_step=True)
_PER_STEP = Decoding("per_step", lambda values: values.movedim(0, 1), _uniform, single_step=True, per_step=True)
# The mean over time is solved, and then refined: where inputs change, the last step is far from the largest value.
_MAX = Decoding("max", lambda values: values.amax(0), _uniform, "majorised")
# Spikes are a step function of the readout: the mean membrane is solved instead.
_COUNT = Decoding("count", lambda spikes: spikes.sum(0), _uniform, "surrogate")
_RATE = Decoding("rate", lambda spikes: spikes.mean(0), _uniform, "surrogate")
_FIRST = Decoding("first", _first_spike, _uniform, "surrogate")

# The kinds in the order in which they are tried.  Those at every step are taken only on request: values over time don't show
# how they are trained.
KINDS: dict[str, ReadoutKind] = {
    kind.name: kind
    for kind in (
        ReadoutKind("membrane_mean", "membrane", _MEAN),
        ReadoutKind("membrane_sum", "membrane", _SUM),
        ReadoutKind("membrane_last", "membrane", _LAST),
        ReadoutKind("membrane_per_step", "membrane", _PER_STEP),
        ReadoutKind("linear_mean", "current", _MEAN),
        ReadoutKind("linear_sum", "current", _SUM),
        ReadoutKind("linear_last", "current", _LAST),
        ReadoutKind("linear_per_step", "current", _PER_STEP),
        ReadoutKind("membrane_max", "membrane", _MAX),
        ReadoutKind("linear_max", "current", _MAX),
        ReadoutKind("spike_count", "spike", _COUNT),
        ReadoutKind("spike_rate", "spike", _RATE),
        ReadoutKind("first_spike", "spike", _FIRST),
    )
}
ALL_READOUTS = tuple(KINDS)
SPIKE_READOUTS = tuple(kind.name for kind in KINDS.values() if kind.signal == "spike")


def step_weights(kind: str, steps: int) -> Tensor:
    """Return the weight of each step in the linear score of a kind, ``[T]`` float64; uniform for ``"custom"``."""
    return KINDS[kind].decoding.weights(steps) if kind in KINDS else _uniform(steps)


def decode_valid(decoding: Decoding, values: Tensor, lengths: Tensor | None) -> Tensor:
    """Decode values ``[T, B, C]`` of the first ``lengths`` ``[B]`` steps of each sample; None stands for all steps."""
    if lengths is None or decoding.per_step:
        return decoding.decode(values)
    scores = values.new_empty(values.shape[1:])
    for steps in torch.unique(lengths).tolist():
        scores[lengths == steps] = decoding.decode(values[:steps, lengths == steps])
    return scores


def block_sum(values: Tensor, per_class: int) -> Tensor:
    """Sum the values of each class's outputs, ``[*, C]`` to ``[*, K]``."""
    return values if per_class == 1 else values.reshape(*values.shape[:-1], -1, per_class).sum(-1)


def block_mean(rows: Tensor, per_class: int, dim: int = 0) -> Tensor:
    """Average over each class's outputs along an axis, for example the rows of a weight, ``[C, P]`` to ``[K, P]``."""
    if per_class == 1:
        return rows
    blocks = rows.movedim(dim, -1)
    return blocks.reshape(*blocks.shape[:-1], -1, per_class).mean(-1).movedim(-1, dim)


def rows_of_outputs(rows: Tensor, per_class: int, own: Tensor, share: float) -> Tensor:
    """Give each output the row of its class plus a share of its present difference from the other outputs of the class.

    Outputs with the same weights would spike alike, and stay so in training.  The differences sum to zero in each class, so that
    linear scores do not change.  Hidden neurons that no class uses stay unused.

    Args:
        rows: ``[K, P]``, of the classes.
        per_class: number of outputs for each class.
        own: ``[C, P]``, the present rows of the outputs.
        share: size of the differences relative to the rows (root mean square).
    """
    if per_class == 1:
        return rows
    own = own.to(rows)
    differences = own - block_mean(own, per_class).repeat_interleave(per_class, 0)
    differences = differences * (rows != 0).any(0)
    size = float(differences.square().mean())
    factor = share * (float(rows.square().mean()) / size) ** 0.5 if size > 0 else 0.0
    return rows.repeat_interleave(per_class, 0) + factor * differences


def parts_of(returned: Any) -> dict[int | str | None, Any]:
    """Return the parts of a net's output by index or key, with the whole output under None."""
    parts = returned if isinstance(returned, Mapping) else dict(enumerate(returned)) if isinstance(returned, (tuple, list)) else {}
    return {None: returned, **parts}


def output_items(returned: Any) -> Iterator[tuple[int | str | None, Tensor]]:
    """Yield each part of a net's output that may hold the scores: its index or key, None for the whole, and its tensor."""
    for index, item in parts_of(returned).items():
        value = as_tensor(item)
        if value is not None:
            yield index, value


def as_tensor(item: Any) -> Tensor | None:
    """Return a tensor as it is, scores ``[B]`` of one output as ``[B, 1]``, and a list of equal tensors, one a step, stacked.

    None for anything else.
    """
    if isinstance(item, Tensor):
        return item[:, None] if item.ndim == 1 else item
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
    return float((left.double() - right.double()).abs().max()) <= max(1e-4, 8 * coarsest) * scale


def unknown_output(returned: Any, kinds: Sequence[str], shape: torch.Size | None = None) -> NetworkError:
    """Build the error for an output that none of some readout kinds explains; ``shape`` is T, B and C, if they are known."""
    known, of = "[time, batch, classes], [batch, time, classes] or [batch, classes]", ""
    if shape is not None:
        steps, batch, classes = shape
        of = f" for {batch} samples"
        known = f"[{steps}, batch, {classes}] or [batch, {steps}, {classes}] over time, or [batch, {classes}]"
    return NetworkError(
        f"a net that returns {describe(returned)}{of}, whose values are none of {', '.join(kinds)} of the output layer",
        f"the output layer's membranes or currents over time, or their mean, sum or last step: {known}; besides the output "
        "neuron, one factor and one offset an output may change them, as a batch norm does, but no LSTM, softmax or noise",
        "return the recorded membranes from forward, or scores decoded from them, raw or as log_softmax(scores, dim=1) but "
        "not as softmax; scores at the end of each padded sequence need unpack=lambda batch: (input, target, lengths); of another "
        "output take the scores by forward=lambda net, x: net(x).logits, or net(x)[...]",
    )
