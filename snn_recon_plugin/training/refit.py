"""Solves during a Lightning run: the start, and refits of the readout on the present hidden layers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from ..distributed import SINGLE_PROCESS, SingleProcess
from ..errors import OptionError
from ..options import ALWAYS, IF_BETTER
from ..report.content import Report
from ..stages.initialize import check_network, initialize_network
from ..stages.run import REFIT
from ..stages.scores import is_lower
from .measure import Judgement
from .trainer_data import Batches, TrainerJudge, find_batch_size

_VERIFIED = 256  # samples on which a written readout is run again
_FEWEST_SAMPLES = 10  # samples of each process that shares them: fewer can't be held out
_VALIDATION_SAMPLES = 2000  # that choose the strength of a refit


@dataclass(frozen=True)
class SolveHistory:
    """Record of earlier solves for later ones; plain numbers, for checkpoints."""

    solves: int = 0  # seeds the next one
    solved_at: int = -1  # optimizer step of the last solve, also of one that failed; -1 before the first


class Solve(NamedTuple):
    """A finished solve."""

    report: Report
    start: bool  # before the first step; else a refit
    kept: bool
    before: Judgement
    after: Judgement

    @property
    def judged(self) -> Judgement:
        """Judgement of the weights that it left in the network."""
        return self.after if self.kept else self.before

    def metrics(self) -> dict[str, float]:
        """Return the measurements for loggers."""
        report = self.report
        return {
            "objective": report.certificate.primal,
            "relative_gap": report.certificate.relative_gap,
            "heldout_before": report.before.loss,
            "heldout_after": report.solved.loss,
            "judged_before": self.before.loss,
            "judged_after": self.after.loss,
            "kept": float(self.kept),
            "active_neurons": float(report.program.active_neurons),
            "samples": float(report.program.samples),
        }


class Refits:
    """Solves for one network.  They run on the trainer's data, once these have passed the checks of a first batch."""

    def __init__(self, judge: TrainerJudge, history: SolveHistory, solves: list[Solve]) -> None:
        batches = judge.samples(find_batch_size(judge.trainer.train_dataloader) or 1)
        check = partial(check_network, judge.net, batches, judge.options, judge.inspections, judge.shared)
        self.readout, can_share = judge.together(check)
        judge.try_validation()
        self.judge, self.history, self.solves = judge, history, solves
        # Processes share the samples of a solve, rather than each taking all.
        self._spread = self._agree(can_share and judge.trainer.world_size > 1 and judge.dataloader is None)

    def _agree(self, decision: bool) -> bool:
        return all(self.judge.processes.gather(decision))

    def solve(self, before: Judgement, *, start: bool = False) -> Solve:
        """Solve on an epoch's samples and write, and undo the write if it is not better; at a start also hidden layers.

        ``before`` is the judgement of the network as it is.  After an error or an interrupt the network is as before.
        """
        judge, step, shards = self.judge, self.judge.trainer.global_step, self._shards()
        if not start:
            self.history = replace(self.history, solved_at=step)
        report: Report | None = None
        try:
            with judge.processes.share_errors(ends=True):
                batches = judge.samples(None, self.history.solves, (shards.rank, shards.size))
                report = self._write_start(batches, shards) if start else self._write_refit(batches, shards)
                if judge.trainer.world_size > 1:
                    _refuse_reshaped(report)
            after = judge.measure()
            kept = (start and judge.initializer.write == ALWAYS) or self._accepts(report, before, after)
            if kept:
                judge.broadcast(report.parameters)
        except BaseException:
            if report is not None:
                report.undo()
            raise
        if not kept:
            report.undo()
        solve = Solve(report, start, kept, before, after)
        self.history = SolveHistory(self.history.solves + 1, step)
        self.solves.append(solve)
        return solve

    def finish(self, *, fit_val: bool) -> Solve:
        """Solve the readout for the weights in the network, and write it if its report says that it is better.

        For a time when nothing is compared any more: ``fit_val`` solves it on the validation data too.
        """
        judge = self.judge
        with judge.processes.share_errors(ends=True):
            batches = judge.samples(None, self.history.solves)
            options = replace(judge.options, write=IF_BETTER)
            validation = judge.first_validation(math.inf) or None
            report = initialize_network(
                judge.net, batches, options, REFIT, val_loader=validation, fit_val=fit_val, shared=judge.shared
            )
        judge.broadcast(report.parameters)
        solve = Solve(report, False, not report.kept_old, Judgement(report.before.compared), Judgement(report.solved.compared))
        self.history = SolveHistory(self.history.solves + 1, judge.trainer.global_step)
        self.solves.append(solve)
        return solve

    def _shards(self) -> SingleProcess:
        judge = self.judge
        enough = min(judge.count_epoch() or 0, judge.options.max_samples or math.inf) >= _FEWEST_SAMPLES * judge.trainer.world_size
        return judge.processes if self._spread and self._agree(enough) else SINGLE_PROCESS

    def _write_start(self, batches: Batches, shards: SingleProcess) -> Report:
        options = replace(self.judge.initializer, write=ALWAYS)  # in any case: the judge measures the written network
        report = initialize_network(self.judge.net, batches, options, processes=shards, shared=self.judge.shared)
        report.write_solved()
        return report

    def _write_refit(self, batches: Batches, shards: SingleProcess) -> Report:
        """Solve the readout; validation data choose the strength if there are any."""
        validation = self.judge.first_validation(_VALIDATION_SAMPLES)
        mode = replace(REFIT, verified_samples=_VERIFIED)
        return initialize_network(
            self.judge.net,
            batches,
            self.judge.options,
            mode,
            val_loader=validation or None,
            fit_val=False,
            processes=shards,
            shared=self.judge.shared,
        )

    def _accepts(self, report: Report, before: Judgement, after: Judgement) -> bool:
        """Return True if all ranks accept a solve: by validation, or by held-out training samples without it."""
        if self.judge.validates:
            return after.beats(before)
        return self._agree(is_lower(report.solved.compared, report.before.compared))


def _refuse_reshaped(report: Report) -> None:
    """Refuse a write that changed a parameter's shape: processes were set up to exchange gradients of the old one."""
    if any(parameter.shape != before.shape for parameter, before in report.replaced):
        found = "heterogeneous=True in several processes, for a hidden layer whose learnable leak is one for all units"
        fix = "build the layer's neuron with beta=torch.full((width,), 0.9)"
        raise OptionError(found, "a leak for each unit from the beginning", fix)
