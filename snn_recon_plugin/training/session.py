"""One run of a trainer with the callback: the start, two refits, and the choice of the weights to evaluate."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from ..errors import ProcessError, ReconstructionError
from ..stages.rates import rate
from .candidates import Snapshot
from .damping import Damping
from .hard_samples import HardSampler
from .lightning import broadcast, ends_epoch, is_last_step, keep_running, log_metrics, say, validates_after_batch
from .measure import Judgement
from .policy import Policy
from .protect import check_optimizers
from .refit import Progress, Refits, Solve
from .settings import Settings
from .trainer_sampler import explain_off, install, make_trainer_sampler, resume_trainer_sampler


class Session:
    """State of one run."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.solves: list[Solve] = []
        self.refits: Refits | None = None  # the network and its solves; None before training and after it
        self.policy: Policy | None = None  # the weights; kept after training, for a checkpoint
        self.progress = Progress()
        self.least = math.inf  # least loss of the trained weights so far
        self._damping: float | None = None  # factor of recurrent gradients; None before it is chosen
        self._sampler: HardSampler | None = None
        self._resumed: dict[str, Any] = {}  # state of the checkpoint from which the run begins
        self._aids = ExitStack()  # puts the trainer's own sampler back, and removes the damping
        self._steps = 0  # of optimizers before the batch
        self._began = self._taken = 0.0  # seconds: start of training, and of the callback since
        self._counted = -math.inf  # time until which the callback's seconds are counted

    # -- a run -----------------------------------------------------------------------------------------------------------

    def begin(self, trainer: Any, module: nn.Module, network: nn.Module) -> None:
        """Check network, data and optimizers; then start, unless the run is resumed."""
        self._began = time.perf_counter()
        self._aids.close()  # of a search for a learning rate, which trains before
        self.policy = policy = Policy(network, self.settings.average)
        if self._resumed:
            policy.load_state_dict(module, self._resumed)
        self.refits = refits = Refits(trainer, network, self.settings)
        policy.judge, policy.watch = refits.judge.measure, refits.judge.watch
        check_optimizers(trainer.optimizers, refits.readout)
        start = None
        if self.settings.at_start and trainer.global_step == 0 and self.progress.solves == 0:
            start = self._start(refits, policy)
        policy.begin_average()
        self._damp(refits, fresh=start is None)
        self._draw_hard(refits, start)
        if self.settings.fast:
            handle = refits.install_fast_steps()
            self._aids.callback(handle.remove)
        self._resumed = {}

    def before_batch(self, trainer: Any) -> None:
        """Prepare a step."""
        self.discard()
        self._steps = trainer.global_step
        if self.policy is not None:
            self.policy.before_step()

    def after_batch(self, trainer: Any) -> dict[str, float]:
        """Check the step; before a validation choose the weights; return the last metrics if a readout was solved.

        Refits come after the first epoch and at the end of the run.
        """
        if self.refits is None or self.policy is None:
            return {}
        if trainer.global_step > self._steps:
            self._check(self.refits, self.policy)
        refits = is_last_step(trainer) or (trainer.current_epoch == 0 and ends_epoch(trainer))
        if not refits and not validates_after_batch(trainer):
            return {}
        return self._evaluate(self.refits, self.policy, refits)

    def finish(self, trainer: Any) -> None:
        """Refit once more if the run ended early; the evaluated weights stay in the network."""
        if self.refits is None or self.policy is None:
            return
        if self.progress.solved_at != trainer.global_step:
            self._evaluate(self.refits, self.policy, solves=True)
        if self.policy.best_judged is not None:
            line = f"end: the best weights are {self.policy.origin}, validation loss {self.policy.best_judged.loss:.4f}"
            say(trainer, self.settings.net, line)
        self.policy.swap_in()

    def end(self) -> None:
        """Leave the network as it is from now on."""
        self._aids.close()
        self.refits = None

    def fail(self) -> None:
        """Leave the trained network after an error, unless the run has ended."""
        self.discard()
        self._aids.close()

    def discard(self) -> None:
        """Put the trained weights back and drop those chosen after the last epoch, whose report can't be undone any more."""
        if self.policy is None or self.refits is None:
            return
        self.policy.drop_refit()
        last = self.solves[-1] if self.solves else None
        if last is not None and not last.start:
            last.report.forget()

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Have the weights to evaluate in the network for a while."""
        with ExitStack() as stack:
            if self.policy is not None:
                stack.enter_context(self.policy.swapped_in())
            yield

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def state_dict(self, module: nn.Module) -> dict[str, Any]:
        """Return all that a run goes on from, beside the evaluated weights; weights by names in ``module``."""
        if self.policy is None:
            return self._resumed
        found = {**self.policy.state_dict(module), "least": self.least, "damping": self._damping, "progress": asdict(self.progress)}
        if self._sampler is not None:
            found["sampler"] = {"labels": self._sampler.labels, **self._sampler.state_dict()}
        return found

    def load_state_dict(self, trainer: Any, module: nn.Module, state: dict[str, Any]) -> None:
        """Resume from ``state_dict``; the checkpoint's own weights are already loaded."""
        if trainer.state.fn != "fit":  # a validation of other weights, which no snapshot belongs to
            self.policy, self._resumed = None, {}
            return
        if self.refits is None:
            self._resumed = state
        elif "trained" in state:  # restored within a run, as after a search for a learning rate
            Snapshot.of_names(module, state["trained"]).write()
        self.progress = Progress(**state.get("progress", {}))
        self.least, self._damping = state.get("least", math.inf), state.get("damping")

    # -- solves ----------------------------------------------------------------------------------------------------------

    def _start(self, refits: Refits, policy: Policy) -> Solve | None:
        """Initialise before the first step; return the solve if it is kept.

        The solved readout is evaluated, and training begins from the smaller one.
        """
        began, trainer = time.perf_counter(), refits.trainer
        solve = refits.solve(self.progress, policy.judge(), start=True)
        report = solve.report

        def write_smaller() -> None:
            report.write_smaller()
            broadcast(trainer, report.parameters)

        try:
            self._note(refits, solve, began, averaged=False)
            kept = "training goes on from it" if solve.kept else "not kept, since it is no better than the network was"
            say(trainer, self.settings.net, f"start: {_held_out(solve)}; {kept}")
            if solve.kept:
                if refits.judge.validates:
                    policy.hold(solve.after)
                policy.start(report.live, trainer.optimizers, write_smaller)
        except BaseException:
            if not report.undone:
                report.undo()
            raise
        return solve if solve.kept else None

    def _evaluate(self, refits: Refits, policy: Policy, solves: bool) -> dict[str, float]:
        """Choose the weights to evaluate; return the metrics of a solve.  Training goes on without it if that fails."""
        if not solves and (policy.average is None or policy.average.points == 1):
            return {}
        began, trainer, metrics = time.perf_counter(), refits.trainer, dict[str, float]()
        self.discard()

        def refit(before: Judgement) -> tuple[Judgement, bool]:
            self.progress = replace(self.progress, solved_at=trainer.global_step)
            solve = refits.solve(self.progress, before)
            metrics.update(self._note(refits, solve, began, averaged=policy.averaged))
            change = f"loss {solve.before.loss:.4f} -> {solve.after.loss:.4f}"
            say(trainer, self.settings.net, f"refit: {change}{'' if solve.kept else ', not kept'}")
            return solve.judged, solve.kept

        try:
            trained, judged = policy.choose(refit if solves else None, compares=refits.judge.validates)
        except ReconstructionError as error:
            if isinstance(error, ProcessError):
                raise
            rank_zero_warn(f"The readout was not refitted after step {trainer.global_step}; training goes on.\n{error}")
            return {}
        if trained.loss < self.least:
            self.least = trained.loss
            if policy.held:
                keep_running(trainer)
        self._log(refits, {"held": float(policy.held), "trained_loss": trained.own, "loss": judged.own})
        self._count(began)
        return metrics

    def _check(self, refits: Refits, policy: Policy) -> None:
        """Go back to weights that were good if the loss is far above the solved network's."""
        began, share, step = time.perf_counter(), policy.protection.share, refits.trainer.global_step
        if policy.after_step(refits.trainer.optimizers):
            lost = "nearly all that was solved was lost; earlier weights restored"
            say(refits.trainer, self.settings.net, f"step {step}: {lost}")
        if policy.protection.share != share:
            self._log(refits, {"step_share": policy.protection.share})
        self._count(began)

    # -- aids ------------------------------------------------------------------------------------------------------------

    def _damp(self, refits: Refits, *, fresh: bool) -> None:
        """Damp recurrent gradients by the factor given, or by the one that suits the present weights."""
        if self._damping is None:
            given = self.settings.damping
            self._damping = refits.choose_damping(fresh=fresh) if given is None else given
        damping = self._aids.enter_context(Damping(refits.network, self._damping))
        if self._damping < 1 and damping.sites:
            line = f"gradients through {', '.join(damping.sites)} are multiplied by {self._damping:g}"
            say(refits.trainer, self.settings.net, line)
        self._log(refits, {"damping": self._damping})

    def _draw_hard(self, refits: Refits, start: Solve | None) -> None:
        """Draw hard samples more often, where the training data allow it."""
        asked, state = self.settings.hard_samples, self._resumed.get("sampler")
        if asked is False or (start is None and state is None):
            return
        reason = explain_off(refits, asked=bool(asked))
        if not reason:
            self._sampler = resume_trainer_sampler(refits, state or {}) if start is None else make_trainer_sampler(refits, start)
            reason = "targets are no class index a sample"
        if self._sampler is not None:
            self._aids.callback(install(refits, self._sampler))
            line = f"training draws hard samples more often: {100 * self._sampler.keep:.0f} % of all a pass"
            say(refits.trainer, self.settings.net, line)
        elif asked:
            say(refits.trainer, self.settings.net, f"hard samples are not drawn: {reason}")

    # -- what a user sees ------------------------------------------------------------------------------------------------

    def _note(self, refits: Refits, solve: Solve, began: float, *, averaged: bool) -> dict[str, float]:
        """Keep the solve, and log it; return its metrics by the names that loggers show."""
        seconds, share = self._count(began)
        report, step = solve.report, refits.trainer.global_step
        self.progress = Progress(self.progress.solves + 1, report.program.strength, report.program.loss, step)
        self.solves.append(solve)
        return self._log(refits, {**solve.metrics(), "seconds": seconds, "share": share, "averaged": float(averaged)})

    def _log(self, refits: Refits, metrics: dict[str, float]) -> dict[str, float]:
        return log_metrics(refits.trainer, self.settings.net, metrics)

    def _count(self, began: float) -> tuple[float, float]:
        """Count the time since ``began`` as the callback's, once; return its seconds, and the callback's share of all time."""
        now = time.perf_counter()
        self._taken += now - max(began, self._counted)
        self._counted = now
        return now - began, self._taken / (now - self._began)


def _held_out(solve: Solve) -> str:
    """Return a start's results on held-out samples."""
    report = solve.report
    if math.isnan(report.solved.accuracy):
        return f"held-out loss {report.before.loss:.4g} -> {report.solved.loss:.4g}"
    return f"{rate(report.solved.accuracy, report.after.samples)} of {report.after.samples} held-out samples right"
