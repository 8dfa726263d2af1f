"""The judge of one Lightning run: validation data, training samples without them, or a metric of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from ..errors import OptionError, ProcessError
from ..networks import Inspections, private_copy, quiet
from ..stages import Options
from .lightning import in_all, sum_over_processes, validating, validation_loader
from .measure import Judgement, Sums, measure_loss
from .refit_data import Batches, training_batches
from .settings import Settings

_TRAINING_SAMPLES = 1000  # that weights are compared on if there are no validation data
_WATCHED_SAMPLES = 256  # training samples on which the loss is measured after a write


class Judge:
    """Measurements of the network as it is; ``options`` determine the loss, and how the network's scores are read."""

    def __init__(self, settings: Settings, net: nn.Module, options: Options, inspections: Inspections) -> None:
        self.settings, self.net, self.options, self.inspections = settings, net, options, inspections
        self.validates = True  # by validation data or a metric, of samples that nothing was fitted on

    def choose(self, trainer: Any) -> None:
        """Try the judge on one batch; without usable validation data training samples are compared."""
        try:
            self.measure(trainer, limit=1)
        except Exception as error:
            if self.settings.metric is not None or isinstance(error, ProcessError):
                raise
            self.validates = False
            if trainer.enable_validation:  # without validation data the choice is no surprise
                fix = "Pass ReconstructionCallback(metric=...) to decide by a number of your own."
                rank_zero_warn(f"Validation data can't be measured; training samples decide. {fix}\n{error}")

    def measure(self, trainer: Any, *, limit: float = math.inf) -> Judgement:
        """Judge the network on so many batches, averaged over ranks."""
        if self.settings.metric is not None:
            value = in_all(trainer, lambda: _call(trainer, self.settings.metric, self.options.seed))
            total, ranks = sum_over_processes(trainer, [value, 1.0])
            return Judgement(total / ranks, own=total / ranks)
        return self._mean(trainer, lambda: self._sums(trainer, limit))

    def watch(self, trainer: Any) -> Judgement:
        """Return the network's loss on a few training samples, the same in all ranks."""
        return self._mean(trainer, lambda: self._on_training(trainer, _WATCHED_SAMPLES))

    def _mean(self, trainer: Any, sums: Callable[[], Sums]) -> Judgement:
        """Return the mean over all ranks."""
        return Sums.of_numbers(sum_over_processes(trainer, in_all(trainer, sums).numbers())).judgement()

    def validation(self, trainer: Any, limit: float = math.inf) -> Batches:
        """Return the batches of validation data; call it, and read them, inside ``validating``."""
        loader, most = validation_loader(trainer)
        most = min(limit, most)
        return Batches(loader, trainer, self.settings.initializer.unpack, limit=None if math.isinf(most) else int(most))

    def _sums(self, trainer: Any, limit: float) -> Sums:
        """Return the sums of this rank's samples."""
        if not self.validates:
            return self._on_training(trainer, _TRAINING_SAMPLES)
        with validating(trainer):
            batches = self.validation(trainer, limit)
            return measure_loss(self.net, batches, self.options, self.inspections, shared=[trainer])

    def _on_training(self, trainer: Any, samples: int) -> Sums:
        """Return the sums of so many training samples."""
        batches = training_batches(trainer, self.settings, samples, self.options.seed)
        return measure_loss(self.net, batches, self.options, self.inspections, samples=samples, shared=[trainer])


def _call(trainer: Any, metric: Callable[[Any], Any] | None, seed: int) -> float:
    """Return a user's metric; the module is left as it was."""
    assert metric is not None
    module = private_copy(trainer.lightning_module, [trainer])
    with quiet(module, seed=seed), validating(trainer):
        value = metric(module)
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        fix = "return a float, less for better, e.g. minus the accuracy on validation data"
        raise OptionError(f"metric gave a {type(value).__name__}", "one number", fix) from None
