"""One solve within a run: its samples, and the decision to keep it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from ..pipeline import NetworkCheck
from ..report import Report
from .data import batch_size, epoch_samples, training_batches
from .judge import Judge, Judged
from .lightning import agree, all_agree, broadcast, in_precision, uncompiled
from .settings import HELD_OUT, Settings
from .solves import LEAST, Previous, Solver

__all__ = ["Refits", "Request", "Solve", "metrics_of"]

_MERGED, _VALUES = 4, 2**19  # most batches run at once, and the values of a layer that fit into a processor's cache


@dataclass(frozen=True)
class Request:
    """One solve.

    Args:
        number: of the solve in the run; seeds the draw of its samples.
        initial: the start, which may change hidden layers too; else a refit.
        share: share of an epoch's samples to use.
        previous: the last solve; None to choose the strength as the initializer does.
        before: judgement of the network as it is; None to judge it now.
        best: judgement of the best weights so far.
    """

    number: int
    initial: bool = False
    share: float = 1.0
    previous: Previous | None = None
    before: Judged | None = None
    best: Judged | None = None


class Solve(NamedTuple):
    """A finished solve: its report, whether it was kept, and the judgements before and after it."""

    report: Report
    kept: bool
    judged: tuple[Judged, Judged]


@dataclass(frozen=True)
class Refits:
    """Solves for one network, which the checks before training have accepted.

    Args:
        settings: of the run.
        network: the network.
        readout: its readout's parameters.
        spread: processes share the samples of a refit, rather than each taking all.
        merged: number of the trainer's batches that are run at once.
        judge: compares the network before and after a solve.
    """

    settings: Settings
    network: nn.Module
    readout: list[nn.Parameter]
    spread: bool
    merged: int
    judge: Judge

    @classmethod
    def check(cls, trainer: Any, network: nn.Module, settings: Settings) -> Refits:
        """Refuse what a solve would refuse at its first batch.

        Raises:
            ReconstructionError: network or data can't be used.
        """
        initializer = settings.initializer
        size = batch_size(trainer.train_dataloader) or 1
        batches = training_batches(trainer, settings, size, initializer.seed)
        solver = Solver.of(network, initializer, in_precision(trainer, initializer.call))
        checked, error = None, None
        try:
            with uncompiled():
                checked = solver.check(batches)
        except Exception as caught:
            error = caught
        agree(trainer, error)
        assert checked is not None
        merged = _choose_merged(trainer, settings, solver, checked, size)
        judge = Judge(settings, solver)
        judge.choose(trainer)
        spread = checked.can_spread and trainer.world_size > 1 and settings.dataloader is None
        return cls(settings, network, checked.parameters, all_agree(trainer, spread), merged, judge)

    def solve(self, trainer: Any, request: Request) -> Solve:
        """Solve and write, and undo the write if it is not better.

        Raises:
            ReconstructionError: the solve failed, in this or another process; nothing is written then.
            Exception: from data, network or judge; nothing is written then.
        """
        before = self.judge.measure(trainer) if request.before is None else request.before
        report, error = None, None
        count = epoch_samples(trainer, self.settings.dataloader)
        samples = None if request.share >= 1 or count is None else max(LEAST, int(request.share * count))
        # Every process needs enough samples to hold some out; a start is solved on all samples in each.
        enough = (samples or count or 0) // trainer.world_size >= LEAST
        spread = self.spread and not request.initial and all_agree(trainer, enough)
        try:
            with uncompiled():
                report = self._write_solution(trainer, request, samples, trainer.world_size if spread else 1)
        except Exception as caught:
            error = caught
        try:
            agree(trainer, error)  # a solve that fails in one process is kept in none
            after = self.judge.measure(trainer)
        except Exception:
            if report is not None:
                report.undo()
            raise
        assert report is not None
        kept = self.judge.accepts(trainer, report, before, after, request.best)
        if not kept:
            report.undo()
        elif trainer.world_size > 1:
            broadcast(report.parameters)
        return Solve(report, kept, (before, after))

    def _write_solution(self, trainer: Any, request: Request, samples: int | None, processes: int) -> Report:
        """Solve on samples drawn for this request, shared by so many processes."""
        initializer = self.settings.initializer
        process = (trainer.global_rank, processes) if processes > 1 else (0, 1)
        seed = initializer.seed + request.number
        batches = training_batches(trainer, self.settings, samples, seed, process=process, merged=self.merged)
        solver = Solver.of(
            self.network,
            initializer,
            in_precision(trainer, initializer.call),
            hidden=initializer.hidden if request.initial else "keep",
            verify_all=self.judge.kind == HELD_OUT,
            samples=samples,
            previous=request.previous,
            processes=processes,
        )
        return solver.solve(batches)


def _choose_merged(trainer: Any, settings: Settings, solver: Solver, checked: NetworkCheck, size: int) -> int:
    """Return how many batches to run at once, which saves calls if the network takes larger batches.

    Without gradients such a batch takes less memory than a batch of training, which keeps every step.
    """
    merged = min(_MERGED, checked.task.net_map.num_steps, _VALUES // (size * checked.widest)) if settings.dataloader is None else 1
    accepted = merged > 1
    if accepted:
        larger = training_batches(trainer, settings, merged * size, settings.initializer.seed, merged=merged)
        with uncompiled():
            accepted = solver.accepts(larger)
    return merged if all_agree(trainer, accepted) else 1  # loaders may differ between processes


def metrics_of(solved: Solve, seconds: float, share: float) -> dict[str, float]:
    """Return the metrics of a solve for loggers; ``share`` is the callback's part of the run's wall-clock time."""
    report, (before, after) = solved.report, solved.judged
    values = {
        "objective": report.certificate.primal,
        "relative_gap": report.certificate.relative_gap,
        "heldout_before": report.loss_before,
        "heldout_after": report.loss_after,
        "kept": float(solved.kept),
        "active_neurons": float(report.active_neurons),
        "samples": float(report.samples),
        "seconds": seconds,
        "share": share,
    }
    if not math.isnan(before.value):
        values |= {"judged_before": before.value, "judged_after": after.value}
    return {f"recon/{name}": value for name, value in values.items()}
