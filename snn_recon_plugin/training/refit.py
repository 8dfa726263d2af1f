"""Solves during a Lightning run: the start, and refits of the readout on the present hidden layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

from torch import nn

from ..distributed import SINGLE_PROCESS, Shards, SingleProcess
from ..errors import OptionError
from ..networks import Inspections, quiet, unwrap
from ..stages import START, Context, Options, check_network, initialize_network
from ..stages.report_content import ReportContent
from .damping import SAMPLES, choose_damping
from .judge import Judge
from .lightning import all_agree, broadcast, in_all, in_precision, validating
from .measure import Judgement
from .refit_data import Batches, count_epoch_samples, find_batch_size, training_batches
from .settings import Settings, refit_options

_VERIFIED = 256  # samples on which a written readout is run again
_FEWEST_SAMPLES = 10  # samples of each process that shares them: fewer can't be held out
_VALIDATION_SAMPLES = 2000  # that choose the strength of a refit


@dataclass(frozen=True)
class Progress:
    """Record of earlier solves for later ones; plain numbers, for checkpoints."""

    solves: int = 0  # seeds the next one
    strength: float = math.nan  # of the last solve's penalty; NaN before the first
    fit_loss: str = ""  # solved then
    solved_at: int = -1  # optimizer step of the last solve; -1 before the first

    def after(self, solve: Solve, step: int) -> Progress:
        """Add a finished solve."""
        return Progress(self.solves + 1, solve.report.strength, solve.report.fit_loss, step)


class Solve(NamedTuple):
    """A finished solve."""

    report: ReportContent
    start: bool  # before the first step; else a refit
    kept: bool
    before: Judgement
    after: Judgement
    indices: list[int] | None = None  # of the samples in the data set, in the order read; None if unknown

    @property
    def judged(self) -> Judgement:
        """Judgement of the weights that it left in the network."""
        return self.after if self.kept else self.before

    def metrics(self) -> dict[str, float]:
        """Return the measurements for loggers."""
        report = self.report
        return {
            "objective": report.certificate.primal,
            "relative_gap": report.certificate.relative_gap,
            "heldout_before": report.loss_before,
            "heldout_after": report.solved_loss,
            "judged_before": self.before.loss,
            "judged_after": self.after.loss,
            "kept": float(self.kept),
            "active_neurons": float(report.active_neurons),
            "samples": float(report.samples),
        }


class _Chained:
    """Validation batches, then training batches, as one loader."""

    def __init__(self, validation: list[Any], training: Batches) -> None:
        self._validation, self._training = validation, training
        self.generator, self.batch_sampler = training.generator, training.batch_sampler  # random sources that a solve puts back

    def __iter__(self) -> Iterator[Any]:
        return chain(self._validation, self._training)


@dataclass(frozen=True)
class Refits:
    """Solves for one network, which the checks before training have accepted."""

    settings: Settings
    options: Options  # of a refit
    network: nn.Module
    readout: list[nn.Parameter]
    spread: bool  # processes share the samples of a solve, rather than each taking all
    judge: Judge

    @classmethod
    def check(cls, trainer: Any, network: nn.Module, settings: Settings) -> Refits:
        """Refuse what a solve would refuse at its first batch."""
        initializer = settings.initializer
        # ``training_batches`` has unpacked the batches.
        forward = in_precision(trainer, initializer.call)
        options = replace(refit_options(initializer), forward=forward, unpack=None, progress=False)
        batches = training_batches(trainer, settings, find_batch_size(trainer.train_dataloader) or 1, initializer.seed)
        inspections = Inspections(unwrap(network))
        checked = in_all(trainer, lambda: check_network(network, batches, options, inspections, [trainer]))
        judge = Judge(settings, unwrap(network), options, inspections)
        judge.choose(trainer)
        spread = checked.can_spread and trainer.world_size > 1 and settings.dataloader is None
        return cls(settings, options, network, checked.parameters, all_agree(trainer, spread), judge)

    def solve(self, trainer: Any, progress: Progress, before: Judgement, *, start: bool = False) -> Solve:
        """Solve on an epoch's samples and write, and undo the write if it is not better; at a start also hidden layers.

        ``before`` is the judgement of the network as it is.  After an error or an interrupt the network is as before.
        """
        count = count_epoch_samples(trainer, self.settings.dataloader)
        enough = min(count or 0, self.options.max_samples or math.inf) >= _FEWEST_SAMPLES * trainer.world_size
        shards: SingleProcess = Shards() if self.spread and all_agree(trainer, enough) else SINGLE_PROCESS

        process, order = (shards.rank, shards.size), list[int]()

        def write() -> ReportContent:
            batches = training_batches(trainer, self.settings, None, self.options.seed + progress.solves, process=process)
            order.extend(batches.indices or ())
            held = [] if start else self._validation(trainer)
            given = _Chained(held, batches) if held else batches
            report = self._initialize(trainer, given, held, progress, shards, start)
            if start:
                report.write_solved()
            if trainer.world_size > 1:
                _refuse_reshaped(report)
            return report

        report = in_all(trainer, write, ReportContent.undo)
        try:
            after = self.judge.measure(trainer)
            kept = self._accepts(trainer, report, before, after)
            if kept and trainer.world_size > 1:
                broadcast(report.parameters)
        except BaseException:
            report.undo()
            raise
        if not kept:
            report.undo()
        return Solve(report, start, kept, before, after, order or None)

    def choose_damping(self, trainer: Any, *, fresh: bool) -> float:
        """Return the factor of recurrent gradients that suits the present weights; the same on all ranks."""
        batches = training_batches(trainer, self.settings, SAMPLES, self.options.seed)
        return in_all(trainer, lambda: choose_damping(self.network, batches, self.options, fresh=fresh, shared=[trainer]))

    def _initialize(
        self, trainer: Any, batches: Iterable[Any], held: list[Any], progress: Progress, shards: SingleProcess, start: bool
    ) -> ReportContent:
        options, known = self.options, {}
        if start:
            initializer = self.settings.initializer
            options = replace(initializer, forward=options.forward, unpack=None, progress=False)
            context = replace(START, processes=shards, inspections=self.judge.inspections)
        else:
            if isinstance(options.strength, str) and not math.isnan(progress.strength):
                known[progress.fit_loss] = progress.strength
            most = None if options.max_samples is None else options.max_samples + _samples_in(held)
            options = replace(options, max_samples=most)
            context = Context(
                warm_start=True,
                trains_on=False,
                verified_samples=_VERIFIED,
                processes=shards,
                previous=known,
                held_first=_samples_in(held),
            )
        return initialize_network(self.network, batches, options, replace(context, shared=(trainer,)))

    def _validation(self, trainer: Any) -> list[Any]:
        """Return the validation batches that choose a refit's strength; none if there are none, or in several processes."""
        if not self.judge.validates or self.settings.metric is not None or trainer.world_size > 1:
            return []
        found, count = [], 0
        with validating(trainer):
            batches = self.judge.validation(trainer)
            with quiet(nn.Module(), seed=self.options.seed, loader=batches):  # random generators go on from where they were
                for batch in batches:
                    found.append(batch)
                    count += len(batch[1])
                    if count >= _VALIDATION_SAMPLES:
                        break
        return found

    def _accepts(self, trainer: Any, report: ReportContent, before: Judgement, after: Judgement) -> bool:
        """Return whether all ranks accept a solve: by validation, or by held-out training samples without it."""
        if self.judge.validates:
            return after.loss < before.loss
        return all_agree(trainer, report.solved_loss < report.loss_before)


def _samples_in(batches: Iterable[Any]) -> int:
    return sum(len(targets) for _, targets in batches)


def _refuse_reshaped(report: ReportContent) -> None:
    """Undo a write that changed a parameter's shape: processes were set up to exchange gradients of the old one."""
    if all(parameter.shape == before.shape for parameter, before in report.replaced):
        return
    report.undo()
    raise OptionError(
        "heterogeneous=True in several processes, for a hidden layer whose learnable leak is one for all units",
        "a leak for each unit from the beginning",
        "build the layer's neuron with beta=torch.full((width,), 0.9)",
    )
