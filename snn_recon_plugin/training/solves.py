"""One program on a trainer's data: the only file of this room that knows how a solve is called."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ..convex import Shards
from ..networks import Forward, StoredBatch, unwrap
from ..pipeline import (
    FIT_LOSSES,
    SAME,
    START,
    Context,
    NetworkCheck,
    Options,
    Task,
    accepts_batches,
    check_network,
    initialize_network,
    inspect_task,
)
from ..report import Report

__all__ = ["LEAST", "Previous", "Solver"]

LEAST = 10  # samples of a process: fewer can't be held out
_TOL = 1e-4  # relative gap of a refit: held-out losses show no smaller difference, and hidden layers move anyway
_COST = 0.5  # epochs of training that the program of a refit may cost
_VERIFIED = 256  # samples on which a written readout is run again


@dataclass(frozen=True)
class Previous:
    """The last solve of a run.

    Its strength and loss are used again.  With ``again`` the strength is chosen on a path that starts near the last one.
    """

    strength: float
    fit_loss: str
    again: bool = False


@dataclass(frozen=True)
class Solver:
    """A network with the options and the context of one solve; its batches come unpacked."""

    net: nn.Module
    options: Options
    context: Context = START

    @classmethod
    def of(
        cls,
        net: nn.Module,
        initializer: Options,
        forward: Forward,
        *,
        hidden: str = "keep",
        verify_all: bool = False,
        samples: int | None = None,
        previous: Previous | None = None,
        processes: int = 1,
    ) -> Solver:
        """Return the solver of a start or a refit.

        Args:
            net: the network.
            initializer: options of the user.
            forward: the initializer's, in the trainer's precision.
            hidden: treatment of hidden layers; "keep" also starts from the trained readout and solves less precisely.
            verify_all: verify on as many samples as the initializer does, since they also judge the start.
            samples: number of samples in all processes; None for all.
            previous: the last solve, whose strength is used again.
            processes: number of processes that share the samples.
        """
        refit = hidden == "keep"
        changes: dict[str, Any] = {"hidden": hidden, "forward": forward, "progress": False, "unpack": None}
        if refit:
            changes |= {"tol": max(initializer.tol, _TOL), "max_cost": min(initializer.max_cost, _COST)}
        if samples is not None:
            changes["max_samples"] = max(LEAST, min(samples, initializer.max_samples or samples))
        options = replace(initializer, **changes)
        if processes > 1 and options.max_samples is not None:
            options = replace(options, max_samples=max(LEAST, -(-options.max_samples // processes)))
        chooses = previous is not None and isinstance(options.strength, str)
        if previous is not None and chooses and not previous.again:  # a strength belongs to the loss that it was found for
            fit_loss = previous.fit_loss if previous.fit_loss in FIT_LOSSES else SAME
            options = replace(options, strength=previous.strength, fit_loss=fit_loss)
        context = Context(
            warm_start=refit,
            verified_samples=_VERIFIED if refit or not verify_all else START.verified_samples,
            processes=Shards() if processes > 1 else START.processes,
            previous=(previous.fit_loss, previous.strength) if previous is not None and chooses and previous.again else None,
        )
        return cls(unwrap(net), options, context)

    def solve(self, batches: Iterable[Any]) -> Report:
        """Solve and write."""
        return initialize_network(self.net, batches, self.options, self.context)

    def check(self, batches: Iterable[Any]) -> NetworkCheck:
        """Refuse a network or data that a solve would refuse at its first batch."""
        return check_network(self.net, batches, self.options, self.context)

    def accepts(self, batches: Iterable[Any]) -> bool:
        """Return whether the network takes batches of this size."""
        return accepts_batches(self.net, batches, self.options)

    def inspect(self, batch: StoredBatch, targets: Tensor) -> Task:
        """Return the task of the network, which decodes its scores and compares them with targets."""
        return inspect_task(self.net, batch, targets, self.options, self.context)
