"""The comparison of two states of a network: by validation data, held-out samples, or a function of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from ..convex import Loss
from ..errors import OptionError
from ..networks import StoredBatch, device_of, fast_passes, preserved, record
from ..pipeline import Stream, Task
from ..report import Report
from .data import Batches, training_batches
from .lightning import agree, all_agree, sum_over_processes, uncompiled, validating, validation_loader
from .settings import AUTO, HELD_OUT, VALIDATION, Settings
from .solves import Solver

__all__ = ["Judge", "Judged", "Sums", "measure_loss"]

_ASKED = 1000  # training samples on which an average is compared if there are no validation data


class Judged(NamedTuple):
    """A judgement.

    Args:
        value: less is better; NaN for no judgement.
        accuracy: on validation data with classes, else NaN.
        error: standard error of the accuracy, or of the value without one; NaN if unknown.
    """

    value: float = math.nan
    accuracy: float = math.nan
    error: float = math.nan

    def better_than(self, other: Judged) -> bool:
        """Return whether the value is lower and the accuracy not: a convex readout is better calibrated, which is not enough."""
        return self.value < other.value and not self.accuracy < other.accuracy

    def clearly_better_than(self, other: Judged) -> bool:
        """Return whether it is better by more than two standard errors."""
        lead = other.value - self.value if math.isnan(self.accuracy) else self.accuracy - other.accuracy
        return self.better_than(other) and lead > 2 * math.hypot(self.error, other.error)


class Sums(NamedTuple):
    """Sums over samples, or over their steps if each step has a target.

    Args:
        loss: weighted sum of the loss.
        right: weighted sum of right decisions; NaN for regression.
        weight: sum of the weights.
        squares: weighted sum of the squared loss.
        decisions: number of decisions.
    """

    loss: float = 0.0
    right: float = 0.0
    weight: float = 0.0
    squares: float = 0.0
    decisions: float = 0.0

    def plus(self, other: Sums) -> Sums:
        """Return the sums over both sets."""
        return Sums(*(one + two for one, two in zip(self, other, strict=True)))

    def judged(self) -> Judged:
        """Return the means with their standard error; no judgement if the weights are zero."""
        if not self.weight:
            return Judged()
        value, accuracy = self.loss / self.weight, self.right / self.weight
        variance = self.squares / self.weight - value**2 if math.isnan(accuracy) else accuracy * (1 - accuracy)
        return Judged(value, accuracy, math.sqrt(max(0.0, variance) / self.decisions) if self.decisions else math.nan)


class Judge:
    """Judge of one run; the solver knows the loss, and how the network's scores are read."""

    def __init__(self, settings: Settings, solver: Solver) -> None:
        self.settings, self.solver = settings, solver
        self.kind: Any = VALIDATION if settings.judge == AUTO else settings.judge
        self._task: Task | None = None  # how scores are read; finding it takes longer than judging

    @property
    def compares(self) -> bool:
        """Return whether its judgements of different moments can be compared."""
        return self.settings.keep == "if_better" and self.kind != HELD_OUT

    def choose(self, trainer: Any) -> None:
        """Try the judge on one batch; "auto" falls back on held-out samples without usable validation data.

        Raises:
            Exception: from data, network or judge, unless the judge is "auto".
        """
        try:
            self.measure(trainer, limit=1)
        except Exception as error:
            if self.settings.judge != AUTO:
                raise
            self.kind = HELD_OUT
            if trainer.enable_validation:  # without validation data the choice is no surprise
                fix = "Pass judge='held_out' to be content with that."
                rank_zero_warn(f"Validation data can't judge refits; held-out training samples do. {fix}\n{error}")

    def measure(self, trainer: Any, *, limit: float = math.inf, number: int | None = None) -> Judged:
        """Judge the network as it is, averaged over processes.

        Args:
            trainer: of the run.
            limit: largest number of batches.
            number: seeds a draw of training samples that replace a solve's held-out samples; None for no such draw.

        Returns:
            The judgement; none if solves are compared by their held-out loss, or not at all.

        Raises:
            Exception: from data, network or judge, in this or another process.
        """
        if (self.kind == HELD_OUT and number is None) or self.settings.keep == "always":
            return Judged()
        sums, error = Sums(), None
        try:
            with uncompiled():
                sums = self._sums(trainer, limit, number or 0)
        except Exception as caught:
            error = caught
        agree(trainer, error)
        return Sums(*sum_over_processes(trainer, sums)).judged()

    def _sums(self, trainer: Any, limit: float, number: int) -> Sums:
        """Return the sums of this process."""
        seed = self.settings.initializer.seed
        if callable(self.kind):
            return _call(trainer, self.kind, seed)
        if self.kind == HELD_OUT:
            batches = training_batches(trainer, self.settings, _ASKED, seed + number)
            return measure_loss(self.solver, batches, samples=_ASKED, inspect=self._inspect)
        with validating(trainer):
            loader, most = validation_loader(trainer)
            most = min(limit, most)
            batches = Batches(loader, trainer, self.settings.unpack, limit=None if math.isinf(most) else int(most))
            return measure_loss(self.solver, batches, inspect=self._inspect)

    def _inspect(self, batch: StoredBatch, targets: Tensor) -> Task:
        self._task = self._task or self.solver.inspect(batch, targets)
        return self._task

    def accepts_average(self, trainer: Any, average: Judged, trained: Judged) -> bool:
        """Return whether the average is better in all processes."""
        return all_agree(trainer, self.settings.keep == "always" or average.better_than(trained))

    def accepts(self, trainer: Any, report: Report, before: Judged, after: Judged, best: Judged | None) -> bool:
        """Return whether a solve is kept in all processes.

        The best weights so far must not be clearly better.
        """
        if self.kind == HELD_OUT:
            better = report.loss_after < report.loss_before
        else:
            better = after.better_than(before) and not (best is not None and best.clearly_better_than(after))
        return all_agree(trainer, better or self.settings.keep == "always")


def measure_loss(
    solver: Solver,
    batches: Iterable[Any],
    *,
    samples: float = math.inf,
    inspect: Callable[[StoredBatch, Tensor], Task] | None = None,
) -> Sums:
    """Sum the loss and the right decisions of a network's own scores; the network is left as it was.

    Args:
        solver: of the network: its loss, and how scores are read.
        batches: (input, target) pairs.
        samples: stop after so many samples.
        inspect: replaces the solver's method of this name.
    """
    net, options = solver.net, solver.options
    seen, sums = 0, Sums()
    with preserved(net, seed=options.seed, loader=batches), fast_passes(net):
        stream = Stream(batches, device_of(net), options.unpack, options.criterion.ignored)
        head, targets = stream.head(1)
        task = (inspect or solver.inspect)(head[0], targets)
        for batch in stream:
            if seen >= samples:
                break
            count = len(batch.targets)
            seen += count
            stored = StoredBatch(batch.inputs, slice(0, count), batch.number)
            scores = task.readout.scores(record(net, stored, options.call)).double()
            sums = sums.plus(_sums_of(task, scores, batch.targets, options.criterion.weights(batch.targets)))
    return sums


def _sums_of(task: Task, scores: Tensor, target: Tensor, weights: Tensor | None) -> Sums:
    """Return the sums of one batch; ``weights`` are of its samples."""
    labels = task.rows.targets(target)
    values = task.loss.value(scores.flatten(0, -2), task.loss.prepare(labels, scores.shape[-1]))
    shares = task.rows.weights(weights)
    shares = torch.ones_like(values) if shares is None else shares.to(values)
    hits = _hits(task.loss, task.rows.decisions(scores), task.rows.decided(labels))
    counted = task.rows.decided(shares)
    counted = counted * (len(shares) / len(counted))  # the weight of a sample of several rows is that of all of them
    loss = shares @ values
    right = counted @ hits
    weight = shares.sum()
    squares = shares @ values.square()
    return Sums(float(loss), float(right), float(weight), float(squares), len(hits))


def _hits(loss: Loss, scores: Tensor, labels: Tensor) -> Tensor:
    """Return 1 for each right decision, (n,); NaN without classes."""
    if labels.dim() != 1 or labels.is_floating_point():
        return torch.full((len(scores),), math.nan, dtype=scores.dtype, device=scores.device)
    return (loss.predictions(scores) == labels).to(scores)


def _call(trainer: Any, judge: Callable[[Any], Any], seed: int) -> Sums:
    """Return the judgement of a user's function, with a weight of 1 among processes; the module is left as it was.

    Raises:
        OptionError: the function returned no number.
    """
    module = trainer.lightning_module
    with preserved(module, seed=seed), validating(trainer):
        value = judge(module)
    try:
        return Sums(float(value), math.nan, 1.0)
    except (TypeError, ValueError, RuntimeError):
        fix = "return a float, less for better, e.g. minus the accuracy on validation data"
        raise OptionError(f"judge gave a {type(value).__name__}", "one number", fix) from None
