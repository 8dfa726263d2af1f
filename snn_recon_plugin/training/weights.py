"""The weights that may be evaluated: trained, averaged, refitted and best; their snapshots and their exchange.

Training keeps its weights.  Others are in the network only while it is validated, while a checkpoint takes its weights, and after
training.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from torch import nn
from torch.nn.utils import prune

from .measure import Judgement
from .snapshots import Average, Best, Snapshot

Judge: TypeAlias = Callable[[], Judgement]  # of the weights in the network


class WeightSnapshots:
    """Owner of all weight snapshots of a run; ``decay`` belongs to the EMA, None for none.

    | field | holds | set by |
    |---|---|---|
    | ``trained`` | trained weights while others are in place | ``save_trained``, ``swap_in``; None by ``train_on``, ``swap_out`` |
    | ``evaluated`` | the weights with a refit, until the next step | ``evaluate_current``; None by ``resume_training`` |
    | ``average`` | the EMA, and whether it was better than the trained weights; None without one | ``begin``, each judgement |
    | ``best`` | the best weights so far, and whether they are held; None without comparisons | ``record``, ``choose_best`` |

    A checkpoint sets all of them.
    """

    def __init__(self, decay: float | None) -> None:
        self.decay = decay
        self.trained: Snapshot | None = None
        self.evaluated: Snapshot | None = None
        self.average: Average | None = None
        self.best: Best | None = None

    # -- the trained weights ---------------------------------------------------------------------------------------------

    def begin(self, net: nn.Module) -> None:
        """Start the average from the network as it is, unless a checkpoint had one."""
        if self.decay is not None and self.average is None:
            self.average = Average.begin(self.decay, net)
        for kept in (self.average, self.best):
            if kept is not None:
                kept.snapshot = kept.snapshot.moved()

    def save_trained(self, net: nn.Module) -> None:
        """Save the trained weights before others are written, so that an error in between brings them back."""
        self.trained = Snapshot.take(net)

    def train_on(self) -> None:
        """Train on from the weights in the network."""
        self.trained = None

    def restore_trained(self) -> None:
        """Write the trained weights back; others may be written after that."""
        if self.trained is not None:
            self.trained.write()

    def evaluate_current(self) -> None:
        """Evaluate the weights in the network until the next step, and train on from the trained ones."""
        self.evaluated = self.trained  # of the same tensors; ``swap_out`` takes the values that are in the network
        self.swap_out()

    def resume_training(self) -> None:
        """Put the trained weights back and drop those chosen after the last epoch."""
        self.swap_out()
        self.evaluated = None

    def evaluate_trained(self) -> None:
        """Evaluate the trained weights, since others could not be found or judged."""
        if self.average is not None:
            self.average.better = False
        if self.best is not None:
            self.best.held = False

    # -- the exchange ----------------------------------------------------------------------------------------------------

    @property
    def averaged(self) -> bool:
        """Return whether the average was better than the trained weights when last judged."""
        return self.average is not None and self.average.better

    @property
    def held(self) -> bool:
        """Return whether the best weights are evaluated in place of later ones."""
        return self.best is not None and self.best.held

    @property
    def _shown(self) -> Snapshot | None:
        """Return the weights that an evaluation at this moment uses; None for the trained ones."""
        if self.evaluated is not None:
            return self.evaluated
        chosen = self.best if self.held else self.average if self.averaged else None
        return None if chosen is None else chosen.snapshot

    def swap_in(self) -> None:
        """Exchange the trained weights for those to evaluate."""
        shown = self._shown
        if shown is not None and self.trained is None:
            self.trained = shown.renewed()
            shown.write()

    def swap_out(self) -> None:
        """Exchange the evaluated weights for the trained ones, bit for bit."""
        if self.trained is None:
            return
        if self.evaluated is not None:  # as they are now: a hook may have undone the report
            self.evaluated = self.trained.renewed()
        self.restore_trained()
        self.trained = None

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Have the weights to evaluate in the network for a while."""
        if self.trained is not None:
            yield
            return
        self.swap_in()
        try:
            yield
        finally:
            self.swap_out()

    # -- average and best ------------------------------------------------------------------------------------------------

    def update_average(self) -> None:
        """Add a point to the average after an optimizer step."""
        if self.average is not None:
            self.average.update()

    def choose_average(self, trained: Judgement, judge: Judge) -> Judgement:
        """Write the average if it is better than the trained weights; return the judgement of those in the network."""
        if self.average is None or self.average.points == 1:
            return trained
        self.average.snapshot.write()
        averaged = judge()
        self.average.better = averaged.beats(trained)
        if self.average.better:
            return averaged
        self.restore_trained()
        return trained

    def restart_average(self, net: nn.Module) -> None:
        """Begin the average anew, after weights that should not be in it."""
        if self.average is not None:
            self.average = Average.begin(self.average.decay, net)

    def record(self, net: nn.Module, judged: Judgement) -> None:
        """Note the weights in the network as the best so far, and evaluate them until others are better.

        Weights of a pruned network are not kept, since later ones have other masks.
        """
        kept = self.decay is not None and not math.isnan(judged.loss) and not prune.is_pruned(net)
        self.best = Best(Snapshot.take(net), judged, held=True) if kept else None

    def choose_best(self, net: nn.Module, judged: Judgement, judge: Judge) -> Judgement:
        """Note the weights in the network as the best if they are better, or else write the best ones.

        Return the judgement of those in the network.  ``judged`` belongs to those before.
        """
        if self.best is None or prune.is_pruned(net):
            self.record(net, judged)
            if self.best is not None:
                self.best.held = False
            return judged
        found = Snapshot.take(net)
        self.best.snapshot.write()
        if self.best.judged is None:
            self.best.judged = judge()
        self.best.held = self.best.judged.beats(judged)
        if self.best.held:
            return self.best.judged
        found.write()
        self.best.update(judged)
        return judged

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def state_dict(self, module: nn.Module) -> dict[str, Any]:
        """Return what a checkpoint needs beside the evaluated weights, by names in ``module``; empty if nothing."""
        found: dict[str, Any] = {}
        shown = self._shown
        trained = self.trained if self.trained is not None or shown is None else shown.renewed()
        if trained is not None:
            found["trained"] = trained.named(module)
        if self.average is not None:
            found |= {"average": self.average.snapshot.named(module), "points": self.average.points}
            found |= {"averaged": self.averaged, "held": self.held}
        if self.best is not None:
            found["best"] = self.best.snapshot.named(module)
        return found

    def load_state_dict(self, module: nn.Module, found: Mapping[str, Any]) -> None:
        """Read ``state_dict``; ``evaluate_current`` then writes the trained weights."""
        if "trained" in found:
            self.trained = Snapshot.of_names(module, found["trained"])
        if self.decay is None or "average" not in found:
            return
        average = Snapshot.of_names(module, found["average"])
        self.average = Average(self.decay, average, found["points"], bool(found.get("averaged")))
        if "best" in found:
            self.best = Best(Snapshot.of_names(module, found["best"]), None, bool(found.get("held")))
