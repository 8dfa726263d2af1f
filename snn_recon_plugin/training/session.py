"""One run of a trainer with the callback: the start, two refits, and the choice of the weights to evaluate."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, fields, replace
from functools import partial
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from ..errors import ProcessError, ReconstructionError
from ..stages.report_content import ReportContent
from .aids import Aids
from .lightning import broadcast, ends_epoch, is_last_step, keep_running, log_metrics, say, validates_after_batch
from .protect import Protection, check_optimizers, clear_optimizer_state
from .refit import Progress, Refits, Solve
from .settings import Settings
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
    | ``aids`` | damping and sampler, in fields of their own | ``begin``; a checkpoint |
    | ``least`` | least loss of the trained weights so far | each evaluation; a checkpoint |
    | ``began`` | wall-clock second at which training began; None before | ``begin``, ``end`` |
    | ``taken`` | seconds that the callback took since, up to the second ``counted`` | each solve and evaluation |
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.solves: list[Solve] = []
        self.refits: Refits | None = None
        self.weights = WeightSnapshots(settings.average)
        self.protection = Protection()
        self.progress = Progress()
        self.aids = Aids()
        self.least = math.inf
        self.began: float | None = None
        self.taken, self.counted = 0.0, -math.inf

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
        self.aids.begin(trainer, self.refits, next((solve for solve in self.solves[:1] if solve.kept), None))
        if self.aids.factor is not None:
            self._log(trainer, {"damping": self.aids.factor})

    def before_batch(self, trainer: Any) -> None:
        """Drop what was evaluated, and remember weights whose step is to be shortened."""
        self.discard()
        self.protection.before_batch(trainer.global_step)

    def after_batch(self, trainer: Any) -> bool:
        """Check the step; before a validation choose the weights; return whether a readout was solved.

        Refits come after the first epoch and at the end of the run.
        """
        if self.refits is None:
            return False
        if trainer.is_last_batch and self.aids.sampler is not None:
            self.aids.sampler.end_epoch()  # which limit_train_batches may have cut short: a resumed run begins a new one
        if self.protection.after_batch(trainer.global_step):
            self.weights.update_average()
            if self.protection.due:
                self._check(trainer, self.refits)
        refits = is_last_step(trainer) or (trainer.current_epoch == 0 and ends_epoch(trainer))
        if not refits and not validates_after_batch(trainer):
            return False
        return self._evaluate(trainer, self.refits, refits)

    def finish(self, trainer: Any) -> None:
        """Refit once more if the run ended early; the evaluated weights stay in the network."""
        if self.refits is not None and self.progress.solved_at != trainer.global_step:
            self._evaluate(trainer, self.refits, solves=True)
        if self.refits is not None and self.weights.best is not None and self.weights.best.judged is not None:
            say(trainer, self.settings, f"end: {self._origin}, validation loss {self.weights.best.judged.loss:.4f}")
        self.weights.swap_in()

    def end(self) -> None:
        """Leave the network as it is from now on."""
        self.aids.release()
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
        return {**asdict(self.progress), **self.protection.state_dict(), "least": self.least, "damping": self.aids.factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from ``state_dict``."""
        self.progress = Progress(**{field.name: state[field.name] for field in fields(Progress)})
        self.protection.load_state_dict(state)
        self.least, self.aids.factor = state["least"], state["damping"]

    def weights_state(self, module: Any) -> dict[str, Any]:
        """Return what a checkpoint needs beside the evaluated weights, by names in ``module``; empty if nothing."""
        safe, found = self.protection.safe, self.weights.state_dict(module)
        if safe is not None:
            found["safe"] = safe.named(module)
        if self.aids.sampler is not None:
            found["sampler"] = {"labels": self.aids.sampler.labels, **self.aids.sampler.state_dict()}
        return found

    def load_weights_state(self, trainer: Any, module: Any, found: dict[str, Any]) -> None:
        """Restore the snapshots that ``weights_state`` saved; the checkpoint's own weights are already loaded."""
        if trainer.state.fn != "fit":  # a validation of other weights, which no snapshot belongs to
            self.weights, self.protection = WeightSnapshots(self.settings.average), Protection()
        elif self.refits is None:
            self.weights.load_state_dict(module, found)
            self.protection.safe = Snapshot.of_names(module, found["safe"]) if "safe" in found else None
            self.aids.resumed = found.get("sampler", {})
        elif "trained" in found:  # restored within a run, as after a search for a learning rate
            Snapshot.of_names(module, found["trained"]).write()

    # -- solves ----------------------------------------------------------------------------------------------------------

    def _start(self, trainer: Any, refits: Refits) -> None:
        """Initialise before the first step.  The solved readout is evaluated, and training begins from the smaller one."""
        began = time.perf_counter()
        self.discard()
        self.weights.save_trained(refits.network)
        solve = refits.solve(trainer, self.progress, refits.judge.measure(trainer), start=True)
        try:
            self._note(trainer, solve, began)
            kept = "training goes on from it" if solve.kept else "not kept, since it is no better than the network was"
            say(trainer, self.settings, f"start: {_held_out(solve)}; {kept}")
            if solve.kept:
                if refits.judge.validates:
                    self.weights.record(refits.network, solve.after)
                self._protect(trainer, refits, solve.report)
            self.weights.train_on()
        except BaseException:
            if not solve.report.undone:  # a start also writes leaks that are buffers, which no weight snapshot holds
                solve.report.undo()
            raise

    def _evaluate(self, trainer: Any, refits: Refits, solves: bool) -> bool:
        """Choose the weights to evaluate; return whether a readout was solved.  Training goes on without it if that fails."""
        weights = self.weights
        if not solves and (weights.average is None or weights.average.points == 1):
            return False
        began = time.perf_counter()
        self.discard()
        weights.save_trained(refits.network)
        try:
            kept = self._choose(trainer, refits, solves, began)
        except ReconstructionError as error:
            if isinstance(error, ProcessError):
                raise
            rank_zero_warn(f"The readout was not refitted after step {trainer.global_step}; training goes on.\n{error}")
            self.discard()
            weights.evaluate_trained()
            return False
        self._count(began)
        if kept and not weights.held:
            weights.evaluate_current()
        else:
            weights.swap_out()
        return solves

    def _choose(self, trainer: Any, refits: Refits, solves: bool, began: float) -> bool:
        """Write the best of trained, averaged, refitted and earlier weights; return whether a refit was kept."""
        weights, judge = self.weights, refits.judge
        measure = partial(judge.measure, trainer)
        trained = measure()
        judged, kept = weights.choose_average(trained, measure), False
        if solves:
            self.progress = replace(self.progress, solved_at=trainer.global_step)
            solve = refits.solve(trainer, self.progress, judged)
            kept, judged = solve.kept, solve.judged
            self._note(trainer, solve, began)
            change = f"loss {solve.before.loss:.4f} -> {solve.after.loss:.4f}"
            say(trainer, self.settings, f"refit: {change}{'' if kept else ', not kept'}")
        if judge.validates:
            judged = weights.choose_best(refits.network, judged, measure)
        if trained.loss < self.least:
            self.least = trained.loss
            if weights.held:
                keep_running(trainer)
        self._log(trainer, {"held": float(weights.held), "trained_loss": trained.own, "loss": judged.own})
        return kept

    def _protect(self, trainer: Any, refits: Refits, report: ReportContent) -> None:
        """Write the readout that training begins from, clear optimizers' memory of written parameters, and watch the next steps."""
        clear_optimizer_state(trainer.optimizers, report.parameters)
        solved = refits.judge.watch(trainer)
        report.write_smaller()
        if trainer.world_size > 1:
            broadcast(report.parameters)
        self.protection.begin(refits.network, solved.own, refits.judge.watch(trainer).own, solved.zero)

    def _check(self, trainer: Any, refits: Refits) -> None:
        """Go back to weights that were good if the loss is far above the solved network's."""
        began, share = time.perf_counter(), self.protection.share
        if not self.protection.check(refits.judge.watch(trainer).own, trainer.optimizers):
            self.weights.restart_average(refits.network)
            lost = "nearly all that was solved was lost; earlier weights restored"
            say(trainer, self.settings, f"step {trainer.global_step}: {lost}")
        if self.protection.share != share:
            self._log(trainer, {"step_share": self.protection.share})
        self._count(began)

    # -- what a user sees ------------------------------------------------------------------------------------------------

    @property
    def _origin(self) -> str:
        """Origin of the weights that are evaluated."""
        if self.weights.held:
            return "the best weights are earlier ones"
        if self.weights.evaluated is not None:
            return "the best weights are the last refit's"
        return "the best weights are the averaged ones" if self.weights.averaged else "the best weights are the trained ones"

    def _note(self, trainer: Any, solve: Solve, began: float) -> None:
        """Keep the solve, and log it."""
        seconds, share = self._count(began)
        self.progress = self.progress.after(solve, trainer.global_step)
        self.solves.append(solve)
        measured = {"seconds": seconds, "share": share, "averaged": float(self.weights.averaged)}
        self._log(trainer, {**solve.metrics(), **measured})

    def _log(self, trainer: Any, metrics: dict[str, float]) -> None:
        """Log metrics under the names of this run's network; what was not measured is left out."""
        log_metrics(trainer, self.settings.labelled({name: value for name, value in metrics.items() if not math.isnan(value)}))

    def _count(self, began: float) -> tuple[float, float]:
        """Count the time since ``began`` as the callback's, once; return its seconds, and the callback's share of all time."""
        assert self.began is not None
        now = time.perf_counter()
        self.taken += now - max(began, self.counted)
        self.counted = now
        return now - began, self.taken / (now - self.began)


def _held_out(solve: Solve) -> str:
    """Return a start's results on held-out samples."""
    report = solve.report
    if math.isnan(report.solved_accuracy):
        return f"held-out loss {report.loss_before:.4g} -> {report.solved_loss:.4g}"
    return f"{100 * report.solved_accuracy:.1f} % of {report.heldout} held-out samples right"
