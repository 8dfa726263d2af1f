"""The Lightning callback: a convex start, and refits of the readout between epochs of surrogate training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from .arguments import one_of, share, whole
from .errors import OptionError, ReconstructionError
from .initializer import ConvexInitializer
from .report import Report
from .training import (
    AUTO,
    HELD_OUT,
    START,
    VALIDATION,
    Budget,
    Callback,
    Evaluation,
    Handover,
    Judged,
    ProcessError,
    Refits,
    Solve,
    check_alone,
    check_namespaces,
    check_optimizers,
    check_trainer,
    forget,
    metrics_of,
    network_of,
    reach_after,
)

__all__ = ["ReconstructionCallback"]

KEEP, SWAP = ("if_better", "always"), ("evaluate", "overwrite")
_REFUSALS = 2  # solves in a row that were not kept, after which the strength is chosen again: one alone says little of it


class ReconstructionCallback(Callback):
    """Starts a Lightning run from the convex solution, and refits the readout as the hidden layers learn.

    Before the first step the initializer runs as it is.  After the last batch of an epoch, ahead of its validation, the readout is
    solved again on the hidden layers as they are by then.  Training itself is as you wrote it, but for what ``swap``,
    ``hidden_rate`` and ``max_change`` say: after a start, or an overwrite, steps are shorter than the optimizer's.

    Args:
        initializer: what to solve and how; default ``ConvexInitializer(hidden="reconstruct")``.  Refits take its options with
            ``hidden="keep"``, a tolerance of at least 1e-4, a ``max_cost`` of at most half an epoch, and the last solve's strength
            and loss; after two in a row that were not kept its strength is chosen again near the last.
        at_start: whether to initialise before the first step; never on a run that is resumed.  Default True.
        every_n_epochs: refit after every so many epochs; 0 never.  Default 1.
        at_end: whether to refit after the last epoch, on as many samples as the budget allows.  Default True.
        keep: "if_better" (default) keeps what was solved only if it is better by ``judge``; "always" keeps it.
        judge: for "if_better", what is compared.  "validation": the initializer's loss on the trainer's validation data, which must
            fall, and with classes the accuracy, which must not; batches are taken apart by ``unpack``.  "held_out": the loss on
            training samples which the solve did not see, but the trained readout did, to its advantage.  "auto" (default):
            validation data where there are any that can be used, else held-out samples.  ``judge(module)``: a number of your own,
            less for better, NaN for not at all.  Validation data and a function are asked before and after each solve, and of
            the average, which ``max_share`` does not count, and the mean over processes decides.  None of them may be a test set.
        swap: "evaluate" (default): the net has the refitted readout and the averaged weights from the end of an epoch to the next
            batch, and after training, so validation and checkpoints do, while training goes on with the trained ones;
            "overwrite": training goes on from the refitted readout, and nothing is averaged.
        net: name of the submodule that is the network; default the module itself, or its only part with neurons.
        dataloader: (input, target) batches to solve on; needed where the training loader's data has no indices.  Default: a
            loader of the callback's own over the training data set.
        unpack: ``unpack(batch)`` gives (input, target), for batches that are something else; default the
            initializer's.
        max_share: share of the run's epochs that refits may cost, counted in samples and not by the clock, so that a run can be
            repeated bit for bit; default 0.1.  Early refits and the last one come first: in a run of 15 epochs they follow
            epochs 1, 7 and 15.  A start is made up for by those in between: then they follow epochs 1 and 15.  1.0 allows one
            after every epoch.
        protect: for how many optimizer steps after a write steps are shortened, and for a quarter as many again ever less; default
            200, None for the rest of the run, 0 not at all.
        hidden_rate: how much of each step hidden parameters take meanwhile, above 0 to 1; default 0.3, reached
            gradually over the first 50 steps.
        max_change: how far a weight matrix or kernel may move in a step meanwhile, as a share of its Frobenius norm, above 0 to 1;
            default 0.001, whatever the optimizer; half as far where scores come from spiking or resetting neurons, a quarter
            where the squared hinge was solved for them in the place of cross-entropy.  Ten times as far after that.  1.0
            hardly ever shortens a step.
        average: decay, above 0 to 1, of an exponential moving average of the network's parameters over optimizer steps, which is
            evaluated in place of the trained ones where ``keep`` says so: it is compared at every refit, at the end of the run,
            and after each epoch until it is better.  Where validation data judge, what is worse than the best that was
            evaluated before, by more than two standard errors, does not take its place.  Buffers, such as running statistics,
            stay as they are, and a network with such has the last evaluated.  Default 0.99, that is some 100 steps, fewer early
            in a run; None for neither.

    Raises:
        OptionError: an option that is none of those above; and before training, a strategy that shards parameters.
        DataError: before training, data that can't be read a second time.
        NetworkError: before training, no network, or none that can be refitted.

    Metrics at the logger and in ``trainer.callback_metrics`` after every solve: ``recon/objective``, ``recon/relative_gap``,
    ``recon/heldout_before``, ``recon/heldout_after``, ``recon/kept``, ``recon/averaged``, ``recon/active_neurons``,
    ``recon/samples``, ``recon/seconds`` and ``recon/share`` (of the wall-clock since training began); where validation data or a
    function judge, ``recon/judged_before`` and ``recon/judged_after``; with an average, after every epoch, ``recon/held``: 1 where
    what was evaluated before still is.  ``report`` is the last report.

    Example:
        >>> import lightning as L
        >>> from snn_recon_plugin import ReconstructionCallback
        >>> callback = ReconstructionCallback(max_share=0.2)
        >>> trainer = L.Trainer(max_epochs=10, callbacks=[callback], logger=False, enable_checkpointing=False)
        >>> callback.report is None  # until trainer.fit(module, train_loader, val_loader)
        True

    Under DDP refits of exact readouts with smooth losses are spread: each process runs its own part of the samples through the
    net, and all solve one program together.  The start, and other readouts, are solved on all samples in every process.  Either
    way the same bits are written in all.

    Source: arXiv 2605.08022, where a readout is solved once before or after training (CVX-SG, SG-CVX); refits in between are ours.
    """

    def __init__(
        self,
        initializer: ConvexInitializer | None = None,
        *,
        at_start: bool = True,
        every_n_epochs: int = 1,
        at_end: bool = True,
        keep: str = "if_better",
        judge: str | Callable[[Any], float] = AUTO,
        swap: str = "evaluate",
        net: str | None = None,
        dataloader: Iterable[Any] | None = None,
        unpack: Callable[[Any], tuple[Any, Any]] | None = None,
        max_share: float = 0.1,
        protect: int | None = 200,
        hidden_rate: float = 0.3,
        max_change: float = 1e-3,
        average: float | None = 0.99,
    ) -> None:
        super().__init__()
        if initializer is not None and not isinstance(initializer, ConvexInitializer):
            found = f"initializer of type {type(initializer).__name__}"
            raise OptionError(found, "a ConvexInitializer", "pass ReconstructionCallback(ConvexInitializer(...))")
        self.initializer = ConvexInitializer(hidden="reconstruct") if initializer is None else initializer
        self.at_start, self.at_end = bool(at_start), bool(at_end)
        self.every_n_epochs = whole("every_n_epochs", every_n_epochs, 0)
        self.keep, self.swap = one_of("keep", keep, KEEP), one_of("swap", swap, SWAP)
        self.net, self.dataloader = net, dataloader
        self.unpack = self.initializer.unpack if unpack is None else unpack
        self.max_share = share("max_share", max_share, 10.0, 0.1)
        self.protect = None if protect is None else whole("protect", protect, 0)
        self.hidden_rate = share("hidden_rate", hidden_rate, 1.0, 0.3)
        self.max_change = share("max_change", max_change, 1.0, 1e-3)
        self.average = None if average is None else share("average", average, 1.0, 0.99)
        self.judge = judge if callable(judge) else one_of("judge", judge, (AUTO, HELD_OUT, VALIDATION))
        self._refits = Refits(self.initializer, self.keep, dataloader, self.unpack, judge)
        self._reset()

    def _reset(self) -> None:
        """Nothing has been solved yet."""
        self.reports: list[Report] = []
        self._network: nn.Module | None = None
        self._readout: list[nn.Parameter] = []
        self._spread = False
        self._handover = Handover(self.protect, self.hidden_rate, self.max_change)
        self._shown = Evaluation(self.average if self.swap == "evaluate" else None)
        self._solves, self._spent, self._ahead = 0, 0.0, 0.0
        self._strength, self._fit_loss, self._refused = math.nan, "", 0
        self._step = self._solved_at = -1
        self._began = self._seconds = 0.0

    @property
    def report(self) -> Report | None:
        """The last solve's report."""
        return self.reports[-1] if self.reports else None

    @property
    def state_key(self) -> str:
        """Tells two callbacks in one trainer apart in checkpoints."""
        return self._generate_state_key(net=self.net)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """A run begins; a checkpoint's state, if there is one, comes after this."""
        if stage == "fit":
            check_namespaces(trainer, pl_module)
            check_trainer(trainer)
            self._reset()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Checks network, data and optimizers; then the start, unless the run is resumed."""
        self._began = time.perf_counter()
        if trainer.fast_dev_run:
            return
        self._shown.resume(pl_module)
        self._network = network_of(pl_module, self.net)
        check_alone(trainer, pl_module, self)
        self._readout, self._spread = self._refits.check(trainer, self._network)
        check_optimizers(trainer.optimizers, self._readout)
        if self.at_start and trainer.global_step == 0 and self._solves == 0:
            self._start(trainer, self._network)
        self._shown.begin(pl_module, self._network)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A step is about to be taken: training goes on from the trained weights, and steps after a write are shortened."""
        self._shown.end()
        self._step = trainer.global_step
        if self._network is not None:
            self._handover.before_step(self._network.parameters())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After an epoch's last batch, or the run's, the refit, ahead of validation."""
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        self._handover.after_step(stepped, self._readout)
        if stepped:
            self._shown.follow()
        stops = 0 < trainer.max_steps <= trainer.global_step
        if self._network is None or not (trainer.is_last_batch or stops):
            return
        epochs = trainer.current_epoch + 1
        last = stops or epochs == trainer.max_epochs
        if last or self._is_seen(trainer, epochs):
            regular = self._is_seen(trainer, epochs) and bool(self.every_n_epochs and epochs % self.every_n_epochs == 0)
            if self._evaluate(trainer, self._network, regular or (last and self.at_end), last):
                pl_module.log("recon/heldout_after", self.reports[-1].loss_after, prog_bar=True, logger=False)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """A validation within an epoch sees the average, where that was better when it was last asked."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._network is not None:
            self._shown.glimpse(self._network)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """A last refit where the run ended early.  What was refitted stays."""
        if self._network is not None and self._solved_at != trainer.global_step:
            self._evaluate(trainer, self._network, due=self.at_end, last=True)
        self._shown.finish()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """A run that is interrupted leaves the trained net."""
        self._shown.end()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, to go on with."""
        return {
            "solves": self._solves,
            "spent": self._spent,
            "ahead": self._ahead,
            "strength": self._strength,
            "fit_loss": self._fit_loss,
            "refused": self._refused,
            "since_write": self._handover.done,
            "reach": self._handover.share,
            "solved_at": self._solved_at,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self._solves, self._spent, self._strength = state_dict["solves"], state_dict["spent"], state_dict["strength"]
        self._ahead, self._fit_loss, self._refused = state_dict["ahead"], state_dict["fit_loss"], state_dict["refused"]
        done, reach = state_dict["since_write"], state_dict["reach"]
        self._handover = Handover(self.protect, self.hidden_rate, self.max_change, done, reach)
        self._solved_at = state_dict["solved_at"]

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """The weights of the checkpoint are those that are evaluated; the trained ones go beside them."""
        found = self._shown.checkpoint(pl_module)
        if found:
            checkpoint[f"recon/{self.state_key}"] = found

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Training goes on with the trained weights."""
        if trainer.state.fn != "fit":
            self._shown.forget()
        elif self._network is None:  # else within a run, as a search for a learning rate does, which has changed nothing here
            self._shown.restore(dict(checkpoint.get(f"recon/{self.state_key}", {})))

    def _is_seen(self, trainer: Any, epochs: int) -> bool:
        """Whether anything looks at a readout that is refitted now: training itself, or a validation."""
        every = trainer.check_val_every_n_epoch
        return self.swap == "overwrite" or not trainer.enable_validation or every is None or epochs % every == 0

    def _start(self, trainer: Any, net: nn.Module) -> None:
        """The initializer as it is, before the first step."""
        began = time.perf_counter()
        self._shown.lend(net.parameters())
        solve = self._refits.solve(trainer, net, self.initializer.hidden, part=1.0, number=0, strength=None)
        self._note(trainer, solve, began)
        self._ahead = START
        if solve.kept:
            self._written(trainer, solve.report)
            self._shown.hold(net, solve.judged[1] if self._refits.compares else None)
        else:
            self._strength = math.nan  # it was of hidden layers that are gone
        self._shown.give()

    def _evaluate(self, trainer: Any, net: nn.Module, due: bool, last: bool) -> bool:
        """Puts what is to be evaluated into the net; where that fails, training goes on without.

        Returns:
            Whether a readout was solved.
        """
        budget, shown = self._budget(trainer), self._shown
        part = budget.take(trainer.current_epoch + 1, last and self.at_end) if due else 0.0
        if not (part or shown.moved):
            return False
        if part or last:
            self._spent, self._solved_at = budget.spent, trainer.global_step
        began = time.perf_counter()
        shown.lend(self._readout if shown.average is None else net.parameters())
        try:
            judged = self._show_average(trainer, net, ask=bool(part) or last or not shown.better)
            kept = False
            if part:
                kept, judged = self._refit(trainer, net, part, judged, began)
            if shown.average is not None:
                shown.hold(net, judged or self._refits.ask(trainer, net))
                self._log(trainer, {"recon/held": float(shown.held)})
        except ReconstructionError as error:
            if isinstance(error, ProcessError):
                raise
            rank_zero_warn(f"The readout was not refitted after step {trainer.global_step}; training goes on.\n{error}")
            shown.end()
            shown.better = shown.held = False
            return False
        if not part:
            self._seconds += time.perf_counter() - began
        if not (kept or shown.better or shown.held) or self.swap == "overwrite":
            shown.give()
        return bool(part)

    def _show_average(self, trainer: Any, net: nn.Module, ask: bool) -> Judged | None:
        """The average is in the net where it is better than the trained values.

        Returns:
            What the judge said of what is in the net; None where it was not asked.
        """
        average, shown = self._shown.average, self._shown
        if average is None or not shown.moved:
            return None
        if not ask:
            average.show()
            return None
        shown.better, before = self._refits.prefer(trainer, net, shown, self._solves)
        return before

    def _refit(self, trainer: Any, net: nn.Module, part: float, before: Judged | None, began: float) -> tuple[bool, Judged | None]:
        """The readout on the hidden layers as they are now; whether it is kept, and what the judge says of what is in the net."""
        solve = self._refits.solve(
            trainer,
            net,
            "keep",
            part=part,
            number=self._solves,
            strength=None if math.isnan(self._strength) else self._strength,
            fit_loss=self._fit_loss,
            anew=self._refused >= _REFUSALS,
            spread=self._spread,
            before=before,
            best=self._shown.best,
        )
        self._note(trainer, solve, began)
        if solve.kept and self.swap == "overwrite":
            self._written(trainer, solve.report)
        elif solve.kept:
            self._shown.keep(solve.report)
        return solve.kept, solve.judged[solve.kept] if self._refits.compares else None

    def _budget(self, trainer: Any) -> Budget:
        """Of the run's epochs, by ``max_epochs`` or ``max_steps``."""
        lengths = [trainer.max_epochs] if (trainer.max_epochs or 0) > 0 else []
        if trainer.max_steps > 0 and math.isfinite(trainer.num_training_batches):
            steps = max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
            lengths.append(max(1, math.ceil(trainer.max_steps / steps)))
        return Budget(self.max_share, min(lengths, default=None), self._spent, self._ahead)

    def _written(self, trainer: Any, report: Report) -> None:
        forget(trainer.optimizers, report.parameters)
        stands_in = report.fit_loss != self.initializer.criterion.make(report.num_steps).name
        self._handover.begin(reach_after(report.exactness.label == "surrogate", stands_in))

    def _note(self, trainer: Any, solve: Solve, began: float) -> None:
        """Keeps the report, and logs it."""
        now = time.perf_counter()
        self._seconds += now - began
        self._solves += 1
        self._solved_at = trainer.global_step
        self._strength, self._refused = solve.report.strength, 0 if solve.kept else self._refused + 1
        self._fit_loss = solve.report.fit_loss
        self.reports.append(solve.report)
        metrics = metrics_of(solve, now - began, self._seconds / (now - self._began))
        metrics["recon/averaged"] = float(self._shown.average is not None and self._shown.better)
        self._log(trainer, metrics)

    def _log(self, trainer: Any, metrics: dict[str, float]) -> None:
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
