"""One run of a trainer with the callback: the start, refits, and the choice of the weights to evaluate."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, fields, replace
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from ..errors import ReconstructionError
from ..report import Report
from .candidates import Candidates
from .judge import Judged
from .lightning import ProcessError, end_of, log_metrics, position_of
from .protect import StepLimiter, check_optimizers, clear_optimizer_state, step_scale
from .refit import Refits, Request, Solve, metrics_of
from .schedule import Position, Progress, Schedule
from .settings import Settings
from .snapshots import Snapshot
from .solves import Previous

__all__ = ["Session"]

_REFUSALS = 2  # solves in a row that were not kept before the strength is chosen again: a single one may be chance


class Session:
    """State of one run.

    | field | holds | set by |
    |---|---|---|
    | ``reports`` | reports of all solves | each solve |
    | ``refits`` | the network and its solves; None before training | ``begin`` |
    | ``candidates`` | all weight snapshots | each step, evaluation, validation; a checkpoint |
    | ``limiter`` | protection after a write | each step and write; a checkpoint |
    | ``progress`` | what later solves need of earlier ones | each solve; a checkpoint |
    | ``step`` | ``trainer.global_step`` before the batch | each batch |
    | ``began`` | time at which training began | ``begin`` |
    | ``seconds`` | time that the callback took | each solve and evaluation |
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.reports: list[Report] = []
        self.refits: Refits | None = None
        self.candidates = Candidates(settings.decay)
        self.limiter = self._limiter()
        self.progress = Progress()
        self.step = -1
        self.began = self.seconds = 0.0

    def _limiter(self, **state: float) -> StepLimiter:
        settings = self.settings
        return StepLimiter(settings.protect, settings.hidden_rate, settings.max_change, **state)

    # -- a run -----------------------------------------------------------------------------------------------------------

    def begin(self, trainer: Any, network: nn.Module) -> None:
        """Check network, data and optimizers; then start, unless the run is resumed."""
        self.began = time.perf_counter()
        self.candidates.resume()
        self.refits = Refits.check(trainer, network, self.settings)
        check_optimizers(trainer.optimizers, self.refits.readout)
        if self.settings.at_start and trainer.global_step == 0 and self.progress.solves == 0:
            self._start(trainer, self.refits)
        self.candidates.begin(network)

    def before_step(self, trainer: Any) -> None:
        """Drop what was evaluated, and remember weights whose step may be shortened."""
        self.candidates.discard()
        self.step = trainer.global_step
        if self.refits is not None:
            self.limiter.before_step(self.refits.network.parameters())

    def after_step(self, trainer: Any) -> bool:
        """Shorten the step; after an epoch's last batch, or the run's, refit; return whether a readout was solved."""
        stepped, self.step = trainer.global_step > self.step, trainer.global_step
        if self.refits is None:
            return False
        self.limiter.after_step(stepped, self.refits.readout)
        if stepped:
            self.candidates.update()
        position = position_of(trainer)
        if position is None:
            return False
        position = replace(position, seen=position.seen or self.settings.overwrites)
        return (position.last or position.seen) and self._evaluate(trainer, self.refits, position)

    def finish(self, trainer: Any) -> None:
        """Refit once more if the run ended early; the evaluated weights stay in the network."""
        if self.refits is not None and self.progress.solved_at != trainer.global_step:
            self._evaluate(trainer, self.refits, end_of(trainer))
        self.candidates.swap_in()

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers to resume from; the weights are in ``candidates``."""
        return {**asdict(self.progress), "since_write": self.limiter.done, "reach": self.limiter.scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from ``state_dict``."""
        self.progress = Progress(**{field.name: state[field.name] for field in fields(Progress)})
        self.limiter = self._limiter(done=state["since_write"], scale=state["reach"])

    def load_weights(self, trainer: Any, module: Any, found: dict[str, Any]) -> None:
        """Resume from what ``candidates.state_dict`` put beside the weights of a checkpoint; they are in the module already."""
        if trainer.state.fn != "fit":  # a validation of other weights, which no candidate belongs to
            self.candidates = Candidates(self.settings.decay)
        elif self.refits is None:
            self.candidates.load_state_dict(module, found)
        elif "trained" in found:  # restored within a run, as after a search for a learning rate
            Snapshot.of_names(module, found["trained"]).write()

    # -- solves ----------------------------------------------------------------------------------------------------------

    def _start(self, trainer: Any, refits: Refits) -> None:
        """Initialise before the first step."""
        began = time.perf_counter()
        self.candidates.open(refits.network.parameters())
        solved = refits.solve(trainer, Request(number=0, initial=True))
        self._note(trainer, solved, began)
        self.progress = self.progress.after_start(solved.kept)
        if solved.kept:
            self._protect(trainer, solved.report)
            self.candidates.hold(refits.network, solved.judged[1] if refits.judge.compares else None)
        self.candidates.accept()

    def _evaluate(self, trainer: Any, refits: Refits, position: Position) -> bool:
        """Choose the weights to evaluate; return whether a readout was solved.  Training goes on without it if that fails."""
        settings, candidates = self.settings, self.candidates
        schedule = Schedule(settings.max_share, settings.every_n_epochs, settings.at_end)
        share = schedule.samples(position, self.progress)
        if not (share or candidates.has_average):
            return False
        if share or position.last:
            self.progress = self.progress.spend(share, trainer.global_step)
        began = time.perf_counter()
        candidates.open(refits.readout if candidates.average is None else refits.network.parameters())
        try:
            kept = self._choose(trainer, refits, share, position.last, began)
        except ReconstructionError as error:
            if isinstance(error, ProcessError):
                raise
            rank_zero_warn(f"The readout was not refitted after step {trainer.global_step}; training goes on.\n{error}")
            candidates.reject()
            return False
        if not share:
            self.seconds += time.perf_counter() - began
        if settings.overwrites:
            candidates.accept()
        elif kept and not candidates.held:
            candidates.settle()
        else:
            candidates.swap_out()
        return bool(share)

    def _choose(self, trainer: Any, refits: Refits, share: float, last: bool, began: float) -> bool:
        """Write the best of trained, averaged, refitted and earlier weights; return whether a refit was kept."""
        candidates = self.candidates
        judged = self._average(trainer, refits, ask=bool(share) or last or not candidates.averaged)
        kept = False
        if share:
            solved = self._refit(trainer, refits, share, judged, began)
            kept, judged = solved.kept, solved.judged[solved.kept] if refits.judge.compares else None
        if candidates.average is not None:
            if judged is None and refits.judge.compares:
                judged = refits.judge.measure(trainer)
            candidates.hold(refits.network, judged)
            log_metrics(trainer, {"recon/held": float(candidates.held)})
        return kept

    def _average(self, trainer: Any, refits: Refits, *, ask: bool) -> Judged | None:
        """Write the average if it is better than the trained weights; return the judgement of the better ones, if made."""
        candidates = self.candidates
        judge = refits.judge
        number = self.progress.solves
        if candidates.average is None or not candidates.has_average:
            return None
        if not ask:
            candidates.average.snapshot.write()
            return None
        trained = judge.measure(trainer, number=number)
        candidates.average.snapshot.write()
        average = judge.measure(trainer, number=number)
        candidates.averaged = judge.accepts_average(trainer, average, trained)
        if not candidates.averaged:
            candidates.take_back()
        return (average if candidates.averaged else trained) if judge.compares else None

    def _refit(self, trainer: Any, refits: Refits, share: float, before: Judged | None, began: float) -> Solve:
        """Solve the readout on the hidden layers in the network."""
        progress = self.progress
        previous = Previous(progress.strength, progress.fit_loss, again=progress.refused >= _REFUSALS)
        request = Request(
            number=progress.solves,
            share=share,
            previous=None if math.isnan(progress.strength) else previous,
            before=before,
            best=None if self.candidates.best is None else self.candidates.best.judged,
        )
        solved = refits.solve(trainer, request)
        self._note(trainer, solved, began)
        if solved.kept and self.settings.overwrites:
            self._protect(trainer, solved.report)
        elif solved.kept:
            self.candidates.report = solved.report
        return solved

    def _protect(self, trainer: Any, report: Report) -> None:
        """Clear optimizers' memory of written parameters, and shorten the next steps."""
        clear_optimizer_state(trainer.optimizers, report.parameters)
        substituted = report.fit_loss != self.settings.initializer.criterion.make(report.num_steps).name
        self.limiter.begin(step_scale(report.exactness.label == "surrogate", substituted))

    def _note(self, trainer: Any, solved: Solve, began: float) -> None:
        """Keep the report, and log it."""
        now = time.perf_counter()
        self.seconds += now - began
        report = solved.report
        self.progress = self.progress.after_solve(report.strength, report.fit_loss, solved.kept, trainer.global_step)
        self.reports.append(report)
        metrics = metrics_of(solved, now - began, self.seconds / (now - self.began))
        metrics["recon/averaged"] = float(self.candidates.average is not None and self.candidates.averaged)
        log_metrics(trainer, metrics)
