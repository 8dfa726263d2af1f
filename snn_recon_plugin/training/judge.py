"""The judge of one Lightning run: validation data, training samples without them, or a metric of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from ..errors import OptionError, ProcessError
from ..networks.private.quiet import quiet
from ..networks.private.workbench import private_copy
from ..networks.structure.inspect import Inspections
from ..options import Options
from .lightning import in_all, processes_of, validating, validation_loader
from .measure import Judgement, sum_losses
from .refit_data import Batches, training_batches
from .settings import Settings

_TRAINING_SAMPLES = 1000  # that weights are compared on if there are no validation data
_WATCHED_SAMPLES = 256  # training samples on which the loss is measured after a write


class Judge:
    """Measurements of the network as it is; ``options`` determine the loss, and how the network's scores are read."""

    def __init__(self, trainer: Any, settings: Settings, net: nn.Module, options: Options, inspections: Inspections) -> None:
        self.trainer, self.settings, self.net, self.options, self.inspections = trainer, settings, net, options, inspections
        self.validates = True  # by validation data or a metric, of samples that nothing was fitted on
        self._try()

    def _try(self) -> None:
        """Measure one batch; without usable validation data training samples are compared."""
        try:
            self.measure(limit=1)
        except Exception as error:
            if self.settings.metric is not None or isinstance(error, ProcessError):
                raise
            self.validates = False
            if self.trainer.enable_validation:  # without validation data the choice is no surprise
                fix = "Pass ReconstructionCallback(metric=...) to decide by a number of your own."
                rank_zero_warn(f"Validation data can't be measured; training samples decide. {fix}\n{error}")

    def measure(self, *, limit: float = math.inf) -> Judgement:
        """Judge the network, on at most ``limit`` batches of validation data; return the mean over ranks."""
        if self.settings.metric is not None:
            values = processes_of(self.trainer).gather(in_all(self.trainer, self._call_metric))
            mean = sum(values) / len(values)
            return Judgement(mean, own=mean)
        return self._mean(lambda: self._sum_validation(limit)) if self.validates else self._judge_training(_TRAINING_SAMPLES)

    def watch(self) -> Judgement:
        """Return the network's loss on a few training samples, the same in all ranks."""
        return self._judge_training(_WATCHED_SAMPLES)

    def validation(self, limit: float = math.inf) -> Batches:
        """Return the batches of validation data; call it, and read them, inside ``validating``."""
        loader, most = validation_loader(self.trainer)
        most = min(limit, most)
        return Batches(loader, self.trainer, self.settings.initializer.unpack, limit=None if math.isinf(most) else int(most))

    def _mean(self, sums: Callable[[], Tensor]) -> Judgement:
        return Judgement.of_sums(processes_of(self.trainer).gather(in_all(self.trainer, sums)))

    def _sum_validation(self, limit: float) -> Tensor:
        with validating(self.trainer):
            return sum_losses(self.net, self.validation(limit), self.options, self.inspections, shared=[self.trainer])

    def _judge_training(self, samples: int) -> Judgement:
        """Return the mean losses over some training samples."""

        def sums() -> Tensor:
            batches = training_batches(self.trainer, self.settings, samples, self.options.seed)
            return sum_losses(self.net, batches, self.options, self.inspections, samples=samples, shared=[self.trainer])

        return self._mean(sums)

    def _call_metric(self) -> float:
        """Return the user's metric of a private copy of the module."""
        module = private_copy(self.trainer.lightning_module, [self.trainer])
        with quiet(module, seed=self.options.seed), validating(self.trainer):
            value = self.settings.metric(module)  # type: ignore[misc]
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            fix = "return a float, less for better, e.g. minus the accuracy on validation data"
            raise OptionError(f"metric gave a {type(value).__name__}", "one number", fix) from None
