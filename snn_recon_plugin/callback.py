"""The Lightning callback: a convex start, and refits of the readout between epochs of surrogate-gradient training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .initializer import ConvexInitializer
from .report import Report
from .training.lightning import (
    Callback,
    check_alone,
    check_trainer,
    find_network,
    restore_checkpoint_weights,
    set_checkpoint_weights,
)
from .training.session import Session
from .training.settings import AUTO, Settings

__all__ = ["ReconstructionCallback"]


class ReconstructionCallback(Callback):
    """Start a Lightning run from the convex solution, and refit the readout as the hidden layers learn.

    The initializer runs before the first step.  Ahead of an epoch's last validation the readout is solved again on the present
    hidden layers if ``max_share`` allows; after the last batch if there is no validation, or if validations go by time.  Training
    begins from the solved network with a smaller readout that decides alike; the solved one is evaluated until training has
    passed it.  Training itself is changed only where it would lose what was solved.

    Args:
        initializer: options of the solves; default ``ConvexInitializer()``.  Refits keep hidden layers, and
            the strength and loss of the last solve.  Their tolerance is at least 1e-4, their ``max_cost`` at most half an epoch.
            After two refits in a row that were not kept, the strength is chosen again near the last one.
        at_start: initialise before the first step, unless the run is resumed.  Default True.
        every_n_epochs: refit after every so many epochs; 0 never.  Default 1.
        at_end: refit after the last epoch, on as many samples as the budget allows.  Default True.
        keep: "if_better" (default) keeps a solve, or the average, only if ``judge`` finds it better; "always" keeps both without
            comparison.
        judge: decides for "if_better".

            - "validation": the initializer's loss on the trainer's validation data must fall.  Before, scores of classes are
              divided by the temperature that suits them best.
            - "held_out": the loss must fall on training samples that the solve did not use.  The trained readout has seen them,
              which favours it.
            - "auto" (default): validation data if there are usable ones, else held-out samples.
            - ``judge(module)``: your own number, less for better, NaN for no judgement.

            Validation data and functions are evaluated before and after each solve, and for the average.  A refit is also dropped
            if earlier weights are better.  The cost of these evaluations is no part of ``max_share``.  Under DDP the
            mean over ranks decides.  Never use a test set.
        net: name of the submodule that is the network; default the module itself, or its only part with neurons.
        dataloader: (input, target) batches to solve on; required if the training data have no indices.  Default: a separate loader
            over the training data set.
        max_share: share of the run's epochs that refits may cost, above 0 to 10; default 0.1.  It counts samples, not seconds, so
            runs repeat bit for bit.  The first and the last refit come first: a run of 15 epochs has refits after epochs 1, 7 and
            15.  The start's cost is deducted from later refits: then they follow epochs 1 and 15.  1.0 allows one after every
            epoch.
        protect: watch the steps after a start.  The loss on 256 training samples is measured after 1, 2, 4, ...
            256 steps.  A far too high learning rate brings it near the loss of zero scores.  Then
            training goes back to the weights of the measurement before, with a quarter of each step, until 256 steps were good.
            A start with more than seven tenths of that loss is not watched.  Default True.
        average: decay of an exponential moving average (EMA) of the network's parameters, above 0 to 1; default 0.99, about 100
            steps, fewer early in a run; None for no average.  It is evaluated in place of the trained weights if it is better, or
            if ``keep="always"``.  It is compared at every refit, at the end of the run, and after each epoch until it is better.
            It is also compared before each validation within an epoch, which reads the validation data up to two more times.  With
            validation data, the best weights so far are evaluated where later ones are worse.  The running statistics of batch
            norms belong to the weights; other buffers are not averaged.  Pruned networks keep no best weights.

    Raises:
        OptionError: an invalid option; before training, a strategy that shards parameters, a second callback for the same network,
            Lightning's ``WeightAveraging``, or optimizers without the readout's parameters.
        DataError: before training, data that can't be read a second time.
        NetworkError: before training, no network, or one that can't be refitted.

    Metrics, for loggers and in ``trainer.callback_metrics``, after every solve: ``recon/objective``, ``recon/relative_gap``,
    ``recon/heldout_before``, ``recon/heldout_after``, ``recon/kept``, ``recon/averaged``, ``recon/active_neurons``,
    ``recon/samples``, ``recon/seconds`` and ``recon/share`` (of the wall-clock time of training).  With validation data or a
    function as the judge: ``recon/judged_before`` and ``recon/judged_after``.  With an average, before every validation:
    ``recon/held``, 1 if earlier weights are evaluated.  Whenever it changes: ``recon/step_share``, the share of its length that
    each step takes.  It falls when steps are taken back, and rises again after 256 good ones.  With ``net="a"`` their names are
    ``recon/a/held`` and so on.
    ``reports`` are those of all solves, ``report`` is the last one.

    Example:
        >>> import lightning as L
        >>> from snn_recon_plugin import ReconstructionCallback
        >>> callback = ReconstructionCallback(max_share=0.2)
        >>> trainer = L.Trainer(max_epochs=10, callbacks=[callback], logger=False, enable_checkpointing=False)
        >>> callback.report is None  # until trainer.fit(module, train_loader, val_loader)
        True

    Under DDP the ranks share the samples of the start and of refits.  Rank 0 chooses hidden layers, on the same samples as one
    process would, and calibrates readouts that are not exact.  All ranks write the same bits.  With a loss that has kinks, or
    ``dataloader``, every rank solves on all samples.

    Source: arXiv 2605.08022 solves a readout once, before or after training (CVX-SG, SG-CVX); refits in between are ours.
    """

    def __init__(
        self,
        initializer: ConvexInitializer | None = None,
        *,
        at_start: bool = True,
        every_n_epochs: int = 1,
        at_end: bool = True,
        keep: str = "if_better",
        judge: str | Callable[[Any], Any] = AUTO,
        net: str | None = None,
        dataloader: Iterable[Any] | None = None,
        max_share: float = 0.1,
        protect: bool = True,
        average: float | None = 0.99,
    ) -> None:
        super().__init__()
        initializer = ConvexInitializer() if initializer is None else initializer
        self.net = net
        self._session = Session(
            Settings(
                initializer=initializer,
                at_start=at_start,
                every_n_epochs=every_n_epochs,
                at_end=at_end,
                keep=keep,
                judge=judge,
                net=net,
                dataloader=dataloader,
                max_share=max_share,
                protect=protect,
                average=average,
            )
        )

    @property
    def reports(self) -> list[Report]:
        """Reports of all solves of the run, the start first if there was one, kept or not."""
        return [solve.report for solve in self._session.solves]

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

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what can't work, and forget the last run."""
        if stage == "fit":
            check_trainer(trainer)
            self._session = Session(self._session.settings)
            set_checkpoint_weights(trainer.strategy, self._session.weights.swapped_in)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check network, data and optimizers; then start, unless the run is resumed."""
        if not trainer.fast_dev_run:
            network = find_network(pl_module, self.net)
            check_alone(trainer, pl_module, self)
            self._session.begin(trainer, network)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Prepare a step."""
        self._session.before_batch(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check the step; before a validation, and after the run's last batch, choose the weights to evaluate."""
        if self._session.after_batch(trainer):
            metrics = self._session.settings.labelled({"heldout_after": self.reports[-1].loss_after})
            pl_module.log_dict(metrics, prog_bar=True, logger=False)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Exchange the trained weights for those to evaluate."""
        if self._validates_training(trainer):
            self._session.weights.swap_in()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Exchange the evaluated weights for the trained ones."""
        if self._validates_training(trainer):
            self._session.weights.swap_out()

    def _validates_training(self, trainer: Any) -> bool:
        """Return whether this is a validation within training, after the checks before it."""
        return trainer.state.fn == "fit" and not trainer.sanity_checking and self._session.refits is not None

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Refit once more if the run ended early; the evaluated weights stay in the network."""
        self._session.finish(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End the run."""
        if stage == "fit":
            self._session.end()
            restore_checkpoint_weights(trainer.strategy)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the trained network after an error or an interrupt, from whatever hook."""
        if trainer.state.fn == "fit":
            self._session.discard()
            restore_checkpoint_weights(trainer.strategy)

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers to resume from."""
        return self._session.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a checkpoint."""
        self._session.load_state_dict(state_dict)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save the trained weights beside the evaluated ones."""
        found = self._session.weights_state(pl_module)
        if found:
            checkpoint[f"recon/{self.state_key}"] = found

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Read the trained weights, from which training goes on."""
        self._session.load_weights_state(trainer, pl_module, dict(checkpoint.get(f"recon/{self.state_key}", {})))
