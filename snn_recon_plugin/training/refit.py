"""Solves during a Lightning run: the start, and refits of the readout on the present hidden layers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from ..distributed import SINGLE_PROCESS, SingleProcess
from ..errors import OptionError
from ..networks.calls.forward import Within
from ..networks.private.quiet import keep_generators, unwrap
from ..networks.structure.inspect import Inspections
from ..options import ALWAYS
from ..report.content import Report
from ..stages.initialize import check_network, initialize_network
from ..stages.run import REFIT
from ..stages.scores import is_lower
from ..steps.fast_steps import FastSteps, install_fast_steps
from .damping import SAMPLES, choose_damping
from .judge import Judge
from .lightning import all_agree, broadcast, in_all, processes_of, validating
from .measure import Judgement
from .refit_data import Batches, count_epoch_samples, find_batch_size, training_batches
from .settings import Settings, refit_options

_VERIFIED = 256  # samples on which a written readout is run again
_EPOCH_REFIT = replace(REFIT, verified_samples=_VERIFIED)
_FEWEST_SAMPLES = 10  # samples of each process that shares them: fewer can't be held out
_VALIDATION_SAMPLES = 2000  # that choose the strength of a refit


@dataclass(frozen=True)
class Progress:
    """Record of earlier solves for later ones; plain numbers, for checkpoints."""

    solves: int = 0  # seeds the next one
    strength: float = math.nan  # of the last solve's penalty; NaN before the first
    fit_loss: str = ""  # solved then
    solved_at: int = -1  # optimizer step of the last solve, also of one that failed; -1 before the first


class Solve(NamedTuple):
    """A finished solve."""

    report: Report
    start: bool  # before the first step; else a refit
    kept: bool
    before: Judgement
    after: Judgement
    indices: list[int] | None  # of the samples in the data set, in the order read; None if unknown

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
            "heldout_before": report.before.loss,
            "heldout_after": report.solved.loss,
            "judged_before": self.before.loss,
            "judged_after": self.after.loss,
            "kept": float(self.kept),
            "active_neurons": float(report.program.active_neurons),
            "samples": float(report.program.samples),
        }


class Refits:
    """Solves for one network.  They run on the trainer's data, once these have passed the checks of a first batch."""

    def __init__(self, trainer: Any, network: nn.Module, settings: Settings) -> None:
        initializer = settings.initializer.of_module(trainer.lightning_module, unwrap(network))
        settings = replace(settings, initializer=initializer)
        forward = Within(initializer.call, trainer.precision_plugin.forward_context)
        # ``training_batches`` has unpacked the batches.
        options = replace(refit_options(initializer), forward=forward, unpack=None, progress=False)
        batches = training_batches(trainer, settings, find_batch_size(trainer.train_dataloader) or 1, initializer.seed)
        inspections = Inspections(unwrap(network))
        self.readout, can_share = in_all(trainer, lambda: check_network(network, batches, options, inspections, [trainer]))
        self.trainer, self.network, self.settings, self.options = trainer, network, settings, options
        self.judge = Judge(trainer, settings, unwrap(network), options, inspections)
        # Processes share the samples of a solve, rather than each taking all.
        self._spread = all_agree(trainer, can_share and trainer.world_size > 1 and settings.dataloader is None)

    def solve(self, progress: Progress, before: Judgement, *, start: bool = False) -> Solve:
        """Solve on an epoch's samples and write, and undo the write if it is not better; at a start also hidden layers.

        ``before`` is the judgement of the network as it is.  After an error or an interrupt the network is as before.
        """
        trainer, order = self.trainer, list[int]()
        shards = self._shards()

        def write() -> Report:
            process = (shards.rank, shards.size)
            batches = training_batches(trainer, self.settings, None, self.options.seed + progress.solves, process=process)
            order.extend(batches.indices or ())
            report = self._write_start(batches, shards) if start else self._write_refit(batches, progress, shards)
            if trainer.world_size > 1:
                _refuse_reshaped(report)
            return report

        report = in_all(trainer, write, Report.undo)
        try:
            after = self.judge.measure()
            kept = (start and self.settings.initializer.write == ALWAYS) or self._accepts(report, before, after)
            if kept:
                broadcast(trainer, report.parameters)
        except BaseException:
            report.undo()
            raise
        if not kept:
            report.undo()
        return Solve(report, start, kept, before, after, order or None)

    def install_fast_steps(self) -> FastSteps:
        """Let the network take faster steps."""
        batches = training_batches(self.trainer, self.settings, _VERIFIED, self.options.seed)
        shared = [self.trainer]
        return in_all(self.trainer, lambda: install_fast_steps(self.network, batches, self.options.call, None, shared))

    def choose_damping(self, *, fresh: bool) -> float:
        """Return the factor of recurrent gradients that suits the present weights; the same on all ranks."""
        batches = training_batches(self.trainer, self.settings, SAMPLES, self.options.seed)
        shared = [self.trainer]
        return in_all(self.trainer, lambda: choose_damping(self.network, batches, self.options, fresh=fresh, shared=shared))

    def _shards(self) -> SingleProcess:
        """Return the processes that share a solve."""
        count = count_epoch_samples(self.trainer, self.settings.dataloader)
        enough = min(count or 0, self.options.max_samples or math.inf) >= _FEWEST_SAMPLES * self.trainer.world_size
        return processes_of(self.trainer) if self._spread and all_agree(self.trainer, enough) else SINGLE_PROCESS

    def _write_start(self, batches: Batches, shards: SingleProcess) -> Report:
        """Initialise the network, and write the solved readout."""
        # Written in any case: the judge measures the written network.
        options = replace(self.settings.initializer, forward=self.options.forward, unpack=None, progress=False, write=ALWAYS)
        report = initialize_network(self.network, batches, options, processes=shards, shared=[self.trainer])
        report.write_solved()
        return report

    def _write_refit(self, batches: Batches, progress: Progress, shards: SingleProcess) -> Report:
        """Solve the readout, near the last strength; validation data choose the strength if there are any."""
        validation, options, known = self._validation(), self.options, {}
        held = sum(len(targets) for _, targets in validation)
        if isinstance(options.strength, str) and not math.isnan(progress.strength):
            known[progress.fit_loss] = progress.strength
        if options.max_samples is not None:
            options = replace(options, max_samples=options.max_samples + held)
        if validation:
            batches.first, batches.sampler = validation, None  # the length is not that of the loader
        return initialize_network(
            self.network,
            batches,
            options,
            _EPOCH_REFIT,
            previous=known,
            held_first=held,
            processes=shards,
            shared=[self.trainer],
        )

    def _validation(self) -> list[Any]:
        """Return the validation batches that choose a refit's strength; none if there are none, or in several processes."""
        if not self.judge.validates or self.settings.metric is not None or self.trainer.world_size > 1:
            return []
        found, count = [], 0
        with validating(self.trainer):
            batches = self.judge.validation()
            with torch.no_grad(), keep_generators(self.options.seed, loader=batches):
                for batch in batches:
                    found.append(batch)
                    count += len(batch[1])
                    if count >= _VALIDATION_SAMPLES:
                        break
        return found

    def _accepts(self, report: Report, before: Judgement, after: Judgement) -> bool:
        """Return True if all ranks accept a solve: by validation, or by held-out training samples without it."""
        if self.judge.validates:
            return after.beats(before)
        return all_agree(self.trainer, is_lower(report.solved.compared, report.before.compared))


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
