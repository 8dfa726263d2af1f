"""The readout: how a net's scores follow from its output layer's values over time, and from the currents of its readout layer.

A new kind of readout is one entry of :data:`KINDS`.  In a population code, neighbouring outputs belong to one class, whose score is
the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import PASS_STEP, CaptureError, DataError, NetworkError
from ..calls.batches import describe
from .filters import OutputResponse, Scale

# The kinds of scores that are another weighted sum over time: of membranes or currents, and of spikes.
CUSTOM = {"value": "custom", "spike": "custom_spikes"}


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


def _first_spike(spikes: Tensor) -> Tensor:
    """Return minus the step of the first spike; without any minus the last step."""
    late = torch.arange(len(spikes), 0, -1, device=spikes.device, dtype=spikes.dtype)
    return ((spikes != 0) * late[:, None, None]).amax(0).clamp_min(1) - len(spikes)


_MEAN = Decoding("mean", lambda values: values.mean(0), _uniform)
_SUM = Decoding("sum", lambda values: values.sum(0), partial(torch.ones, dtype=torch.float64))
_LAST = Decoding("last", lambda values: values[-1], lambda steps: torch.eye(steps, dtype=torch.float64)[-1], single_step=True)
_PER_STEP = Decoding("per_step", lambda values: values.movedim(0, 1), _uniform, single_step=True, per_step=True)
# The mean over time is solved, and then refined: where inputs change, the last step is far from the largest value.
_MAX = Decoding("max", lambda values: values.amax(0), _uniform, "majorised")
# Spikes are a step function of the readout: the mean membrane is solved instead.
_COUNT = Decoding("count", lambda spikes: spikes.sum(0), _uniform, "surrogate")
_RATE = Decoding("rate", lambda spikes: spikes.mean(0), _uniform, "surrogate")
_FIRST = Decoding("first", _first_spike, _uniform, "surrogate")
_EACH = replace(_PER_STEP, exactness="surrogate")

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
        ReadoutKind("spike_per_step", "spike", _EACH),
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


def rows_of_outputs(rows: Tensor, per_class: int, own: Tensor, *, share: float) -> Tensor:
    """Give each output the row of its class plus a share of its present difference from the other outputs of the class.

    Outputs with the same weights would spike alike, and stay so in training.  The differences sum to zero in each class, so that
    linear scores do not change.  Hidden neurons that no class uses stay unused.  ``rows`` are ``[K, P]``, the present ones ``own``
    ``[C, P]``; ``share`` is the size of the differences relative to the rows (root mean square).
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
    """Return a tensor, scores ``[B]`` as ``[B, 1]``, or a list of equal tensors, one a step, stacked; None for others."""
    if isinstance(item, Tensor):
        return item[:, None] if item.ndim == 1 else item
    if not isinstance(item, (tuple, list)) or not item or not all(isinstance(step, Tensor) for step in item):
        return None
    equal = all(step.shape == item[0].shape for step in item)
    return torch.stack(list(item)) if equal else None


def unknown_output(returned: Any, kinds: Sequence[str]) -> NetworkError:
    """Build the error for an output that none of some readout kinds explains."""
    return NetworkError(
        f"a net that returns {describe(returned)}, whose values are none of {', '.join(kinds)} of the output layer",
        "the output layer's spikes, membranes or currents over time, [time, batch, classes] or [batch, time, classes], or scores "
        "[batch, classes] that are a weighted sum of them; besides the output neuron, one factor and one offset an output may "
        "change them, as a batch norm does, or a mean of neighbouring outputs, but no LSTM, softmax, clamp or noise; of dueling "
        "heads V + A - mean(A) return A, which decides alike",
        f"if your loss gets other values than the net returns, {PASS_STEP}; else return the recorded membranes, or scores decoded "
        "from them, raw or as log_softmax(scores, dim=1)",
    )


@dataclass(frozen=True)
class Source:
    """An item of the net's output, and how to decode scores from it."""

    kind: str  # one of ALL_READOUTS, or of CUSTOM
    index: int | str | None  # index or key of the item that holds scores, membranes or spikes; None for the whole output
    time_dim: int = 0  # time axis of the item if it has one
    per_class: int = 1  # number of outputs whose values are summed to the score of a class
    padded: bool = False  # scores are of the steps of each sample before its padding
    middle: float = 0.0  # of a single spiking output: its value above which it decides for class 1, subtracted from the score
    weights: tuple[float, ...] = ()  # of the steps, for a kind of CUSTOM
    summed: bool = False  # the net itself sums the outputs of a class, or takes their mean

    @property
    def of_spikes(self) -> bool:
        """True for scores decoded from the output neuron's spikes."""
        return self.kind in (*SPIKE_READOUTS, CUSTOM["spike"])

    @property
    def per_score(self) -> int:
        """Number of values in the item that are summed to the score of a class."""
        return 1 if self.summed else self.per_class

    def decode(self, values: Tensor) -> Tensor:
        """Decode values of the outputs over time, ``[T, m, C]``, into ``[m, C]``, or ``[m, T, C]`` at every step."""
        if self.weights:
            return torch.einsum("t,tmc->mc", values.new_tensor(self.weights), values)
        return KINDS[self.kind].decoding.decode(values)

    def scores(self, outputs: Any, lengths: Tensor | None = None) -> Tensor:
        """Decode the output of the net's forward into ``[B, K]`` for K classes, or ``[B, T, K]`` at every step.

        ``lengths`` ``[B]`` are those of padded sequences.  An output of another structure than the resolved one is refused.
        """
        value, kind = as_tensor(parts_of(outputs).get(self.index)), KINDS.get(self.kind)
        if value is not None and value.ndim == 3 and kind is not None:
            over_time = value.movedim(self.time_dim, 0)
            decoded = decode_valid(kind.decoding, over_time, lengths if self.padded else None)
            return block_sum(decoded, self.per_score) - self.middle
        if value is not None and value.ndim == 2 and not (kind is not None and kind.decoding.per_step):
            return block_sum(value, self.per_score) - self.middle
        raise unknown_output(outputs, (self.kind,))

    def __str__(self) -> str:
        """Return a description such as "spike count of output[0]"."""
        kind = self.kind.replace("_", " ")
        if self.weights:
            used = [step for step, weight in enumerate(self.weights, 1) if weight != 0]
            kind = f"weighted sum over time (steps {used[0]} to {used[-1]})"
        text = f"{kind} of {'the output' if self.index is None else f'output[{self.index!r}]'}"
        text += f", summed over {self.per_class} outputs a class" if self.per_class > 1 else ""
        return text + (f", class 1 above {self.middle:g}" if self.middle else "")


@dataclass(frozen=True, eq=False, kw_only=True)
class Readout(Source):
    """Scores as a function of the readout layer's currents: ``score = sum_t filter[t] * current[t] + constant``.

    If the net's own scores are not linear, this is the linear score that is solved instead.  Scores at every step have a filter
    for each step, the rows of :attr:`matrix`; filter and constant then belong to their mean.  With several outputs a class these
    belong to the sum of their scores, for the mean of their weights.  A final ``log_softmax`` is left out, see :meth:`linked`.
    """

    exactness: str  # "exact", "majorised" or "surrogate", see Decoding
    filter: Tensor  # [T] float64 on the CPU, change of the linear score for a unit current
    constant: float  # the linear score without any current
    response: OutputResponse = field(repr=False)  # of the output neuron; the filter is a weighted sum of its rows
    link: str = "identity"  # last operation of the net on the scores, or "log_softmax" over the classes
    others: tuple[Source, ...] = ()  # other items of the net's output, by which a user may decide
    factors: Tensor | None = None  # [C] float64, of currents of outputs that differ, as by a leak each, which scores leave out
    scale: Scale | None = None  # of the layer's output in the net, which filter and constant leave out: see ReadoutLayer
    own_scale: Scale | None = None  # of the values of a spiking or resetting output in the net, which its simulation lacks
    # Measures the output neuron's response over another number of steps; None if there is only one number.
    measure: Callable[[int], OutputResponse] | None = field(default=None, repr=False)

    @property
    def per_step(self) -> bool:
        """True for scores at every step, ``[B, T, C]``."""
        return self.kind in KINDS and KINDS[self.kind].decoding.per_step

    @property
    def bias_gain(self) -> float:
        """Change of the linear score for a unit bias: the sum of the filter."""
        return float(self.filter.sum())

    @property
    def matrix(self) -> Tensor:
        """``[T, T]`` float64: row t holds the weights of the currents of all steps in the value at step t."""
        return self.per_class * self.response.matrix

    @property
    def bias_gains(self) -> Tensor:
        """Change of the value at each step for a unit bias, ``[T]`` float64."""
        return self.matrix.sum(1)

    @property
    def constants(self) -> Tensor:
        """The value at each step without any current, ``[T]`` float64."""
        return self.per_class * self.response.rest

    def classes(self, outputs: int) -> int:
        """Return the number of classes that so many outputs belong to."""
        return outputs // self.per_class

    def linear_scores(self, currents: Tensor) -> Tensor:
        """Compute the classes' linear scores ``[B, K]``, or ``[B, T, K]`` at every step, from currents ``[T, B, C]``."""
        if self.per_step:
            return block_sum(self.response.membranes(currents), self.per_class).movedim(0, 1)
        of_classes = block_mean(currents, self.per_class, -1)
        return torch.einsum("t,tbc->bc", self.filter.to(currents), of_classes) + self.constant

    @property
    def rest_bias(self) -> float:
        """The bias that adds as much to the linear score as the neuron's rest."""
        return self.constant / self.bias_gain if self.constant != 0.0 else 0.0

    def for_steps(self, steps: int) -> Readout:
        """Return the same readout for a batch of another number of time steps; a CaptureError if that is another program."""
        if steps == len(self.filter):
            return self
        alike = self.per_class == 1 and self.factors is None
        halved = self.middle != 0 and self.kind == "spike_count"  # half of the steps is another number
        fixed = self.per_step or bool(self.weights) or self.constant != 0.0 or not alike or halved
        if self.measure is None or fixed:
            raise CaptureError(
                f"batches of {len(self.filter)} and of {steps} time steps, for a readout {self.kind}",
                "batches of one number of steps; or scores that are a mean, a sum, a maximum, the last step or a count of spikes "
                "of one output a class, whose neurons are alike and rest at zero",
                "let the loader pad all batches to one length, or pass readout='membrane_mean' or 'spike_rate'",
            )
        if self.padded and steps < len(self.filter):  # what comes later changes nothing before
            response = replace(self.response, matrix=self.response.matrix[:steps, :steps], rest=self.response.rest[:steps])
        else:
            response = self.measure(steps)
        return replace(self, filter=step_weights(self.kind, steps) @ response.matrix, response=response)

    def linked(self, scores: Tensor) -> Tensor:
        """Turn linear scores ``[*, C]`` into what the net returns for them, of the same dtype."""
        return scores.log_softmax(-1) if self.link == "log_softmax" else scores

    def filters_at(self, lengths: Tensor, steps: int) -> Tensor:
        """Return the filters of padded sequences, ``[T, B]`` float64 on the CPU, for ``lengths`` ``[B]`` and T ``steps``."""
        most = int(lengths.max())
        if most > steps:
            found = f"lengths up to {most} for {steps} time steps"
            raise DataError(found, f"lengths from 1 to {steps}", "let unpack(batch) return each sequence's number of steps")
        filters = torch.zeros(steps, len(lengths), dtype=torch.float64)
        for length in torch.unique(lengths).tolist():
            filters[:length, (lengths == length).cpu()] = self.for_steps(length).filter[:, None]
        return filters

    def own_scores(self, values: Tensor) -> Tensor:
        """Turn the output neuron's values over time ``[T, m, C]`` into what the net makes of them: scores, or log-probabilities."""
        decoded = self.decode(values)
        scaled = decoded if self.own_scale is None else self.own_scale.values(decoded)
        return self.linked(block_sum(scaled, self.per_class) - self.middle)
