"""The weights that may be evaluated: trained, averaged, refitted and best; and their exchange.

Training keeps its weights.  Others are in the network only while it is validated, while a checkpoint takes its weights, and after
training.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from ..errors import WriteError
from ..networks import is_neuron
from ..report import Report
from .judge import Judged
from .snapshots import Average, Best, Snapshot

__all__ = ["Candidates", "has_fixed_buffers"]


class Candidates:
    """Owner of all weight snapshots of a run.

    | field | holds | set by |
    |---|---|---|
    | ``trained`` | the trained weights while others are in the network | ``open``, ``swap_in``; None by ``accept``, ``swap_out`` |
    | ``evaluated`` | the weights with a refit, until the next step | ``settle``; None by ``discard`` |
    | ``report`` | the report of that refit | the session; None by ``discard`` |
    | ``average`` | the EMA; None without one | ``begin`` |
    | ``averaged`` | the EMA was better than the trained weights when last judged | the session |
    | ``best`` | the best weights so far; None if nothing compares weights | ``hold`` |
    | ``held`` | ``best`` is evaluated in place of later weights | ``hold`` |
    | ``ended`` | the run is over, and its evaluated weights stay | ``end`` |

    ``decay`` belongs to the EMA; None for none.
    """

    def __init__(self, decay: float | None) -> None:
        self.decay = decay
        self.trained: Snapshot | None = None
        self.evaluated: Snapshot | None = None
        self.report: Report | None = None
        self.average: Average | None = None
        self.averaged = False
        self.best: Best | None = None
        self.held = False
        self.ended = False

    # -- the trained weights ---------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Exchange a checkpoint's evaluated weights for its trained ones."""
        if self.trained is not None:
            self.settle()

    def begin(self, net: nn.Module) -> None:
        """Start the average from the network as it is, unless a checkpoint had one."""
        if self.decay is not None and self.average is None:
            self.average = Average.begin(self.decay, net.parameters())
        if self.average is not None:
            self.average.snapshot = self.average.snapshot.moved()
        if self.best is not None:
            self.best.snapshot = self.best.snapshot.moved()

    def open(self, parameters: Iterable[nn.Parameter]) -> None:
        """Save the trained weights before others are written, so that an error in between brings them back."""
        self.discard()
        self.trained = Snapshot.take(parameters)

    def accept(self) -> None:
        """Train on from the weights in the network."""
        self.trained = None

    def take_back(self) -> None:
        """Write the trained weights back; others may be written after that."""
        if self.trained is not None:
            self.trained.write()

    def settle(self) -> None:
        """Evaluate the weights in the network until the next step, and train on from the trained ones."""
        if self.trained is not None:
            self.evaluated = Snapshot.take(self.trained.values)
        self._restore()

    def discard(self) -> None:
        """Put the trained weights back and drop those chosen after the last epoch, whose report can't be undone any more."""
        if self.ended:
            return
        self.swap_out()
        report = self.report
        self.evaluated = None
        self.report = None
        if report is None or not report.replaced:
            return
        self.trained = Snapshot.take(report.parameters)
        with contextlib.suppress(WriteError):  # a parameter that was pruned since, for example
            report.undo()
        self._restore()

    def reject(self) -> None:
        """Evaluate the trained weights, since others could not be found or judged."""
        self.discard()
        self.averaged, self.held = False, False

    def _restore(self) -> None:
        self.take_back()
        self.trained = None

    # -- the exchange ----------------------------------------------------------------------------------------------------

    @property
    def _shown(self) -> Snapshot | None:
        """Return the weights that an evaluation at this moment uses; None for the trained ones."""
        if self.evaluated is not None:
            return self.evaluated
        if self.held and self.best is not None:
            return self.best.snapshot
        return self.average.snapshot if self.averaged and self.average is not None else None

    def swap_in(self) -> None:
        """Exchange the trained weights for those to evaluate."""
        shown = self._shown
        if shown is not None and self.trained is None and not self.ended:
            self.trained = Snapshot.take(shown.values)
            shown.write()

    def swap_out(self) -> None:
        """Exchange the evaluated weights for the trained ones, bit for bit."""
        if self.trained is None or self.ended:
            return
        if self.evaluated is not None:  # as they are now: a hook may have undone the report
            self.evaluated = Snapshot.take(self.trained.values)
        self._restore()

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

    def end(self) -> None:
        """Leave the network as it is from now on."""
        self.ended = True

    # -- average and best ------------------------------------------------------------------------------------------------

    @property
    def has_average(self) -> bool:
        """Return whether there is an average of more than its first point."""
        return self.average is not None and self.average.points > 1

    def update(self) -> None:
        """Add a point to the average after an optimizer step."""
        if self.average is not None:
            self.average.update()

    def hold(self, net: nn.Module, judged: Judged | None) -> None:
        """Write the best weights into the network if they are clearly better than those in it, or note these as the best.

        ``judged`` belongs to the weights in the network; without it nothing can be compared, and none are held.
        """
        self.held = False
        if self.decay is None or judged is None or not has_fixed_buffers(net):
            self.best = None
        elif self.best is None:
            self.best = None if math.isnan(judged.value) else Best(Snapshot.take(net.parameters()), judged)
        elif self.best.beats(judged):
            self.held = True
            self.best.snapshot.write()
        else:
            self.best.update(judged)

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def state_dict(self, module: nn.Module) -> dict[str, Any]:
        """Return what a checkpoint needs beside the evaluated weights, by names in ``module``; empty if nothing."""
        found: dict[str, Any] = {}
        shown = self._shown
        trained = self.trained if self.trained is not None or shown is None else Snapshot.take(shown.values)
        if trained is not None:
            found["trained"] = trained.named(module)
        if self.average is not None:
            found |= {"average": self.average.snapshot.named(module), "points": self.average.points}
            found |= {"averaged": self.averaged, "held": self.held}
        if self.best is not None:
            found |= {"best": self.best.snapshot.named(module), "judged": list(self.best.judged)}
        return found

    def load_state_dict(self, module: nn.Module, found: Mapping[str, Any]) -> None:
        """Read ``state_dict``; ``resume`` then writes the trained weights."""
        if "trained" in found:
            self.trained = Snapshot.of_names(module, found["trained"])
        if self.decay is None or "average" not in found:
            return
        self.average = Average(self.decay, Snapshot.of_names(module, found["average"]), found["points"])
        self.averaged, self.held = bool(found.get("averaged")), bool(found.get("held"))
        if "best" in found:
            self.best = Best(Snapshot.of_names(module, found["best"]), Judged(*found["judged"]))


def has_fixed_buffers(net: nn.Module) -> bool:
    """Return whether training changes parameters alone: running statistics would not be those of earlier parameters."""
    return not any(list(module.buffers(recurse=False)) for module in net.modules() if not is_neuron(module))
