"""One solve within a run: on which samples, whether it is kept, and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from ..convex import Shards
from ..initializer import ConvexInitializer
from ..networks import StoredBatch
from ..pipeline import (
    FIT_LOSSES,
    SAME,
    START,
    Context,
    NetworkCheck,
    Task,
    accepts_batches,
    check_network,
    initialize_network,
    inspect_task,
)
from ..report import Report
from .batches import batch_size, epoch_samples, refit_batches
from .evaluation import Evaluation
from .judge import AUTO, HELD_OUT, VALIDATION, Judge, Judged, Sums, judgement, loss_on, validation_loss
from .precision import in_precision, uncompiled
from .processes import agree

__all__ = ["Refits", "Solve", "metrics_of"]

_TOL = 1e-4  # relative gap of a refit: the held-out loss can't tell more, and the hidden layers will move anyway
_COST = 0.5  # epochs of training that a refit's solve may cost
_LEAST = 10  # samples of a process
_ASKED = 1000  # training samples on which an average is compared where there are no others
_TIMES, _VALUES = 4, 2**19  # the trainer's batches run at once, and values of a layer that fit into a processor's cache
_COMPARED = 256  # samples on which the written readout is run again


class Solve(NamedTuple):
    """What became of one solve.

    Args:
        report: of it.
        kept: whether what was solved is in the net.
        judged: what the judge said before and after; of NaN where held-out samples decide.
    """

    report: Report
    kept: bool
    judged: tuple[Judged, Judged]


@dataclass
class Refits:
    """Solves on a trainer's data.

    Args:
        initializer: of the start; refits take its options.
        keep: "if_better" or "always".
        dataloader: as for ``ReconstructionCallback``.
        unpack: likewise.
        judge: likewise.
    """

    initializer: ConvexInitializer
    keep: str
    dataloader: Iterable[Any] | None
    unpack: Callable[[Any], tuple[Any, Any]] | None
    judge: Judge | str = HELD_OUT

    def __post_init__(self) -> None:
        self._judge = self.judge  # what "auto" stands for, once it is known
        self._times = 1  # of the trainer's batches, how many are run at once
        self._found: Task | None = None  # how the network is read, which is what judging takes longest over

    def check(self, trainer: Any, net: nn.Module) -> tuple[list[nn.Parameter], bool]:
        """Refuses what a solve would refuse at its first batch.

        Returns:
            The readout's parameters, and whether refits can be spread over the trainer's processes.
        """
        size, self._found = batch_size(trainer.train_dataloader) or 1, None
        batches = refit_batches(trainer, self.dataloader, self.unpack, size, self.initializer.seed)
        checked, error, options = None, None, self._options(trainer, "keep", None, None)
        try:
            with uncompiled():
                checked = check_network(net, batches, options, Context(warm_start=True))
        except Exception as caught:
            error = caught
        agree(trainer, error)
        assert checked is not None
        self._choose_times(trainer, net, options, checked, size)
        self._choose_judge(trainer, net)
        spread = checked.can_spread and trainer.world_size > 1 and self.dataloader is None
        return checked.parameters, bool(trainer.strategy.reduce_boolean_decision(spread, all=True))

    def _choose_times(self, trainer: Any, net: nn.Module, options: ConvexInitializer, checked: NetworkCheck, size: int) -> None:
        """How many batches are run at once: what calls cost beside their work is spared, where the net takes larger ones.

        Without gradients such a batch takes less memory than one of training's, which keeps every step.
        """
        self._times = (
            min(_TIMES, checked.task.net_map.num_steps, _VALUES // (size * checked.widest)) if self.dataloader is None else 1
        )
        takes = self._times > 1
        if takes:
            larger = refit_batches(trainer, None, self.unpack, self._times * size, self.initializer.seed, times=self._times)
            with uncompiled():
                takes = accepts_batches(net, larger, options)
        # Asked in all processes, whose loaders may differ.
        self._times = self._times if trainer.strategy.reduce_boolean_decision(takes, all=True) else 1

    def solve(
        self,
        trainer: Any,
        net: nn.Module,
        hidden: str,
        *,
        part: float,
        number: int,
        strength: float | None,
        fit_loss: str = "",
        anew: bool = False,
        spread: bool = False,
        before: Judged | None = None,
        best: Judged | None = None,
    ) -> Solve:
        """Solves and writes, and takes it back where it is not better.

        Args:
            trainer: of the run.
            net: the network.
            hidden: what is done to hidden layers.
            part: of an epoch's samples, how many to use.
            number: of the solve within the run; the samples are drawn by it.
            strength: of the penalty, from the last solve; None leaves it to the initializer.
            fit_loss: name of the loss that was solved then.
            anew: whether the strength is chosen again, on a path that begins near that one.
            spread: whether each process takes a part of the samples; else each takes all.
            before: what the judge says of the net as it is; None asks it.
            best: what it said of the best that was evaluated before, which must not be clearly better.

        Returns:
            The report, whether what was solved is in the net, and what the judge said.

        Raises:
            ReconstructionError: the solve failed, here or in another process; nothing is written then.
            Exception: whatever data, network and judge raise.
        """
        first = self._judged(trainer, net) if before is None else before
        report, error = None, None
        count = epoch_samples(trainer, self.dataloader)
        samples = None if part >= 1 or count is None else max(_LEAST, int(part * count))
        # Every process needs enough samples to hold some out.
        spread = spread and bool(
            trainer.strategy.reduce_boolean_decision((samples or count or 0) // trainer.world_size >= _LEAST, all=True)
        )
        try:
            processes = (trainer.global_rank, trainer.world_size) if spread else (0, 1)
            seed, times = self.initializer.seed + number, self._times
            batches = refit_batches(trainer, self.dataloader, self.unpack, samples, seed, processes, times)
            options = self._options(trainer, hidden, samples, strength, fit_loss, anew)
            if spread and options.max_samples:
                options = replace(options, max_samples=max(_LEAST, -(-options.max_samples // trainer.world_size)))
            context = Context(
                warm_start=hidden == "keep",
                # The start's accuracy before is reported on these samples too, unless the judge has its own data.
                verified_samples=_COMPARED if hidden == "keep" or self._judge != HELD_OUT else START.verified_samples,
                processes=Shards() if spread else START.processes,
                previous=(fit_loss, strength) if anew and strength is not None else None,
            )
            with uncompiled():
                report = initialize_network(net, batches, options, context)
        except Exception as caught:
            error = caught
        # What one process can't do none keeps.
        try:
            agree(trainer, error)
            second = self._judged(trainer, net)
        except Exception:
            if report is not None:
                report.undo()
            raise
        assert report is not None
        if self._judge == HELD_OUT:
            better = report.loss_after < report.loss_before
        else:
            better = second.better_than(first) and not (best is not None and best.clearly_better_than(second))
        better = better or self.keep == "always"
        kept = bool(trainer.strategy.reduce_boolean_decision(better, all=True))
        if not kept:
            report.undo()
        elif trainer.world_size > 1:
            for parameter in report.parameters:  # the same bits, also where processors differ
                torch.distributed.broadcast(parameter.detach(), 0)
        return Solve(report, kept, (first, second))

    @property
    def compares(self) -> bool:
        """Whether a judge tells what is evaluated at one time from what is at another."""
        return self.keep == "if_better" and self._judge != HELD_OUT

    def ask(self, trainer: Any, net: nn.Module) -> Judged | None:
        """What the judge says of the net as it is; None where it does not compare.

        Raises:
            Exception: whatever data, network and judge raise.
        """
        return self._judged(trainer, net) if self.compares else None

    def prefer(self, trainer: Any, net: nn.Module, shown: Evaluation, number: int) -> tuple[bool, Judged | None]:
        """Writes the average into the net, and takes it back where it is not better.

        Args:
            trainer: of the run.
            net: the network as training has it, lent.
            shown: has the average of its parameters.
            number: of the solve to come; where no validation data judge, training samples drawn by it do, which both have seen.

        Returns:
            Whether the average is in the net, and what the judge said of what is; None where it does not tell refits apart.

        Raises:
            Exception: whatever data, network and judge raise.
        """
        assert shown.average is not None
        first = self._judged(trainer, net, number=number)
        shown.average.show()
        second = self._judged(trainer, net, number=number)
        better = self.keep == "always" or second.better_than(first)
        better = bool(trainer.strategy.reduce_boolean_decision(better, all=True))
        if not better:
            shown.take_back()
        return better, None if self._judge == HELD_OUT else second if better else first

    def _choose_judge(self, trainer: Any, net: nn.Module) -> None:
        """Asks the judge once, on a batch; where it may be either, held-out samples where there are no usable validation data."""
        self._judge = VALIDATION if self.judge == AUTO else self.judge
        try:
            self._judged(trainer, net, 1)
        except Exception as error:
            if self.judge != AUTO:
                raise
            self._judge = HELD_OUT
            if trainer.enable_validation:  # else there is nothing to wonder at
                fix = "Pass judge='held_out' to be content with that."
                rank_zero_warn(f"Validation data can't judge refits; held-out training samples do. {fix}\n{error}")

    def _judged(self, trainer: Any, net: nn.Module, most: float = math.inf, number: int | None = None) -> Judged:
        """What is compared in place of the held-out loss, of all processes; NaN where that itself is, or nothing is compared.

        With a ``number`` the loss on training samples takes the place of the held-out loss.
        """
        if (self._judge == HELD_OUT and number is None) or self.keep == "always":
            return Judged()
        found, error, options = Sums(), None, self._options(trainer, "keep", None, None)

        def inspect(batch: StoredBatch, targets: Tensor) -> Task:
            self._found = self._found or inspect_task(net, batch, targets, options, Context(warm_start=True))
            return self._found

        try:
            with uncompiled():
                if callable(self._judge):
                    found = judgement(trainer, self._judge, self.initializer.seed)
                elif self._judge == HELD_OUT:
                    seed = self.initializer.seed + (number or 0)
                    batches = refit_batches(trainer, self.dataloader, self.unpack, _ASKED, seed)
                    found = loss_on(options, net, batches, _ASKED, inspect)
                else:
                    found = validation_loss(trainer, options, net, self.unpack, most, inspect)
        except Exception as caught:
            error = caught
        agree(trainer, error)
        sums = torch.tensor(found, dtype=torch.float64 if trainer.strategy.root_device.type != "mps" else torch.float32)
        return Sums(*trainer.strategy.reduce(sums.to(trainer.strategy.root_device), reduce_op="sum").tolist()).judged()

    def _options(
        self,
        trainer: Any,
        hidden: str,
        samples: int | None,
        strength: float | None,
        fit_loss: str = "",
        anew: bool = False,
    ) -> ConvexInitializer:
        initializer = self.initializer
        changes: dict[str, Any] = {
            "hidden": hidden,
            "progress": False,
            "unpack": None,  # the trainer's batches are unpacked where they are moved
            "forward": in_precision(trainer, initializer.call),
        }
        if hidden == "keep":
            changes |= {"tol": max(initializer.tol, _TOL), "max_cost": min(initializer.max_cost, _COST)}
        if samples is not None:
            limit = samples if initializer.max_samples is None else min(samples, initializer.max_samples)
            changes["max_samples"] = max(_LEAST, limit)
        if strength is not None and isinstance(initializer.strength, str) and not anew:
            # A strength belongs to the program that it was found for.
            changes |= {"strength": strength, "fit_loss": fit_loss if fit_loss in FIT_LOSSES else SAME}
        return replace(initializer, **changes)


def metrics_of(solve: Solve, seconds: float, share: float) -> dict[str, float]:
    """What a logger gets of a solve."""
    report, (before, after) = solve.report, solve.judged
    values = {
        "objective": report.certificate.primal,
        "relative_gap": report.certificate.relative_gap,
        "heldout_before": report.loss_before,
        "heldout_after": report.loss_after,
        "kept": float(solve.kept),
        "active_neurons": float(report.active_neurons),
        "samples": float(report.samples),
        "seconds": seconds,
        "share": share,
    }
    if not math.isnan(before.value):
        values |= {"judged_before": before.value, "judged_after": after.value}
    return {f"recon/{name}": value for name, value in values.items()}
