"""The readout: a net's scores as a function of the currents of its readout layer, by one temporal filter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import CaptureError, DataError
from .filters import OutputFilters, OutputResponse
from .readouts import (
    CUSTOM,
    KINDS,
    SPIKE_READOUTS,
    as_tensor,
    block_mean,
    block_sum,
    decode_valid,
    parts_of,
    step_weights,
    unknown_output,
)
from .scale import Scale


@dataclass(frozen=True)
class Source:
    """An item of the net's output, and how to decode scores from it."""

    kind: str  # one of ALL_READOUTS, or "custom" for another weighted sum over time
    index: int | str | None  # index or key of the item; None for the whole output
    time_dim: int = 0  # time axis of the item if it has one
    per_class: int = 1  # number of outputs whose values are summed to the score of a class
    padded: bool = False  # of the steps of each sample before its padding
    middle: float = 0.0  # of a single spiking output: its value above which it decides for class 1, subtracted from the score

    @property
    def of_spikes(self) -> bool:
        """True for scores decoded from the output neuron's spikes."""
        return self.kind in SPIKE_READOUTS

    def scores(self, outputs: Any, lengths: Tensor | None = None) -> Tensor:
        """Decode the output of the net's forward into ``[B, K]`` for K classes, or ``[B, T, K]`` at every step.

        ``lengths`` ``[B]`` are those of padded sequences.

        Raises:
            NetworkError: if the output has another structure than when the readout was resolved.
        """
        value, kind = as_tensor(parts_of(outputs).get(self.index)), KINDS.get(self.kind)
        if value is not None and value.ndim == 3 and kind is not None:
            over_time = value.movedim(self.time_dim, 0)
            return self.finish(decode_valid(kind.decoding, over_time, lengths if self.padded else None))
        if value is not None and value.ndim == 2 and not (kind is not None and kind.decoding.per_step):
            return self.finish(value)
        raise unknown_output(outputs, (self.kind,))

    def finish(self, decoded: Tensor) -> Tensor:
        """Turn decoded values of the outputs ``[*, C]`` into scores of the classes."""
        return block_sum(decoded, self.per_class) - self.middle if self.middle else block_sum(decoded, self.per_class)

    def __str__(self) -> str:
        """Return a description such as "spike count of output[0]"."""
        if self.kind == CUSTOM:
            return f"weighted sum over time of {'the output' if self.index is None else f'output[{self.index!r}]'}"
        summed = f", summed over {self.per_class} outputs a class" if self.per_class > 1 else ""
        summed += f", class 1 above {self.middle:g}" if self.middle else ""
        return f"{self.kind.replace('_', ' ')} of {'the output' if self.index is None else f'output[{self.index!r}]'}{summed}"


@dataclass(frozen=True, eq=False)
class Readout:
    """Scores as a function of the readout layer's currents: ``score = sum_t filter[t] * current[t] + constant``.

    If the net's own scores are not linear, this is the linear score that is solved instead.  Scores at every step have a filter
    for each step, the rows of :attr:`matrix`; filter and constant then belong to their mean.  With several outputs a class these
    belong to the sum of their scores, for the mean of their weights.  A final ``log_softmax`` is left out, see :meth:`linked`.
    """

    kind: str  # one of ALL_READOUTS, or "custom" for another weighted sum over time
    exactness: str  # "exact", "majorised" or "surrogate", see Decoding
    filter: Tensor  # [T] float64 on the CPU, change of the linear score for a unit current; the mean over outputs that differ
    constant: float  # the linear score without any current; the mean over outputs that differ
    output_index: int | str | None  # of the output's item that holds the scores, membranes or spikes; None for the whole output
    response: OutputResponse = field(repr=False)  # of the output neuron; the filter is a weighted sum of its rows
    time_dim: int = 0  # time axis of the output's item if it has one
    link: str = "identity"  # last operation of the net on the scores, or "log_softmax" over the classes
    others: tuple[Source, ...] = ()  # other items of the net's output, by which a user may decide
    per_class: int = 1  # number of outputs of each class, whose scores are summed
    filters: OutputFilters | None = None  # of outputs that differ, for example by a leak each; None if all are the same
    padded: bool = False  # scores are of the steps of each sample before its padding
    scale: Scale | None = None  # of the layer's output in the net, which filter and constant leave out: see ReadoutLayer
    own_scale: Scale | None = None  # of the values of a spiking or resetting output in the net, which its simulation lacks
    middle: float = 0.0  # see Source
    # Measures the output neuron's response over another number of steps; None if there is only one number.
    measure: Callable[[int], OutputResponse] | None = field(default=None, repr=False)

    @property
    def source(self) -> Source:
        """The item that the scores come from."""
        return Source(self.kind, self.output_index, self.time_dim, self.per_class, self.padded, self.middle)

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

    @property
    def averaged(self) -> Readout:
        """The same with the mean filter for all outputs, to evaluate layers below the readout."""
        return self if self.filters is None else replace(self, filters=None)

    def linear_scores(self, currents: Tensor) -> Tensor:
        """Compute the classes' linear scores ``[B, K]`` from currents ``[T, B, C]``, in their dtype and on their device."""
        if self.filters is None:
            of_classes = block_mean(currents, self.per_class, -1)
            return torch.einsum("t,tbc->bc", self.filter.to(currents), of_classes) + self.constant
        filters = self.filters.filters.to(currents)[self.filters.index]
        return torch.einsum("ct,tbc->bc", filters, currents) + self.filters.constants.to(currents)

    @property
    def rest_bias(self) -> float | Tensor:
        """The bias that adds as much to the linear score as the neuron's rest: a number, or ``[C]`` float64."""
        if self.filters is None:
            return self.constant / self.bias_gain if self.constant != 0.0 else 0.0
        return torch.where(self.filters.constants != 0, self.filters.constants / self.filters.gains, 0.0)

    @property
    def bias_steps(self) -> float | Tensor:
        """Changes of the biases, of mean one, that raise all linear scores alike: 1, or ``[C]`` float64."""
        if self.filters is None or not bool((self.filters.gains > 0).all()):
            return 1.0
        steps = 1 / self.filters.gains
        return steps / steps.mean()

    def at(self, steps: int) -> Readout:
        """Return the same readout for a batch of another number of time steps.

        Raises:
            CaptureError: if scores of batches of different numbers of steps can't be those of one program.
        """
        if steps == len(self.filter):
            return self
        alike = self.per_class == 1 and self.filters is None
        halved = self.middle != 0 and self.kind == "spike_count"  # half of the steps is another number
        fixed = self.per_step or self.kind == CUSTOM or self.constant != 0.0 or not alike or halved
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
        """Return the filters of padded sequences, ``[T, B]`` float64 on the CPU, for ``lengths`` ``[B]`` and T ``steps``.

        Raises:
            CaptureError: as :meth:`at`.
            DataError: if there is a length above T.
        """
        most = int(lengths.max())
        if most > steps:
            found, fix = f"lengths up to {most} for {steps} time steps", "let unpack(batch) return each sequence's number of steps"
            raise DataError(found, f"lengths from 1 to {steps}", fix)
        filters = torch.zeros(steps, len(lengths), dtype=torch.float64)
        for length in torch.unique(lengths).tolist():
            filters[:length, (lengths == length).cpu()] = self.at(length).filter[:, None]
        return filters

    def own_scores(self, values: Tensor) -> Tensor:
        """Turn the output neuron's values over time ``[T, m, C]`` into what the net makes of them: scores, or log-probabilities."""
        decoded = KINDS[self.kind].decoding.decode(values)
        return self.linked(self.source.finish(decoded if self.own_scale is None else self.own_scale.values(decoded)))

    def scores(self, outputs: Any, lengths: Tensor | None = None) -> Tensor:
        """Decode the net's own scores, as a :class:`Source` does; log-probabilities if the net returns such.

        Raises:
            NetworkError: if the output has another structure than when the readout was resolved.
        """
        return self.source.scores(outputs, lengths)
