"""One run of a trainer with the callback: the start, refits, and the choice of the weights to evaluate."""

from __future__ import annotations

import time
from dataclasses import asdict, fields
from functools import partial
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from ..errors import ProcessError, ReconstructionError
from ..report import Report
from .judge import Judge
from .lightning import find_end, find_position, log_metrics, validates_after_batch
from .protect import Protection, check_optimizers, clear_optimizer_state
from .refit import Refits, Solve
from .schedule import Position, Progress, share_of_samples
from .settings import Settings
from .shrink import shrink_readout
from .snapshots import Snapshot
from .weights import WeightSnapshots


class Session:
    """State of one run.

    | field | holds | set by |
    |---|---|---|
    | ``solves`` | all solves, and their reports | each solve |
    | ``refits`` | the network and its solves; None before training and after it | ``begin``, ``end`` |
    | ``weights`` | the weight snapshots, in four fields of their own | each step, evaluation, validation; a checkpoint |
    | ``protection`` | the watch over the steps after a write, in its own fields | each step and write; a checkpoint |
    | ``progress`` | what later solves need of earlier ones | each solve; a checkpoint |
    | ``began`` | wall-clock second at which training began; None before | ``begin``, ``end`` |
    | ``taken`` | seconds that the callback took since | each solve and evaluation |
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.solves: list[Solve] = []
        self.refits: Refits | None = None
        self.weights = WeightSnapshots(settings.average)
        self.protection = Protection()
        self.progress = Progress()
        self.began: float | None = None
        self.taken = 0.0

    # -- a run -----------------------------------------------------------------------------------------------------------

    def begin(self, trainer: Any, network: nn.Module) -> None:
        """Check network, data and optimizers; then start, unless the run is resumed."""
        self.weights.evaluate_current()
        self.began = time.perf_counter()
        self.refits = Refits.check(trainer, network, self.settings)
        check_optimizers(trainer.optimizers, self.refits.readout)
        if self.settings.at_start and trainer.global_step == 0 and self.progress.solves == 0:
            self._start(trainer, self.refits)
        self.weights.begin(network)
        self.protection.move()

    def before_batch(self, trainer: Any) -> None:
        """Drop what was evaluated, and remember weights whose step is to be shortened."""
        self.discard()
        self.protection.before_batch(trainer.global_step)

    def after_batch(self, trainer: Any) -> bool:
        """Check the step; before a validation choose the weights, and refit if it is time; return whether a readout was solved."""
        if self.refits is None:
            return False
        if self.protection.after_batch(trainer.global_step):
            self.weights.update_average()
            if self.protection.due:
                self._check(trainer, self.refits)
        position = find_position(trainer)
        if position is None and not validates_after_batch(trainer):
            return False
        return self._evaluate(trainer, self.refits, position)

    def finish(self, trainer: Any) -> None:
        """Refit once more if the run ended early; the evaluated weights stay in the network."""
        if self.refits is not None and self.progress.solved_at != trainer.global_step:
            self._evaluate(trainer, self.refits, find_end(trainer))
        self.weights.swap_in()

    def end(self) -> None:
        """Leave the network as it is from now on."""
        self.began, self.refits = self.began or time.perf_counter(), None

    def discard(self) -> None:
        """Put the trained weights back and drop those chosen after the last epoch, whose report can't be undone any more."""
        if self.began is not None and self.refits is None:  # the run has ended
            return
        self.weights.resume_training()
        last = self.solves[-1] if self.solves else None
        if last is not None and not last.start:
            last.report.forget()

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers to resume from; ``weights_state`` gives the weights."""
        return {**asdict(self.progress), **self.protection.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from ``state_dict``."""
        self.progress = Progress(**{field.name: state[field.name] for field in fields(Progress)})
        self.protection.load_state_dict(state)

    def weights_state(self, module: Any) -> dict[str, Any]:
        """Return what a checkpoint needs beside the evaluated weights, by names in ``module``; empty if nothing."""
        safe = self.protection.safe
        return {**self.weights.state_dict(module), **({} if safe is None else {"safe": safe.named(module)})}

    def load_weights_state(self, trainer: Any, module: Any, found: dict[str, Any]) -> None:
        """Resume from what ``weights_state`` put beside the weights of a checkpoint; they are in the module already."""
        if trainer.state.fn != "fit":  # a validation of other weights, which no snapshot belongs to
            self.weights, self.protection = WeightSnapshots(self.settings.average), Protection()
        elif self.refits is None:
            self.weights.load_state_dict(module, found)
            self.protection.safe = Snapshot.of_names(module, found["safe"]) if "safe" in found else None
        elif "trained" in found:  # restored within a run, as after a search for a learning rate
            Snapshot.of_names(module, found["trained"]).write()

    # -- solves ----------------------------------------------------------------------------------------------------------

    def _start(self, trainer: Any, refits: Refits) -> None:
        """Initialise before the first step."""
        began = time.perf_counter()
        self.discard()
        self.weights.save_trained(refits.network)
        solve = refits.solve(trainer, self.progress, start=True)
        try:
            self._note(trainer, solve, began)
            self.progress = self.progress.after_start(solve.kept)
            if solve.kept:
                self.weights.write_best_or_record(refits.network, solve.after if refits.judge.compares else None)
                self._protect(trainer, refits, solve.report)
                self.weights.hold_best()
            self.weights.train_on()
        except BaseException:
            if not solve.report.undone:  # a start also writes leaks that are buffers, which no weight snapshot holds
                solve.report.undo()
            raise

    def _evaluate(self, trainer: Any, refits: Refits, position: Position | None) -> bool:
        """Choose the weights to evaluate; return whether a readout was solved.  Training goes on without it if that fails.

        At position None no readout is solved.
        """
        settings, weights = self.settings, self.weights
        share = 0.0 if position is None else share_of_samples(position, self.progress, settings)
        last = position is not None and position.last
        if not share and (weights.average is None or weights.average.points == 1):
            return False
        if share or last:
            self.progress = self.progress.spend(share, trainer.global_step)
        began = time.perf_counter()
        self.discard()
        weights.save_trained(refits.network)
        try:
            kept = self._choose(trainer, refits, share, last, began)
        except ReconstructionError as error:
            if isinstance(error, ProcessError):
                raise
            rank_zero_warn(f"The readout was not refitted after step {trainer.global_step}; training goes on.\n{error}")
            self.discard()
            weights.evaluate_trained()
            return False
        if not share:
            self._count(began)
        if kept and not weights.held:
            weights.evaluate_current()
        else:
            weights.swap_out()
        return bool(share)

    def _choose(self, trainer: Any, refits: Refits, share: float, last: bool, began: float) -> bool:
        """Write the best of trained, averaged, refitted and earlier weights; return whether a refit was kept."""
        weights, judge = self.weights, refits.judge
        judged = self._average(trainer, judge, ask=bool(share) or last or not weights.averaged)
        kept = False
        if share:
            best = None if weights.best is None else weights.best.judged
            solve = refits.solve(trainer, self.progress, share=share, before=judged, best=best)
            self._note(trainer, solve, began)
            kept, judged = solve.kept, (solve.after if solve.kept else solve.before) if judge.compares else None
        if weights.average is not None:
            if judged is None and judge.compares:
                judged = judge.measure(trainer)
            weights.write_best_or_record(refits.network, judged)
            self._log(trainer, {"held": float(weights.held)})
        return kept

    def _average(self, trainer: Any, judge: Judge, *, ask: bool) -> float | None:
        """Write the average if it is better than the trained weights; return the judgement of the better ones, if made."""
        average = self.weights.average
        if average is None or average.points == 1:
            return None
        if not ask:
            average.snapshot.write()
            return None
        measure = partial(judge.measure, trainer, number=self.progress.solves)
        judged = self.weights.choose_average(measure, partial(judge.accepts_average, trainer))
        return judged if judge.compares else None

    def _protect(self, trainer: Any, refits: Refits, report: Report) -> None:
        """Clear optimizers' memory of written parameters, shrink the readout, and watch the next steps."""
        clear_optimizer_state(trainer.optimizers, report.parameters)
        solved = refits.judge.watch(trainer) if self.settings.protect else None
        shrink_readout(report)
        if solved is not None:
            self.protection.begin(refits.network, solved.loss, refits.judge.watch(trainer).loss, solved.zero)

    def _check(self, trainer: Any, refits: Refits) -> None:
        """Go back to weights that were good if the loss is far above the solved network's."""
        began, share = time.perf_counter(), self.protection.share
        if not self.protection.check(refits.judge.watch(trainer).loss, trainer.optimizers):
            self.weights.restart_average(refits.network)
        if self.protection.share != share:
            self._log(trainer, {"step_share": self.protection.share})
        self._count(began)

    def _note(self, trainer: Any, solve: Solve, began: float) -> None:
        """Keep the solve, and log it."""
        report = solve.report
        seconds, share = self._count(began)
        self.progress = self.progress.after_solve(report.strength, report.fit_loss, solve.kept, trainer.global_step)
        self.solves.append(solve)
        measured = {"seconds": seconds, "share": share, "averaged": float(self.weights.averaged)}
        self._log(trainer, {**solve.metrics(), **measured})

    def _log(self, trainer: Any, metrics: dict[str, float]) -> None:
        """Log metrics under the names of this run's network."""
        log_metrics(trainer, self.settings.labelled(metrics))

    def _count(self, began: float) -> tuple[float, float]:
        """Count the time since ``began`` as the callback's; return its seconds, and the callback's share of all time."""
        assert self.began is not None
        now = time.perf_counter()
        self.taken += now - began
        return now - began, self.taken / (now - self.began)
