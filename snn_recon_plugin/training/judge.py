"""The comparison of two states of a network: by validation data, held-out samples, or a function of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from ..errors import OptionError, ProcessError
from ..networks import Inspections, preserved
from ..pipeline import Options
from ..report import Report
from .data import Batches, training_batches
from .lightning import all_agree, in_all, sum_over_processes, validating, validation_loader
from .measure import TEMPERATURES, Sums, measure_loss
from .settings import AUTO, HELD_OUT, VALIDATION, Settings

_AVERAGE_SAMPLES = 1000  # training samples on which an average is compared if there are no validation data
_WATCH_SAMPLES = 256  # training samples on which the loss is measured after a write


class Judge:
    """Judge of one run; the options of a refit determine the loss, and how the network's scores are read."""

    def __init__(self, settings: Settings, net: nn.Module, options: Options, inspections: Inspections) -> None:
        self.settings, self.net, self.options, self.inspections = settings, net, options, inspections
        self.kind: Any = VALIDATION if settings.judge == AUTO else settings.judge

    @property
    def compares(self) -> bool:
        """Return whether its judgements of different moments can be compared."""
        return self.settings.keep == "if_better" and self.kind != HELD_OUT

    def choose(self, trainer: Any) -> None:
        """Try the judge on one batch; "auto" falls back on held-out samples without usable validation data."""
        try:
            self.measure(trainer, limit=1)
        except Exception as error:
            if self.settings.judge != AUTO or isinstance(error, ProcessError):
                raise
            self.kind = HELD_OUT
            if trainer.enable_validation:  # without validation data the choice is no surprise
                fix = "Pass judge='held_out' to be content with that."
                rank_zero_warn(f"Validation data can't judge refits; held-out training samples do. {fix}\n{error}")

    def measure(self, trainer: Any, *, limit: float = math.inf, number: int | None = None) -> float:
        """Judge the network as it is, on so many batches, averaged over processes.

        There is no judgement if solves are compared by their held-out loss, or not at all.  In place of held-out samples, which
        belong to a solve, a ``number`` seeds a draw of training samples.
        """
        if (self.kind == HELD_OUT and number is None) or self.settings.keep == "always":
            return math.nan
        return self._total(trainer, lambda: self._sums(trainer, limit, number or 0)).judgement()

    def watch(self, trainer: Any) -> Sums:
        """Return the network's loss on a few training samples, the same in all processes."""
        return self._total(trainer, lambda: self._training_sums(trainer, _WATCH_SAMPLES))

    def _total(self, trainer: Any, sums: Callable[[], Sums]) -> Sums:
        """Return the sums over all processes."""
        return Sums.of_numbers(sum_over_processes(trainer, in_all(trainer, sums).numbers()))

    def _training_sums(self, trainer: Any, samples: int, number: int = 0) -> Sums:
        """Return the sums over so many training samples, drawn by a number."""
        batches = training_batches(trainer, self.settings, samples, self.options.seed + number)
        return measure_loss(self.net, batches, self.options, self.inspections, samples=samples)

    def _sums(self, trainer: Any, limit: float, number: int) -> Sums:
        """Return the sums of this process."""
        if callable(self.kind):
            return _call(trainer, self.kind, self.options.seed)
        if self.kind == HELD_OUT:
            return self._training_sums(trainer, _AVERAGE_SAMPLES, number)
        with validating(trainer):
            loader, most = validation_loader(trainer)
            most = min(limit, most)
            batches = Batches(loader, trainer, self.settings.initializer.unpack, limit=None if math.isinf(most) else int(most))
            return measure_loss(self.net, batches, self.options, self.inspections)

    def accepts_average(self, trainer: Any, average: float, trained: float) -> bool:
        """Return whether all processes accept the average: it is better, or all is kept."""
        return all_agree(trainer, self.settings.keep == "always" or average < trained)

    def accepts(self, trainer: Any, report: Report, before: float, after: float, best: float | None) -> bool:
        """Return whether all processes accept a solve: it is better, and the best weights so far are not; or all is kept."""
        if self.kind == HELD_OUT:
            better = report.loss_after < report.loss_before
        else:
            better = after < before and not (best is not None and best < after)
        return all_agree(trainer, better or self.settings.keep == "always")


def _call(trainer: Any, judge: Callable[[Any], Any], seed: int) -> Sums:
    """Return the judgement of a user's function, with a weight of 1 among processes; the module is left as it was."""
    module = trainer.lightning_module
    with preserved(module, seed=seed), validating(trainer):
        value = judge(module)
    try:
        return Sums(1.0, 0.0, float(value), (float(value),) * len(TEMPERATURES))
    except (TypeError, ValueError, RuntimeError):
        fix = "return a float, less for better, e.g. minus the accuracy on validation data"
        raise OptionError(f"judge gave a {type(value).__name__}", "one number", fix) from None
