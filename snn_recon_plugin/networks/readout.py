"""The readout: how a net's scores follow from the currents of its readout layer, as one temporal filter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import CaptureError
from .decode import PER_STEP_READOUTS, as_tensor, decode, step_weights, unknown_output
from .filters import Response
from .imitation import Imitation
from .output_filters import OutputFilters
from .population import block_mean, block_sum

__all__ = ["EXACTNESS", "Readout", "Source"]

EXACTNESS = ("exact", "majorised", "surrogate")


@dataclass(frozen=True)
class Source:
    """One item of the net's output, and how scores come from it.

    Args:
        kind: one of :data:`ALL_READOUTS`, or ``"custom"`` for a user's function.
        index: the item; None for the whole output.
        time_dim: the time axis of that item where it has one.
        per_class: how many outputs stand for a class, whose score is the sum of theirs.
    """

    kind: str
    index: int | str | None
    time_dim: int = 0
    per_class: int = 1

    def scores(self, outputs: Any) -> Tensor:
        """Decode what the net's forward returned into ``[B, K]`` for K classes, or ``[B, T, K]`` at every step.

        Raises:
            NetworkError: if the output has another structure than the one seen when the readout was resolved.
        """
        item = outputs if self.index is None else outputs[self.index]
        value = as_tensor(item)
        if value is not None and value.ndim == 3:
            return block_sum(decode(self.kind, value.movedim(self.time_dim, 0)), self.per_class)
        if value is not None and value.ndim == 2 and self.kind not in PER_STEP_READOUTS:
            return block_sum(value, self.per_class)
        raise unknown_output(outputs)

    def __str__(self) -> str:
        """Name it in plain words, e.g. "spike count of output[0]"."""
        if self.kind == "custom":
            return "scores(output)"
        summed = f", summed over {self.per_class} outputs a class" if self.per_class > 1 else ""
        return f"{self.kind.replace('_', ' ')} of {'the output' if self.index is None else f'output[{self.index!r}]'}{summed}"


@dataclass(frozen=True, eq=False)
class Readout:
    """Scores as a function of the readout layer's currents: ``score = sum_t filter[t] * current[t] + constant``.

    With currents ``W s[t] + b`` that is ``W phi + bias_gain * b + constant``, ``phi = sum_t filter[t] s[t]``.  Where the net's
    own scores are no such function this is the linear score that stands in for them.

    A readout with scores at every step has one such filter for each step, the rows of :attr:`matrix`; ``filter``,
    ``bias_gain`` and ``constant`` are then those of the scores' mean over the steps.  Where the net puts a ``log_softmax``
    on its scores, all of this is about the scores before it, see :meth:`linked`.

    Args:
        kind: one of :data:`ALL_READOUTS`, or ``"custom"`` for scores of a user's function that is none of them.
        exactness: ``"exact"``: the net's scores are the linear score; ``"majorised"``: they are the maximum over time of
            scores that are; ``"surrogate"``: they come from a spiking or resetting output neuron, which agrees with the
            linear score only as far as weight and bias are scaled and shifted to make it, see :func:`~.surrogate.calibrate`.
        filter: ``[T]`` float64 on the CPU, change of the linear score for a unit current at each step; where outputs have filters
            of their own, the mean over the outputs.
        bias_gain: the filter's sum.
        constant: the linear score without any current, or its mean over the outputs.
        output_index: which item of the net's output holds the scores, membranes or spikes; None for all of it.
        time_dim: the time axis of that item where it has one.
        response: the output neuron's response, of which the filter is a weighted sum of rows.
        function: the user's function from the net's output to scores, or None.
        link: what the net does to the scores in the end, ``"identity"`` or ``"log_softmax"`` over the classes.
        imitation: what the user's function gives for other currents, where the kind doesn't say; None where it can't be told.
        others: readouts of other items of the net's output, by which the user may decide instead.
        per_class: how many outputs stand for a class.  Their scores are summed: filter, gain and constant are those of the sum,
            for the mean of their weights.
        filters: those of outputs that each have their own, as an output neuron with a leak each; None where all have one.
        measure: measures the output neuron's response over another number of steps; None where there is but one number.
    """

    kind: str
    exactness: str
    filter: Tensor
    bias_gain: float
    constant: float
    output_index: int | str | None
    time_dim: int = 0
    response: Response | None = field(default=None, repr=False)
    function: Callable[[Any], Tensor] | None = None
    link: str = "identity"
    imitation: Imitation | None = field(default=None, repr=False)
    others: tuple[Source, ...] = ()
    per_class: int = 1
    filters: OutputFilters | None = None
    measure: Callable[[int], Response] | None = field(default=None, repr=False)

    @property
    def source(self) -> Source:
        """The item that the scores come from."""
        return Source(self.kind, self.output_index, self.time_dim, self.per_class)

    @property
    def per_step(self) -> bool:
        """Whether the scores are those of every step, ``[B, T, C]``."""
        return self.kind in PER_STEP_READOUTS

    @property
    def matrix(self) -> Tensor:
        """``[T, T]`` float64: row t holds the weights of the currents of all steps in the value at step t."""
        own = torch.eye(len(self.filter), dtype=torch.float64) if self.response is None else self.response.matrix
        return self.per_class * own

    @property
    def bias_gains(self) -> Tensor:
        """``[T]`` float64: what a unit bias adds to the value at each step."""
        return self.matrix.sum(1)

    @property
    def constants(self) -> Tensor:
        """``[T]`` float64: the value at each step without any current."""
        own = torch.zeros(len(self.filter), dtype=torch.float64) if self.response is None else self.response.rest
        return self.per_class * own

    def classes(self, outputs: int) -> int:
        """Return how many classes so many outputs stand for."""
        return outputs // self.per_class

    @property
    def averaged(self) -> Readout:
        """The same with one filter, the mean, where outputs have filters of their own: for judging what is below the readout."""
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
        """The bias that adds as much to the linear score as the neuron's rest does: a number, or ``[C]`` float64."""
        if self.filters is None:
            return self.constant / self.bias_gain if self.constant != 0.0 else 0.0
        return torch.where(self.filters.constants != 0, self.filters.constants / self.filters.gains, 0.0)

    @property
    def bias_steps(self) -> float | Tensor:
        """The change of each bias by which all linear scores rise alike, and the mean bias by one: 1, or ``[C]`` float64."""
        if self.filters is None or not bool((self.filters.gains > 0).all()):
            return 1.0
        steps = 1 / self.filters.gains
        return steps / steps.mean()

    def at(self, steps: int) -> Readout:
        """Give the same readout of a batch of another number of time steps.

        Args:
            steps: of the batch, T.

        Returns:
            The readout with the filter of T steps.

        Raises:
            CaptureError: if the scores of batches of different numbers of steps can't be those of one program.
        """
        if steps == len(self.filter):
            return self
        alike = self.per_class == 1 and self.filters is None
        fixed = self.per_step or self.kind == "custom" or self.constant != 0.0 or not alike
        if self.measure is None or fixed:
            raise CaptureError(
                f"batches of {len(self.filter)} and of {steps} time steps, for a readout {self.kind}",
                "batches of one number of steps; or scores that are a mean, a sum, a maximum, the last step or a count of spikes "
                "of one output a class, whose neurons are alike and rest at zero",
                "let the loader pad all batches to one length, or pass readout='membrane_mean' or 'spike_count'",
            )
        response = self.measure(steps)
        filter_ = step_weights(self.kind, steps) @ response.matrix
        return replace(self, filter=filter_, bias_gain=float(filter_.sum()), response=response)

    def linked(self, scores: Tensor) -> Tensor:
        """Turn linear scores into what the net returns for them.

        Args:
            scores: ``[*, C]``.

        Returns:
            ``[*, C]`` of the same dtype.
        """
        return scores.log_softmax(-1) if self.link == "log_softmax" else scores

    def scores(self, outputs: Any) -> Tensor:
        """Decode what the net's forward returned.

        Args:
            outputs: the net's output on one batch, of the structure seen when the readout was resolved.

        Returns:
            ``[B, C]``, the net's own scores, or ``[B, T, C]`` where they are those of every step; log-probabilities where
            the net returns such.

        Raises:
            NetworkError: if the output has another structure now.
        """
        if self.function is not None:
            return self.function(outputs)
        return self.source.scores(outputs)
