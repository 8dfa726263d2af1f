"""One solve within a run: on which samples, whether it is kept, and what is said of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..initializer import ConvexInitializer
from ..networks import Forward
from ..report import Report
from ..run import Run
from .batches import refit_batches

__all__ = ["Refits", "metrics_of"]


_TOL = 1e-4  # relative gap of a refit: the held-out loss can't tell more, and the hidden layers will move anyway
_COMPARED = 256  # samples on which the written readout is run again


@dataclass(frozen=True)
class Refits:
    """Solves on a trainer's data.

    Args:
        initializer: of the start; refits take its options.
        keep: "if_better" or "always".
        dataloader: as for ``ReconstructionCallback``.
        unpack: likewise.
    """

    initializer: ConvexInitializer
    keep: str
    dataloader: Iterable[Any] | None
    unpack: Callable[[Any], tuple[Any, Any]] | None

    def check(self, trainer: Any, net: nn.Module) -> list[nn.Parameter]:
        """Refuses what a solve would refuse at its first batch; gives the readout's parameters."""
        batches = refit_batches(trainer, self.dataloader, self.unpack, 1, self.initializer.seed)
        with uncompiled():
            return Run(self._options(trainer, "keep", None, None), net).check(batches)

    def samples(self, trainer: Any) -> int:
        """How many samples the training data has."""
        loader: Any = trainer.train_dataloader if self.dataloader is None else self.dataloader
        try:
            return len(loader.dataset)
        except (AttributeError, TypeError):
            batches, size = trainer.num_training_batches, getattr(loader, "batch_size", None) or 1
            return int(batches * size) if math.isfinite(batches) else 0

    def solve(
        self, trainer: Any, net: nn.Module, hidden: str, *, samples: int, number: int, strength: float | None
    ) -> tuple[Report, bool]:
        """Solves and writes, and takes it back where it is not better.

        Args:
            trainer: of the run.
            net: the network.
            hidden: what is done to hidden layers.
            samples: how many to use.
            number: of the solve within the run; the samples are drawn by it.
            strength: of the penalty, from the last solve; None leaves it to the initializer.

        Returns:
            The report, and whether what was solved is in the net.
        """
        batches = refit_batches(trainer, self.dataloader, self.unpack, samples, self.initializer.seed + number)
        with uncompiled():
            report = self._options(trainer, hidden, samples, strength).initialize(net, batches)
        kept = self.keep == "always" or report.loss_after < report.loss_before
        if not kept:
            report.undo()
        return report, kept

    def _options(self, trainer: Any, hidden: str, samples: int | None, strength: float | None) -> ConvexInitializer:
        options = copy.copy(self.initializer)
        options.hidden, options.progress = hidden, False
        if hidden == "keep":
            options.warm_start, options.compared, options.tol = True, _COMPARED, max(options.tol, _TOL)
        options.forward, options.rounding = _in_precision(trainer, options.forward), _rounding(trainer)
        if samples is not None:
            options.max_samples = max(10, samples if options.max_samples is None else min(samples, options.max_samples))
        if strength is not None and isinstance(options.strength, str):
            options.strength = strength
        return options


def metrics_of(report: Report, kept: bool, seconds: float, share: float) -> dict[str, float]:
    """What a logger gets of a solve."""
    values = {
        "objective": report.certificate.primal,
        "relative_gap": report.certificate.relative_gap,
        "heldout_before": report.loss_before,
        "heldout_after": report.loss_after,
        "kept": float(kept),
        "active_neurons": float(report.active_neurons),
        "samples": float(report.samples),
        "seconds": seconds,
        "share": share,
    }
    return {f"recon/{name}": value for name, value in values.items()}


def _rounding(trainer: Any) -> float:
    """Relative difference of scores that is rounding alone, where the trainer's precision rounds to 16 bits on the way."""
    types = {"16": torch.float16, "bf16": torch.bfloat16}
    kind = types.get(str(trainer.precision).split("-", maxsplit=1)[0])
    return 0.0 if kind is None else 8 * torch.finfo(kind).eps


def _in_precision(trainer: Any, forward: Forward) -> Forward:
    """The forward as the trainer's precision has it, autocast included."""

    def run(net: nn.Module, inputs: Any) -> Any:
        with trainer.precision_plugin.forward_context():
            return forward(net, inputs)

    return run


@contextmanager
def uncompiled() -> Iterator[None]:
    """Hooks fire only in code that runs uncompiled, also where Lightning itself holds the compiled module."""
    stance = getattr(torch.compiler, "set_stance", None)
    if stance is None:
        yield
    else:
        with stance("force_eager"):
            yield
