"""One solve within a run: its options, its samples, and the decision to keep it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import nn

from ..convex import Shards
from ..distributed import SINGLE_PROCESS, SingleProcess
from ..errors import OptionError
from ..networks import Inspections, unwrap
from ..pipeline import (
    START,
    Context,
    NetworkCheck,
    Options,
    accepts_batches,
    check_network,
    initialize_network,
)
from ..report import Report
from .data import count_epoch_samples, find_batch_size, training_batches
from .judge import Judge
from .lightning import all_agree, broadcast, in_all, in_precision, uncompiled
from .schedule import Progress
from .settings import HELD_OUT, Settings, refit_options

_VERIFIED = 256  # samples on which a written readout is run again
_FEWEST_SAMPLES = 10  # samples of a solve, and of each process that shares them: fewer can't be held out
_REFUSALS = 2  # solves in a row that were not kept before the strength is chosen again: a single one may be chance
_MERGED, _VALUES = 4, 2**19  # most batches run at once, and the values of a layer that fit into a processor's cache


class Solve(NamedTuple):
    """A finished solve."""

    report: Report
    start: bool  # before the first step; else a refit
    kept: bool
    before: float  # judgement, less for better
    after: float

    def metrics(self) -> dict[str, float]:
        """Return the measurements for loggers."""
        report = self.report
        values = {
            "objective": report.certificate.primal,
            "relative_gap": report.certificate.relative_gap,
            "heldout_before": report.loss_before,
            "heldout_after": report.loss_after,
            "kept": float(self.kept),
            "active_neurons": float(report.active_neurons),
            "samples": float(report.samples),
        }
        if not math.isnan(self.before):
            values |= {"judged_before": self.before, "judged_after": self.after}
        return values


@dataclass(frozen=True)
class Refits:
    """Solves for one network, which the checks before training have accepted."""

    settings: Settings
    options: Options  # of a refit
    network: nn.Module
    readout: list[nn.Parameter]
    spread: bool  # processes share the samples of a solve, rather than each taking all
    merged: int  # trainer's batches that are run at once
    judge: Judge

    @classmethod
    def check(cls, trainer: Any, network: nn.Module, settings: Settings) -> Refits:
        """Refuse what a solve would refuse at its first batch."""
        initializer = settings.initializer
        # ``training_batches`` has unpacked the batches.
        forward = in_precision(trainer, initializer.call)
        options = replace(refit_options(initializer), forward=forward, unpack=None, progress=False)
        size = find_batch_size(trainer.train_dataloader) or 1
        batches = training_batches(trainer, settings, size, initializer.seed)
        inspections = Inspections()
        checked = in_all(trainer, lambda: check_network(network, batches, options, inspections))
        merged = _choose_merged(trainer, settings, network, options, checked, size)
        judge = Judge(settings, unwrap(network), options, inspections)
        judge.choose(trainer)
        spread = checked.can_spread and trainer.world_size > 1 and settings.dataloader is None
        return cls(settings, options, network, checked.parameters, all_agree(trainer, spread), merged, judge)

    def solve(
        self,
        trainer: Any,
        progress: Progress,
        *,
        start: bool = False,
        share: float = 1.0,
        before: float | None = None,
        best: float | None = None,
    ) -> Solve:
        """Solve on a share of an epoch's samples and write, and undo the write if it is not better; at a start also hidden layers.

        ``before`` is the judgement of the network as it is, None to judge it now; ``best`` the judgement of the best
        weights so far.  After an error or an interrupt the network is as before.
        """
        before = self.judge.measure(trainer) if before is None else before
        count = count_epoch_samples(trainer, self.settings.dataloader)
        samples = None if share >= 1 or count is None else max(_FEWEST_SAMPLES, int(share * count))
        most = min(samples or count or 0, self.options.max_samples or math.inf)
        enough = most >= _FEWEST_SAMPLES * trainer.world_size  # each process needs a batch
        shards: SingleProcess = Shards() if self.spread and all_agree(trainer, enough) else SINGLE_PROCESS

        def write() -> Report:
            seed, process = self.options.seed + progress.solves, (shards.rank, shards.size)
            batches = training_batches(trainer, self.settings, samples, seed, process=process, merged=self.merged)
            options, context = self._plan(progress, start, samples)
            report = initialize_network(self.network, batches, options, replace(context, processes=shards))
            if trainer.world_size > 1:
                _refuse_reshaped(report)
            return report

        report = in_all(trainer, write, Report.undo)
        try:
            after = self.judge.measure(trainer)
            kept = self.judge.accepts(trainer, report, before, after, best)
            if kept and trainer.world_size > 1:
                broadcast(report.parameters)
        except BaseException:
            report.undo()
            raise
        if not kept:
            report.undo()
        return Solve(report, start, kept, before, after)

    def _plan(self, progress: Progress, start: bool, samples: int | None) -> tuple[Options, Context]:
        """Return options and circumstances of a solve on so many samples of all processes.

        The last strength is used again, with the loss that it was found for.  After solves that were not kept the strength is
        chosen on a path that starts near it.
        """
        initializer, options = self.settings.initializer, self.options
        keeps = not start or initializer.hidden == "keep"
        if not keeps:
            options = replace(options, hidden=initializer.hidden, tol=initializer.tol, max_cost=initializer.max_cost)
        most = options.max_samples if samples is None else min(samples, options.max_samples or samples)
        options = replace(options, max_samples=most)
        previous = {}
        if isinstance(options.strength, str) and not math.isnan(progress.strength):
            if progress.refused >= _REFUSALS:
                previous[progress.fit_loss] = progress.strength
            else:
                options = options.same_program(progress.fit_loss, progress.strength)
        # The start is verified on as many samples as the initializer does, since they also judge it.
        verified = _VERIFIED if keeps or self.judge.kind != HELD_OUT else START.verified_samples
        inspections = self.judge.inspections if start else None  # learnable parameters of the output neuron change by training
        return options, Context(keeps, verified, previous=previous, inspections=inspections)


def _refuse_reshaped(report: Report) -> None:
    """Undo a write that changed a parameter's shape: processes were set up to exchange gradients of the old one."""
    if all(parameter.shape == before.shape for parameter, before in report.replaced):
        return
    report.undo()
    raise OptionError(
        "heterogeneous=True in several processes, for a hidden layer whose learnable leak is one for all units",
        "a leak for each unit from the beginning",
        "build the layer's neuron with beta=torch.full((width,), 0.9)",
    )


def _choose_merged(trainer: Any, settings: Settings, network: nn.Module, options: Options, checked: NetworkCheck, size: int) -> int:
    """Return how many batches to run at once, which saves calls if the network takes larger batches.

    Without gradients such a batch takes less memory than a batch of training, which keeps every step.
    """
    merged = min(_MERGED, checked.num_steps, _VALUES // (size * checked.widest)) if settings.dataloader is None else 1
    accepted = merged > 1
    if accepted:
        larger = training_batches(trainer, settings, merged * size, options.seed, merged=merged)
        with uncompiled():
            accepted = accepts_batches(network, larger, options)
    return merged if all_agree(trainer, accepted) else 1  # loaders may differ between processes
