"""The Lightning callback: a convex start, surrogate-gradient training, and a refit of the readout at the end."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, fields
from typing import Any, NoReturn

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from .errors import OptionError, ProcessError, ReconstructionError
from .hidden.site import Sampler
from .initializer import ConvexInitializer, options_in
from .networks.calls.forward import Forward
from .options import Options, check_bool, check_names
from .read.loss_calls import Step
from .report.content import Report
from .stages.stream import Unpack
from .text_table import rate
from .training.lightning import (
    Callback,
    averages_weights,
    check_only_callback,
    check_trainer,
    find_network,
    is_last_step,
    keep_running,
    log_metrics,
    restore_checkpoint_weights,
    say,
    set_checkpoint_weights,
    validates_after_batch,
)
from .training.measure import Judgement
from .training.protect import Snapshot, check_optimizers
from .training.refit import Refits, Solve, SolveHistory
from .training.start_rule import explain_start
from .training.trainer_data import TrainerJudge
from .training.watch import Watch, check_aids

# Steps of a long run.  A plan of faster ones costs 6 to 12, and pays after 7 to about 60 (docs/evidence/steps.md).
_LONG = 100


class ReconstructionCallback(Callback):
    """Train in Lightning with faster steps, keep the best weights, and solve the readout at the end, on trained hidden layers.

    Networks that training alone teaches slowly, or not at all, get a start before the first step.  Validation, checkpoints and the
    network after training use the best of the started, trained and finished weights.  Training goes on from the trained ones.

    Weights are compared on the trainer's validation data, by the initializer's loss.  Scores of classes are multiplied
    by the factor that suits them best.  Under DDP the ranks decide alike.  With ``fast_dev_run`` nothing is solved.

    Args:
        initializer: options of the solves; default ``ConvexInitializer(...)`` with the options among these arguments, from
            ``step`` to ``progress``.  Without ``step``, ``forward``, ``unpack``, ``loss`` and ``readout`` they are read from
            ``training_step``, on a private copy; if it can't be read a warning says so, and the loss is the module's attribute
            ``loss_fn``, ``criterion`` or ``loss``, if there is one.  Refits keep hidden layers.  They solve the squared hinge, and
            the training loss from the trained readout on; validation data choose between the two, and the strength.  Their
            tolerance is at least 1e-4, their ``max_cost`` at most one epoch.
        net: name of the submodule that is the network; default the module itself, or its only part with neurons.
        dataloader: (input, target) batches to solve on; required if the training data have no indices.  Default: a separate loader
            over the training data set.
        metric: ``metric(module)`` gives a number, less for better, that weights are compared by in place of the validation
            loss.  It gets a private copy of the module, in evaluation mode: measure that copy, since the module itself is in
            training mode.  NaN stands for no judgement.  Default None.
            Without usable validation data 1,000 training samples are compared, and the start is not evaluated in place of
            trained weights.  Never use a test set.
        at_start: initialise before the first step, unless the run is resumed.  None (default) does so for networks over inputs
            that change over time, recurrent ones, and those with a hidden layer that does not spike, or that no gradient reaches.
            The callback prints the reason.  True also for others, False never.
        fit_val: solve the readout at the end on validation data too, after the last validation.  The log and the report say so.
            Default False, since checkpoints and ``trainer.validate`` judge by these data.
        best_weights: keep the best weights, and evaluate them until later ones are better.  Default True.  They include the
            running statistics of batch norms.  Pruned networks keep none.  With False validations evaluate the trained weights,
            and the end of the run those that it refits.
        damping: factor of the gradient that passes through recurrent weights to earlier spikes, above 0 to 1.  Scores do not
            change.  None (default) measures how much gradients grow on their way back, once before training, and takes the
            largest of 1, 1/2 and 1/4 at which they grow at most twofold.  snnTorch's default surrogate lets them grow a
            thousandfold.  Feed-forward networks have none.
        fast: take faster training steps with the same values and gradients but for rounding, see ``fast_steps``.  None (default)
            does so in runs of at least 100 steps, and leaves networks alone that can't; True warns of those; False never.  If the
            time loop is in ``training_step``, that runs by plans, but for one that reads ``batch_idx``, the trainer or a logger.
        **unknown: none; other names are refused, with the closest argument.

    Raises:
        OptionError: an invalid option; before training, a strategy that shards parameters, a second callback for the same network,
            or optimizers without the readout's parameters.
        DataError: before training, data that no second DataLoader can read.
        NetworkError: before training, no network, or one that can't be refitted.

    Loggers and ``trainer.callback_metrics`` get ``recon/trained_loss``, ``recon/loss``, ``recon/held`` and others: see the page of
    this class in the documentation.  Lightning's ``WeightAveraging`` may be used beside it: its averaged weights are evaluated, and
    the readout is solved for them after training.

    Example:
        >>> import lightning as L
        >>> from snn_recon_plugin import ReconstructionCallback
        >>> callback = ReconstructionCallback()
        >>> trainer = L.Trainer(max_epochs=10, callbacks=[callback], logger=False, enable_checkpointing=False)
        >>> callback.report is None  # until trainer.fit(module, train_loader, val_loader)
        True

    Under DDP the ranks share the samples of the start and of refits.  Rank 0 chooses hidden layers, on the same samples as one
    process would, and calibrates readouts that are not exact.  All ranks write the same bits.  With a loss that has kinks, or
    ``dataloader``, every rank solves on all samples.  Held-out training samples choose the strength of refits.

    Source: arXiv 2605.08022 solves a readout before or after training (CVX-SG, SG-CVX).
    """

    _refits: Refits | None  # None before training, and once a checkpoint was validated

    def __init__(
        self,
        initializer: ConvexInitializer | None = None,
        *,
        net: str | None = None,
        dataloader: Iterable[Any] | None = None,
        metric: Callable[[Any], Any] | None = None,
        at_start: bool | None = None,
        fit_val: bool = False,
        best_weights: bool = True,
        damping: float | None = None,
        fast: bool | None = None,
        # options: written by tests/signatures.py
        step: Step | None = None,
        test: Step | None = None,
        forward: Forward | None = None,
        unpack: Unpack | None = None,
        loss: object = None,
        readout: str = "auto",
        readout_layer: str | None = None,
        classes: int | None = None,
        hidden: str = "auto",
        witnesses: str | Sampler = "auto",
        n_candidates: float | int = 3.0,
        heterogeneous: bool | None = None,
        fit_loss: str = "auto",
        penalty: str = "ridge",
        strength: float | str = "auto",
        solver: str = "auto",
        tol: float = 1e-06,
        max_cost: float = 1.0,
        max_samples: int | None = None,
        max_memory: int | None = None,
        holdout: float = 0.2,
        write: str = "if_better",
        allow_tied: bool = False,
        seed: int = 0,
        progress: bool | None = None,
        # end of options
        **unknown: NoReturn,
    ) -> None:
        options = options_in(locals())
        check_names(unknown, list(inspect.signature(ReconstructionCallback).parameters)[:-1], "ReconstructionCallback")
        super().__init__()
        given = [field.name for field in fields(Options) if options[field.name] != field.default]
        if initializer is not None and given:
            found, fix = f"{' and '.join(given)} beside an initializer", "pass them to ConvexInitializer(...)"
            raise OptionError(found, "options in one place", fix)
        initializer = ConvexInitializer(**options) if initializer is None else initializer
        if not isinstance(initializer, ConvexInitializer):
            found = f"initializer of type {type(initializer).__name__}"
            raise OptionError(found, "a ConvexInitializer", "pass ReconstructionCallback(ConvexInitializer(...))")
        if metric is not None and not callable(metric):
            fix = "pass metric=lambda module: ..., less for better"
            raise OptionError(f"metric={metric!r}", "a function metric(module)", fix)
        check_bool("at_start", at_start, None)
        check_bool("fit_val", fit_val, False)
        check_bool("best_weights", best_weights, True)
        check_aids(damping, fast)
        self.initializer, self.net, self.dataloader, self.metric = initializer, net, dataloader, metric
        self.at_start, self.fit_val, self.best_weights = at_start, fit_val, best_weights
        self.damping, self.fast = damping, fast
        self._forget()

    def _forget(self) -> None:
        """Begin with the state of no run."""
        self._watch, self._refits = Watch(nn.Module()), None
        self._solves: list[Solve] = []
        self._history = SolveHistory()  # of the checkpoint from which the run begins
        self._resumed: dict[str, Any] = {}  # its state
        self._steps = 0  # of optimizers before the batch
        self._finishes_last = False  # after the last validation, on the weights that training leaves
        self._began = self._since = self._taken = 0.0  # seconds: start of training, and of an event of the callback's; of all these

    @property
    def reports(self) -> list[Report]:
        """Reports of all solves of the run, the start first if there was one, kept or not."""
        return [solve.report for solve in self._solves]

    @property
    def report(self) -> Report | None:
        """The last solve's report.

        ``report.undo()`` works during the validation that follows, and after training; training never sees what it undoes.
        """
        return self.reports[-1] if self.reports else None

    @property
    def state_key(self) -> str:
        """Distinguish callbacks for different networks in checkpoints."""
        return self._generate_state_key(net=self.net)

    # -- a run -----------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what can't work, and forget the last run."""
        if stage == "fit":
            check_trainer(trainer)
            self._forget()
            set_checkpoint_weights(trainer.strategy, self._evaluated)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check network, data and optimizers; then start, unless the run is resumed."""
        if trainer.fast_dev_run:
            return
        network = find_network(pl_module, self.net)
        check_only_callback(trainer, pl_module, self)
        self._began = self._since = time.perf_counter()
        self._watch.close()  # of a search for a learning rate, which trains before
        averages = averages_weights(trainer)  # they are evaluated, and finished
        self._finishes_last = self.fit_val or averages
        watch = self._watch = Watch(network, self.best_weights and not averages)
        if self._resumed:
            watch.load_state_dict(pl_module, self._resumed)
        watch.judge = judge = TrainerJudge(trainer, network, self.initializer, self.dataloader, self.metric)
        self._refits = refits = Refits(judge, self._history, self._solves)
        check_optimizers(trainer.optimizers, refits.readout)
        _check_fit_val(self.fit_val, judge)
        started = trainer.global_step == 0 and self._history.solves == 0 and self._start(trainer, refits)
        fast = False if self.fast is None and trainer.estimated_stepping_batches < _LONG else self.fast
        sites = watch.begin(damping=self.damping, fast=fast, fresh=not started)
        if sites:
            say(trainer, self.net, f"gradients through {', '.join(sites)} are multiplied by {watch.damping:g}")
        self._log(trainer, damping=watch.damping)
        self._resumed = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Prepare a step."""
        self._steps = trainer.global_step
        self._watch.before_step()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check the step; before a validation and after the run's last batch, choose weights."""
        if self._refits is None:
            return
        if trainer.global_step > self._steps:
            self._check_step(trainer)
        solves = is_last_step(trainer) and not self._finishes_last
        if solves or validates_after_batch(trainer):
            metrics = self._choose(trainer, self._refits, solves)
            shown = {name: value for name, value in metrics.items() if name.endswith("/heldout_after")}
            if shown:
                pl_module.log_dict(shown, prog_bar=True, logger=False)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Exchange the trained weights for those to evaluate."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._watch.swap_in()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Exchange the evaluated weights for the trained ones."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._watch.swap_out()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Refit once more if the run ended early; the evaluated weights stay in the network."""
        if self._refits is None:
            return
        if self._refits.history.solved_at != trainer.global_step:
            self._choose(trainer, self._refits, solves=not self._finishes_last)
        judged, origin = self._watch.best_judged, self._watch.origin
        if judged is not None:
            share = f"the callback took {100 * self._taken / (time.perf_counter() - self._began):.0f} % of the time"
            say(trainer, self.net, f"end: the best weights are {origin}, validation loss {judged.loss:.4f}; {share}")
        self._watch.swap_in()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Finish the weights that training leaves, if that is to be last: all callbacks have had their end of training."""
        if self._refits is None or not self._finishes_last or self._refits.history.solved_at == trainer.global_step:
            return
        try:
            solve = self._refits.finish(fit_val=self.fit_val)
        except ReconstructionError as error:
            if isinstance(error, ProcessError):
                raise
            rank_zero_warn(f"The readout was not solved after training.\n{error}")
            return
        self._log_solve(trainer, solve)
        fitted = ", on validation data too" if self.fit_val and solve.kept else ""
        say(trainer, self.net, f"finish{fitted}: {_held_out(solve.report)}{'' if solve.kept else ', not kept'}")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End the run."""
        if stage == "fit":
            self._watch.close()
            restore_checkpoint_weights(trainer.strategy)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the trained network after an error or an interrupt, from whatever hook."""
        if trainer.state.fn == "fit":
            if self._watch.running:
                self._watch.drop_refit()
            self.teardown(trainer, pl_module, "fit")

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save the trained weights, and all that a resumed run needs, beside the evaluated weights."""
        state = self._resumed
        if self._refits is not None:
            state = {**self._watch.state_dict(pl_module), "progress": asdict(self._refits.history)}
        if state:
            checkpoint[f"recon/{self.state_key}"] = state

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Read what the run goes on from; the checkpoint's own weights are already loaded."""
        state = dict(checkpoint.get(f"recon/{self.state_key}", {}))
        if trainer.state.fn != "fit":  # a validation of other weights, which no snapshot belongs to
            self._watch, self._refits, self._resumed = Watch(nn.Module()), None, {}
            return
        known = {each.name for each in fields(SolveHistory)}  # earlier versions kept more
        self._history = SolveHistory(**{name: value for name, value in state.get("progress", {}).items() if name in known})
        if self._refits is None:
            self._resumed = state
        elif "trained" in state:  # restored within a run, as after a search for a learning rate
            Snapshot.of_names(pl_module, state["trained"]).write()
            self._refits.history, self._watch.least = self._history, state["least"]

    def _evaluated(self) -> AbstractContextManager[None]:
        return self._watch.swapped_in()

    # -- the start, and the choice of weights ----------------------------------------------------------------------------

    def _start(self, trainer: Any, refits: Refits) -> bool:
        """Initialise before the first step if that is wanted, and protect the network; return True if the solve is kept."""
        reason = "asked for" if self.at_start else ""
        if self.at_start is None:
            reason = refits.judge.processes.broadcast_object(explain_start(refits.judge), torch.device("cpu"))
        if not reason:
            return False
        solve = refits.solve(refits.judge.measure(), start=True)
        report = solve.report
        try:
            self._log_solve(trainer, solve)
            kept = "training goes on from it" if solve.kept else "not kept, since it is no better than the network was"
            why = "" if self.at_start else f", as {reason}"
            say(trainer, self.net, f"start{why}: {_held_out(report)}; {kept}")
            self._watch.start(report.live, solve.judged, trainer.optimizers, smaller=solve.kept)
        except BaseException:
            if not report.undone:
                report.undo()
            raise
        return solve.kept

    def _choose(self, trainer: Any, refits: Refits, solves: bool) -> dict[str, float]:
        """Choose the weights to evaluate; return the metrics of a solve.  Training goes on without it if that fails."""
        watch, metrics = self._watch, dict[str, float]()
        if not solves and (trainer.global_step == 0 or not watch.best_weights):
            return metrics
        self._since = time.perf_counter()
        watch.drop_refit()

        def refit(before: Judgement) -> tuple[Judgement, bool]:
            solve = refits.solve(before)
            metrics.update(self._log_solve(trainer, solve))
            change = f"loss {solve.before.loss:.4f} -> {solve.after.loss:.4f}"
            say(trainer, self.net, f"refit: {change}{'' if solve.kept else ', not kept'}")
            return solve.judged, solve.kept

        try:
            trained, judged = watch.choose(refit if solves else None)
        except ReconstructionError as error:
            if isinstance(error, ProcessError):
                raise
            rank_zero_warn(f"The readout was not refitted after step {trainer.global_step}; training goes on.\n{error}")
            return {}
        if watch.improved and watch.held:
            keep_running(trainer)
        self._log(trainer, held=float(watch.held), trained_loss=trained.own, loss=judged.own)
        self._count_time()
        return metrics

    def _check_step(self, trainer: Any) -> None:
        """Go back to weights that were good if the loss is far above the solved network's."""
        self._since, share = time.perf_counter(), self._watch.protection.share
        if self._watch.after_step(trainer.optimizers):
            lost = "nearly all that was solved was lost; earlier weights restored"
            say(trainer, self.net, f"step {trainer.global_step}: {lost}")
        if self._watch.protection.share != share:
            self._log(trainer, step_share=self._watch.protection.share)
        self._count_time()

    # -- what a user sees ------------------------------------------------------------------------------------------------

    def _log_solve(self, trainer: Any, solve: Solve) -> dict[str, float]:
        seconds, share = self._count_time()
        return self._log(trainer, **solve.metrics(), seconds=seconds, share=share)

    def _log(self, trainer: Any, **metrics: float) -> dict[str, float]:
        return log_metrics(trainer, self.net, metrics)

    def _count_time(self) -> tuple[float, float]:
        """Count the time since ``self._since`` as the callback's; return its seconds, and the callback's share of all time."""
        now = time.perf_counter()
        seconds = now - self._since
        self._taken, self._since = self._taken + seconds, now
        return seconds, self._taken / (now - self._began)


def _check_fit_val(fit_val: bool, judge: TrainerJudge) -> None:
    """Refuse to fit validation data that are not there, or that processes share."""
    if fit_val and (judge.trainer.world_size > 1 or not judge.validates or judge.metric is not None):
        found = "fit_val=True in several processes" if judge.trainer.world_size > 1 else "fit_val=True without validation data"
        fix = "leave fit_val out, and call refit_(net, train_loader, val_loader) after training"
        raise OptionError(found, "one process, and one loader of validation data that no metric= replaces", fix)


def _held_out(report: Report) -> str:
    if math.isnan(report.solved.accuracy):
        return f"held-out loss {report.before.loss:.4g} -> {report.solved.loss:.4g}"
    return f"{rate(report.solved.accuracy, report.after.samples)} of {report.after.samples} {report.judged_on} right"
