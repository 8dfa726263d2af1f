"""The Lightning callback: a convex start, and refits of the readout between epochs of surrogate-gradient training."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any, NoReturn

from lightning_utilities.core.rank_zero import rank_zero_warn

from .errors import OptionError, ProcessError, ReconstructionError
from .hidden.samplers import Sampler
from .initializer import ConvexInitializer, options_in
from .networks.calls.forward import Forward
from .option_checks import check_bool, check_names
from .options import Options
from .report.report import Report
from .report.report_content import ReportContent
from .stages.loader import Unpack
from .stages.rates import rate
from .training.hard_samples import HardSampler
from .training.lightning import (
    Callback,
    check_alone,
    check_trainer,
    ends_epoch,
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
from .training.protect import check_optimizers
from .training.refit import Refits, Solve, SolveHistory
from .training.snapshots import Snapshot
from .training.trainer_data import TrainerJudge, explain_no_sampler, install_sampler, make_trainer_sampler, renewed_sampler
from .training.watch import Watch, check_aids

__all__ = ["ReconstructionCallback"]


class ReconstructionCallback(Callback):
    """Start a Lightning run from the convex solution, and refit the readout as the hidden layers learn.

    The initializer runs before the first step.  Validation, checkpoints and the network after training use the best of the
    solved, trained, averaged and refitted weights.  Training goes on from the trained ones.  The readout is solved again after
    the first epoch and at the end of the run.

    Weights are compared on the trainer's validation data, by the initializer's loss.  Scores of classes are multiplied
    by the factor that suits them best.  Under DDP the ranks decide alike.

    Args:
        initializer: options of the solves; default ``ConvexInitializer(...)`` with the options among these arguments, from
            ``forward`` to ``progress``, which it describes.  Without a loss, the module's attribute ``loss_fn``,
            ``criterion`` or ``loss`` is taken.  Refits keep hidden layers.  They solve the squared hinge, and the training loss
            from the trained readout on; validation data choose between the two, and the strength.  Their tolerance is at least
            1e-4, their ``max_cost`` at most one epoch.
        net: name of the submodule that is the network; default the module itself, or its only part with neurons.
        dataloader: (input, target) batches to solve on; required if the training data have no indices.  Default: a separate loader
            over the training data set.
        metric: ``metric(module)`` gives a number, less for better, that weights are compared by in place of the validation
            loss.  It gets a private copy of the module, in evaluation mode: measure that copy, since the module itself is in
            training mode.  NaN stands for no judgement.  Default None.
            Without usable validation data 1,000 training samples are compared, and the start is not evaluated in place of
            trained weights.  Never use a test set.
        at_start: initialise before the first step, unless the run is resumed.  Default True.
        average: decay of an exponential moving average (EMA) of the network's parameters, above 0 to 1; default 0.99, about 100
            steps, fewer early in a run; None for no average, and for no best weights.  The running statistics of batch norms
            belong to the weights; other buffers are not averaged.  Pruned networks keep no best weights.
        hard_samples: draw samples that the network does not decide by a large margin more often, see ``Report.sampler``.  The
            sampler replaces the random one of the trainer's loader while training lasts; the length of an epoch stays.  None
            (default) does so after a start, from 15,000 samples on, in a single process.  True also for fewer; False never.
        damping: factor of the gradient that passes through recurrent weights to earlier spikes, above 0 to 1.  Scores do not
            change.  None (default) measures how much gradients grow on their way back, once before training, and takes the
            largest of 1, 1/2 and 1/4 at which they grow at most twofold.  snnTorch's default surrogate lets them grow a
            thousandfold.  Feed-forward networks have none.
        fast: take faster training steps with the same values and gradients, see ``fast_steps``; default False.
        **unknown: none; other names are refused, with the closest argument.

    Raises:
        OptionError: an invalid option; before training, a strategy that shards parameters, a second callback for the same network,
            Lightning's ``WeightAveraging``, or optimizers without the readout's parameters.
        DataError: before training, data that no second DataLoader can read.
        NetworkError: before training, no network, or one that can't be refitted.

    Metrics, for loggers and in ``trainer.callback_metrics``; with ``net="a"`` their names are ``recon/a/held`` and so on:

    - at every comparison: ``recon/trained_loss`` of the trained weights, ``recon/loss`` of the evaluated ones, and
      ``recon/held``, 1 if these are earlier ones;
    - after every solve: ``recon/objective``, ``recon/relative_gap``, ``recon/heldout_before``, ``recon/heldout_after``,
      ``recon/judged_before``, ``recon/judged_after``, ``recon/kept``, ``recon/averaged``, ``recon/active_neurons``,
      ``recon/samples``, ``recon/seconds`` and ``recon/share`` (of the wall-clock time of training);
    - before training: ``recon/damping``;
    - whenever it changes: ``recon/step_share``, the share of its length that each step takes.

    A scheduler such as ``ReduceLROnPlateau`` should watch ``recon/trained_loss``: the evaluated weights do not change until
    training has passed the start.  ``EarlyStopping`` waits anew while the trained loss still falls.  Lines about the start, refits
    and the end go to the logger ``snn_recon_plugin``, and above the progress bar.

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

    Source: arXiv 2605.08022 solves a readout once, before or after training (CVX-SG, SG-CVX); refits in between are ours.
    """

    def __init__(
        self,
        initializer: ConvexInitializer | None = None,
        *,
        # options: written by tests/signatures.py
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
        net: str | None = None,
        dataloader: Iterable[Any] | None = None,
        metric: Callable[[Any], Any] | None = None,
        at_start: bool = True,
        average: float | None = 0.99,
        hard_samples: bool | None = None,
        damping: float | None = None,
        fast: bool = False,
        **unknown: NoReturn,
    ) -> None:
        options = options_in(locals())
        check_names(unknown, list(inspect.signature(ReconstructionCallback).parameters)[:-1])
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
        check_bool("at_start", at_start, True)
        check_bool("hard_samples", hard_samples, None)
        check_aids(0.99 if average is None else average, damping, fast)
        self.initializer, self.net, self.dataloader, self.metric = initializer, net, dataloader, metric
        self.at_start, self.average, self.hard_samples, self.damping, self.fast = at_start, average, hard_samples, damping, fast
        self._forget()

    def _forget(self) -> None:
        """Begin with the state of no run."""
        self._watch: Watch | None = None  # the weights; kept after training, for a checkpoint
        self._refits: Refits | None = None
        self._sampler: HardSampler | None = None
        self._history = SolveHistory()  # of the checkpoint from which the run begins
        self._resumed: dict[str, Any] = {}  # its state
        self._steps = 0  # of optimizers before the batch
        self._began = self._since = self._taken = 0.0  # seconds: start of training, and of an event of the callback's; of all these

    @property
    def reports(self) -> list[Report]:
        """Reports of all solves of the run, the start first if there was one, kept or not."""
        return [] if self._refits is None else [Report.of(solve.report) for solve in self._refits.solves]

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
        check_alone(trainer, pl_module, self)
        self._began = self._since = time.perf_counter()
        if self._watch is not None:
            self._watch.close()  # of a search for a learning rate, which trains before
        watch = self._watch = Watch(network, self.average)
        if self._resumed:
            watch.load_state_dict(pl_module, self._resumed)
        watch.judge = judge = TrainerJudge(trainer, network, self.initializer, self.dataloader, self.metric)
        self._refits = Refits(judge, self._history)
        check_optimizers(trainer.optimizers, self._refits.readout)
        start = None
        if self.at_start and trainer.global_step == 0 and self._history.solves == 0:
            start = self._start(trainer, watch, self._refits)
        sites = watch.begin(damping=self.damping, fast=self.fast, fresh=start is None)
        if sites:
            say(trainer, self.net, f"gradients through {', '.join(sites)} are multiplied by {watch.damping:g}")
        log_metrics(trainer, self.net, {"damping": watch.damping or 0.0})
        watch.aids.callback(self._draw_hard(judge, start))
        self._resumed = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Prepare a step."""
        self._steps = trainer.global_step
        if self._watch is not None and self._watch.running:
            self._discard_refit()
            self._watch.before_step()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check the step; before a validation, after the first epoch and after the run's last batch, choose weights."""
        if self._watch is None or not self._watch.running:
            return
        if trainer.global_step > self._steps:
            self._check_step(trainer, self._watch)
        solves = is_last_step(trainer) or (trainer.current_epoch == 0 and ends_epoch(trainer))
        if solves or validates_after_batch(trainer):
            metrics = self._choose(trainer, self._watch, solves)
            shown = {name: value for name, value in metrics.items() if name.endswith("/heldout_after")}
            if shown:
                pl_module.log_dict(shown, prog_bar=True, logger=False)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Exchange the trained weights for those to evaluate."""
        if self._watch is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._watch.swap_in()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Exchange the evaluated weights for the trained ones."""
        if self._watch is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._watch.swap_out()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Refit once more if the run ended early; the evaluated weights stay in the network."""
        watch, refits = self._watch, self._refits
        if watch is None or refits is None or not watch.running:
            return
        if refits.history.solved_at != trainer.global_step:
            self._choose(trainer, watch, solves=True)
        if watch.best_judged is not None:
            say(trainer, self.net, f"end: the best weights are {watch.origin}, validation loss {watch.best_judged.loss:.4f}")
        watch.swap_in()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End the run."""
        if stage == "fit":
            self._end(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the trained network after an error or an interrupt, from whatever hook."""
        if trainer.state.fn == "fit":
            self._discard_refit()
            self._end(trainer)

    def _end(self, trainer: Any) -> None:
        if self._watch is not None:
            self._watch.close()
        restore_checkpoint_weights(trainer.strategy)

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save the trained weights, and all that a resumed run needs, beside the evaluated weights."""
        state = self._resumed
        if self._watch is not None and self._refits is not None:
            state = {**self._watch.state_dict(pl_module), "history": asdict(self._refits.history)}
        if self._sampler is not None:
            state["sampler"] = {"labels": self._sampler.labels, **self._sampler.state_dict()}
        if state:
            checkpoint[f"recon/{self.state_key}"] = state

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Read what the run goes on from; the checkpoint's own weights are already loaded."""
        state = dict(checkpoint.get(f"recon/{self.state_key}", {}))
        if trainer.state.fn != "fit":  # a validation of other weights, which no snapshot belongs to
            self._watch, self._resumed = None, {}
            return
        self._history = SolveHistory(**state.get("history", {}))
        if self._watch is None or self._refits is None or not self._watch.running:
            self._resumed = state
        elif "trained" in state:  # restored within a run, as after a search for a learning rate
            Snapshot.of_names(pl_module, state["trained"]).write()
            self._refits.history, self._watch.least = self._history, state["least"]

    @contextmanager
    def _evaluated(self) -> Iterator[None]:
        """Have the weights to evaluate in the network for a while."""
        if self._watch is None:
            yield
        else:
            with self._watch.swapped_in():
                yield

    # -- the start, and the choice of weights ----------------------------------------------------------------------------

    def _start(self, trainer: Any, watch: Watch, refits: Refits) -> Solve | None:
        """Initialise before the first step; return the solve if it is kept.

        The solved readout is evaluated, and training begins from the smaller one.
        """
        solve = refits.solve(watch.judge.measure(), start=True)
        report = solve.report
        try:
            self._log_solve(trainer, solve, averaged=False)
            kept = "training goes on from it" if solve.kept else "not kept, since it is no better than the network was"
            say(trainer, self.net, f"start: {_held_out(report)}; {kept}")
            if solve.kept:
                watch.start(report, solve.after, trainer.optimizers, report.write_smaller)
        except BaseException:
            if not report.undone:
                report.undo()
            raise
        return solve if solve.kept else None

    def _choose(self, trainer: Any, watch: Watch, solves: bool) -> dict[str, float]:
        """Choose the weights to evaluate; return the metrics of a solve.  Training goes on without it if that fails."""
        refits, metrics = self._refits, dict[str, float]()
        if refits is None or not (solves or (watch.average is not None and watch.average.points > 1)):
            return metrics
        self._since = time.perf_counter()
        self._discard_refit()

        def refit(before: Judgement) -> tuple[Judgement, bool]:
            solve = refits.solve(before)
            metrics.update(self._log_solve(trainer, solve, averaged=watch.averaged))
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
        log_metrics(trainer, self.net, {"held": float(watch.held), "trained_loss": trained.own, "loss": judged.own})
        self._count_time()
        return metrics

    def _discard_refit(self) -> None:
        """Put the trained weights back and drop those chosen after the last epoch, whose report can't be undone any more."""
        if self._watch is None or self._refits is None or not self._watch.running:
            return
        self._watch.drop_refit()
        last = self._refits.solves[-1] if self._refits.solves else None
        if last is not None and not last.start:
            last.report.forget()

    def _check_step(self, trainer: Any, watch: Watch) -> None:
        """Go back to weights that were good if the loss is far above the solved network's."""
        self._since, share = time.perf_counter(), watch.protection.share
        if watch.after_step(trainer.optimizers):
            lost = "nearly all that was solved was lost; earlier weights restored"
            say(trainer, self.net, f"step {trainer.global_step}: {lost}")
        if watch.protection.share != share:
            log_metrics(trainer, self.net, {"step_share": watch.protection.share})
        self._count_time()

    def _draw_hard(self, judge: TrainerJudge, start: Solve | None) -> Callable[[], None]:
        """Draw hard samples more often, where the training data allow it; return the call that puts the loader back."""
        state, trainer = self._resumed.get("sampler"), judge.trainer
        if self.hard_samples is False or (start is None and state is None):
            return lambda: None
        reason = explain_no_sampler(judge, asked=bool(self.hard_samples))
        if not reason and start is not None:
            self._sampler = make_trainer_sampler(judge, start.report.hardness, start.indices)
            reason = "targets are no class index a sample"
        elif not reason and state is not None:
            self._sampler = renewed_sampler(judge, state["labels"], state["hardness"])
            self._sampler.load_state_dict(state)
        if self._sampler is None:
            if self.hard_samples:
                say(trainer, self.net, f"hard samples are not drawn: {reason}")
            return lambda: None
        remove = install_sampler(judge, self._sampler)
        say(trainer, self.net, f"training draws hard samples more often: {100 * self._sampler.keep:.0f} % of all a pass")
        return remove

    # -- what a user sees ------------------------------------------------------------------------------------------------

    def _log_solve(self, trainer: Any, solve: Solve, *, averaged: bool) -> dict[str, float]:
        """Log a solve; return its metrics by the names that loggers show."""
        seconds, share = self._count_time()
        return log_metrics(trainer, self.net, {**solve.metrics(), "seconds": seconds, "share": share, "averaged": float(averaged)})

    def _count_time(self) -> tuple[float, float]:
        """Count the time since ``self._since`` as the callback's; return its seconds, and the callback's share of all time."""
        now = time.perf_counter()
        seconds = now - self._since
        self._taken, self._since = self._taken + seconds, now
        return seconds, self._taken / (now - self._began)


def _held_out(report: ReportContent) -> str:
    """Return a start's results on held-out samples."""
    if math.isnan(report.solved.accuracy):
        return f"held-out loss {report.before.loss:.4g} -> {report.solved.loss:.4g}"
    return f"{rate(report.solved.accuracy, report.after.samples)} of {report.after.samples} held-out samples right"
