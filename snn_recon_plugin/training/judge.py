"""The comparison of two states of a network: by validation data, held-out samples, or a function of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from ..errors import OptionError
from ..networks import StoredBatch, device_of, fast_passes, preserved, record
from ..pipeline import Context, Options, Stream, Task, inspect_task
from ..report import Report
from .data import Batches, training_batches
from .lightning import all_agree, in_all, sum_over_processes, validating, validation_loader
from .settings import AUTO, HELD_OUT, VALIDATION, Settings

__all__ = ["Judge", "Judged", "Sums", "measure_loss"]

_ASKED = 1000  # training samples on which an average is compared if there are no validation data
_TRAINED = Context(warm_start=True)  # a trained network, of which the user was warned before


class Judged(NamedTuple):
    """A judgement."""

    value: float = math.nan  # less is better; NaN for no judgement
    accuracy: float = math.nan  # on validation data with classes
    error: float = math.nan  # standard error of the accuracy, or of the value without one; NaN if unknown

    def better_than(self, other: Judged) -> bool:
        """Return whether the value is lower and the accuracy not: a convex readout is better calibrated, which is not enough."""
        return self.value < other.value and not self.accuracy < other.accuracy

    def clearly_better_than(self, other: Judged) -> bool:
        """Return whether it is better by more than two standard errors."""
        lead = other.value - self.value if math.isnan(self.accuracy) else self.accuracy - other.accuracy
        return self.better_than(other) and lead > 2 * math.hypot(self.error, other.error)


class Sums(NamedTuple):
    """Sums over samples, or over their steps if each step has a target."""

    loss: float = 0.0  # weighted, as are the others but for the number of decisions
    right: float = 0.0  # right decisions; NaN for regression
    weight: float = 0.0
    squares: float = 0.0  # of the loss
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
    """Judge of one run; the options of a refit determine the loss, and how the network's scores are read."""

    def __init__(self, settings: Settings, net: nn.Module, options: Options) -> None:
        self.settings, self.net, self.options = settings, net, options
        self.kind: Any = VALIDATION if settings.judge == AUTO else settings.judge
        self._task: Task | None = None  # how scores are read; finding it takes longer than judging

    @property
    def compares(self) -> bool:
        """Return whether its judgements of different moments can be compared."""
        return self.settings.keep == "if_better" and self.kind != HELD_OUT

    def choose(self, trainer: Any) -> None:
        """Try the judge on one batch; "auto" falls back on held-out samples without usable validation data."""
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
        """Judge the network as it is, on so many batches, averaged over processes.

        There is no judgement if solves are compared by their held-out loss, or not at all.  In place of held-out samples, which
        belong to a solve, a ``number`` seeds a draw of training samples.
        """
        if (self.kind == HELD_OUT and number is None) or self.settings.keep == "always":
            return Judged()
        sums = in_all(trainer, lambda: self._sums(trainer, limit, number or 0))
        return Sums(*sum_over_processes(trainer, sums)).judged()

    def _sums(self, trainer: Any, limit: float, number: int) -> Sums:
        """Return the sums of this process."""
        if callable(self.kind):
            return _call(trainer, self.kind, self.options.seed)
        if self.kind == HELD_OUT:
            batches = training_batches(trainer, self.settings, _ASKED, self.options.seed + number)
            return measure_loss(self.net, batches, self.options, self._inspect, samples=_ASKED)
        with validating(trainer):
            loader, most = validation_loader(trainer)
            most = min(limit, most)
            batches = Batches(loader, trainer, self.settings.unpack, limit=None if math.isinf(most) else int(most))
            return measure_loss(self.net, batches, self.options, self._inspect)

    def _inspect(self, *arguments: Any) -> Task:
        self._task = self._task or inspect_task(*arguments)
        return self._task

    def accepts_average(self, trainer: Any, average: Judged, trained: Judged) -> bool:
        """Return whether the average is better in all processes."""
        return all_agree(trainer, self.settings.keep == "always" or average.better_than(trained))

    def accepts(self, trainer: Any, report: Report, before: Judged, after: Judged, best: Judged | None) -> bool:
        """Return whether a solve is kept in all processes: it is better, and the best weights so far are not clearly better."""
        if self.kind == HELD_OUT:
            better = report.loss_after < report.loss_before
        else:
            better = after.better_than(before) and not (best is not None and best.clearly_better_than(after))
        return all_agree(trainer, better or self.settings.keep == "always")


def measure_loss(
    net: nn.Module,
    batches: Iterable[Any],
    options: Options,
    inspect: Callable[..., Task] = inspect_task,
    *,
    samples: float = math.inf,
) -> Sums:
    """Sum the loss and the right decisions of a network's own scores; the network is left as it was.

    The sum stops after so many samples.
    """
    seen, sums = 0, Sums()
    with preserved(net, seed=options.seed, loader=batches), fast_passes(net):
        stream = Stream(batches, device_of(net), options.unpack, options.criterion.ignored)
        head, targets = stream.head(1)
        task = inspect(net, head[0], targets, options, _TRAINED)
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
    decisions, decided = task.rows.decisions(scores), task.rows.decided(labels)
    if decided.dim() != 1 or decided.is_floating_point():  # no classes
        hits = torch.full_like(decisions[:, 0], math.nan)
    else:
        hits = (task.loss.predictions(decisions) == decided).to(scores)
    counted = task.rows.decided(shares)
    counted = counted * (len(shares) / len(counted))  # the weight of a sample of several rows is that of all of them
    squares = shares @ values.square()
    return Sums(float(shares @ values), float(counted @ hits), float(shares.sum()), float(squares), len(hits))


def _call(trainer: Any, judge: Callable[[Any], Any], seed: int) -> Sums:
    """Return the judgement of a user's function, with a weight of 1 among processes; the module is left as it was."""
    module = trainer.lightning_module
    with preserved(module, seed=seed), validating(trainer):
        value = judge(module)
    try:
        return Sums(float(value), math.nan, 1.0)
    except (TypeError, ValueError, RuntimeError):
        fix = "return a float, less for better, e.g. minus the accuracy on validation data"
        raise OptionError(f"judge gave a {type(value).__name__}", "one number", fix) from None
