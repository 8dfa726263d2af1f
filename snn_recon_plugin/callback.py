"""The Lightning callback: a convex start, and refits of the readout between epochs of surrogate-gradient training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, NoReturn

from .errors import OptionError
from .hidden.samplers import Sampler
from .initializer import ConvexInitializer, options_in
from .networks.calls.forward import Forward
from .options import Options, check_names
from .report.content import Report
from .stages.stream import Unpack
from .training.lightning import (
    Callback,
    check_alone,
    check_trainer,
    find_network,
    restore_checkpoint_weights,
    set_checkpoint_weights,
)
from .training.session import Session
from .training.settings import Settings

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
        self.net = net
        self._session = Session(Settings(initializer, net, dataloader, metric, at_start, average, hard_samples, damping, fast))

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
            set_checkpoint_weights(trainer.strategy, self._session.evaluated)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check network, data and optimizers; then start, unless the run is resumed."""
        if not trainer.fast_dev_run:
            network = find_network(pl_module, self.net)
            check_alone(trainer, pl_module, self)
            self._session.begin(trainer, pl_module, network)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Prepare a step."""
        self._session.before_batch(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check the step; before a validation, and after the run's last batch, choose the weights to evaluate."""
        solved = self._session.after_batch(trainer)
        shown = {name: value for name, value in solved.items() if name.endswith("/heldout_after")}
        if shown:
            pl_module.log_dict(shown, prog_bar=True, logger=False)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Exchange the trained weights for those to evaluate."""
        policy = self._session.policy
        if policy is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            policy.swap_in()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Exchange the evaluated weights for the trained ones."""
        policy = self._session.policy
        if policy is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            policy.swap_out()

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
            self._session.fail()
            restore_checkpoint_weights(trainer.strategy)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save the trained weights, and all that a resumed run needs, beside the evaluated weights."""
        found = self._session.state_dict(pl_module)
        if found:
            checkpoint[f"recon/{self.state_key}"] = found

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Read what the run goes on from."""
        self._session.load_state_dict(trainer, pl_module, dict(checkpoint.get(f"recon/{self.state_key}", {})))
