"""The engine of training after a write: steps that are taken back, aids, and the choice of the weights to evaluate.

Trained, refitted and earlier weights are compared.  Training goes on from the trained ones.  The others are in the network only
during a validation, while a checkpoint takes the weights, and after training.  Hooks of an optimizer or of a trainer drive it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

from ..errors import ReconstructionError, warn_user
from ..networks.private.quiet import unwrap
from ..options import check_bool, check_fraction
from ..report.rows import Live
from .damping import Damping
from .measure import Judgement, WeightJudge
from .protect import Protection, Snapshot, clear_optimizer_state

Refit = Callable[[Judgement], tuple[Judgement, bool]]  # solve; judgements before and after, and whether the refit was kept


def check_aids(damping: float | None, fast: bool | None) -> None:
    """Refuse invalid values of the arguments that a guard and the callback share."""
    if damping is not None:
        check_fraction("damping", damping, 1.0, 0.5)
    if fast is not None:
        check_bool("fast", fast, False)


class Watch:
    """Training of one network: its steps, and snapshots of its weights.

    Without ``best_weights`` the trained weights are evaluated, or a refit of them.
    """

    judge: WeightJudge

    def __init__(self, net: nn.Module, best_weights: bool = True) -> None:
        self.net, self.best_weights = net, best_weights
        self.running = False
        self.protection = Protection()
        self.trained: Snapshot | None = None  # trained weights while others are in the network
        self.refitted: Snapshot | None = None  # weights with a refit, until the next step
        self.best: Snapshot | None = None
        self.best_judged: Judgement | None = None  # None after a checkpoint was read
        self.held = False  # the best weights are evaluated in place of later ones
        self.least = math.inf  # least loss of the trained weights so far
        self.improved = False  # the trained weights had a lower loss than ever when last compared
        self.damping = math.nan  # factor of recurrent gradients; NaN before it is chosen
        self.aids = contextlib.ExitStack()  # takes out what training is aided by

    # -- the run ---------------------------------------------------------------------------------------------------------

    def start(self, start: Live, judged: Judgement, optimizers: Sequence[torch.optim.Optimizer], *, smaller: bool) -> None:
        """Evaluate the solved readout, which is in the network, and protect it; a ``smaller`` one is trained."""
        if self.judge.validates:
            self.hold(judged)
        clear_optimizer_state(optimizers, start.parameters)
        solved = self.judge.watch()
        if smaller:
            start.write(start.smaller)
        self.judge.broadcast(start.parameters)
        self.protection.begin(self.net, solved, self.judge.watch())

    def begin(self, *, damping: float | None, fast: bool | None, fresh: bool = False) -> list[str]:
        """Begin the aids of training, and return the names of the layers whose gradients are damped.

        Without ``damping`` the factor suits the present weights, unless a checkpoint had one.  ``fresh`` weights are those of a
        default initialisation.  ``fast`` steps are taken if True; if None too, where nothing speaks against them.
        """
        if math.isnan(self.damping):
            self.damping = self.judge.choose_damping(fresh=fresh) if damping is None else damping
        damped = self.aids.enter_context(Damping(self.net, self.damping))
        if fast is not False:
            self._install_fast_steps(needed=fast is True)
        self.running = True
        return damped.sites if self.damping < 1 else []

    def _install_fast_steps(self, *, needed: bool) -> None:
        """Let the network take faster steps; if they are ``needed``, raise or warn where that can't be."""
        try:
            handle = self.judge.install_fast_steps()
        except ReconstructionError:
            if needed:
                raise
            return
        self.aids.callback(handle.remove)
        why = handle.reason or (self.judge.install_fast_loop(self.aids) if handle.is_outside else "")
        if needed and why:
            warn_user(f"fast=True changes nothing for this {type(unwrap(self.net)).__name__}: {why}.")

    def close(self) -> None:
        """Take the aids out; the weights that are in the network stay."""
        self.running = False
        self.aids.close()

    # -- steps -----------------------------------------------------------------------------------------------------------

    def before_step(self) -> None:
        """Put the trained weights back, and drop a refit."""
        self.drop_refit()
        self.protection.before_step()

    def after_step(self, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
        """Check the step; return True if nearly all that was solved was lost, and earlier weights are restored."""
        due = self.protection.after_step()
        return due and not self.protection.check(self.judge.watch().own, optimizers)

    # -- the choice ------------------------------------------------------------------------------------------------------

    def hold(self, judged: Judgement) -> None:
        """Evaluate the weights in the network until others are better; those of a pruned one are not held, as masks change."""
        self.held = self.best_weights and not math.isnan(judged.loss) and not prune.is_pruned(self.net)
        self.best, self.best_judged = (Snapshot.take(self.net), judged) if self.held else (None, None)

    def choose(self, refit: Refit | None = None) -> tuple[Judgement, Judgement]:
        """Choose among trained, refitted and earlier weights; return the judgements of the trained and of the chosen ones.

        Without validation data earlier weights are not among them.  The trained weights are in the network afterwards, after an
        error too; they are then evaluated as well.
        """
        self.trained, kept = Snapshot.take(self.net), False
        try:
            trained = judged = self.judge.measure()
            if refit is not None:
                judged, kept = refit(judged)
            if self.judge.validates:
                judged = self._choose_best(judged)
        except BaseException:
            self.held = False
            self.swap_out()
            raise
        if kept and not self.held:
            self.refitted = self.trained  # of the same tensors: ``swap_out`` takes the values that are in the network
        self.swap_out()
        self.improved = trained.loss < self.least
        self.least = trained.loss if self.improved else self.least
        return trained, judged

    def _choose_best(self, judged: Judgement) -> Judgement:
        """Keep the weights in the network as the best if they are better, else write the best ones; return their judgement."""
        if self.best is None or prune.is_pruned(self.net):
            self.hold(judged)
            self.held = False
            return judged
        present = Snapshot.take(self.net)
        self.best.write()
        if self.best_judged is None:
            self.best_judged = self.judge.measure()
        self.held = self.best_judged.beats(judged) or self.best_judged.is_near(judged)
        if not self.held:
            present.write()
            self.best, self.best_judged = self.best.renewed(), judged
        return self.best_judged

    @property
    def origin(self) -> str:
        """Origin of the weights that are evaluated, in words."""
        if self.held:
            return "earlier ones"
        return "the last refit's" if self.refitted is not None else "the trained ones"

    # -- the exchange ----------------------------------------------------------------------------------------------------

    @property
    def _shown(self) -> Snapshot | None:
        """Weights that an evaluation at this moment uses; None for the trained ones."""
        return self.refitted or (self.best if self.held else None)

    def swap_in(self) -> None:
        """Exchange the trained weights for those to evaluate."""
        shown = self._shown
        if shown is not None and self.trained is None:
            self.trained = shown.renewed()
            shown.write()

    def swap_out(self) -> None:
        """Exchange the evaluated weights for the trained ones, bit for bit."""
        if self.trained is not None:
            if self.refitted is not None:  # as they are now: a hook may have undone the report
                self.refitted = self.trained.renewed()
            self.trained.write()
            self.trained = None

    def drop_refit(self) -> None:
        """Put the trained weights back, and evaluate a refit no longer."""
        self.swap_out()
        self.refitted = None

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Have the weights to evaluate in the network for a while."""
        if self.trained is not None:
            yield
            return
        try:
            self.swap_in()
            yield
        finally:
            self.swap_out()

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def state_dict(self, module: nn.Module) -> dict[str, Any]:
        """Return all state beside the evaluated weights, by names in ``module``."""
        shown, watch = self._shown, self.protection
        trained = self.trained if self.trained is not None or shown is None else shown.renewed()
        snapshots = {"trained": trained, "best": self.best, "safe": watch.safe}
        state: dict[str, Any] = {name: value.named(module) for name, value in snapshots.items() if value is not None}
        state |= {"held": self.held, "least": self.least, "damping": self.damping}
        return {**state, "watch": [watch.limit, watch.done, watch.share]}

    def load_state_dict(self, module: nn.Module, state: Mapping[str, Any]) -> None:
        """Resume from ``state_dict``, also of version 0.4, which kept an average of the weights.

        The checkpoint's own weights are in the network.  They are evaluated until the next step.
        """
        kept = {name: Snapshot.of_names(module, state[name]) for name in ("trained", "best", "safe") if name in state}
        if "trained" in kept:
            self.trained = self.refitted = kept["trained"]
            self.swap_out()
        if self.best_weights:
            self.best = kept.get("best")
            self.held = state["held"] and self.best is not None
        self.least, self.damping = state["least"], state["damping"]
        watch = self.protection
        watch.safe, (watch.limit, watch.done, watch.share) = kept.get("safe"), state["watch"]
