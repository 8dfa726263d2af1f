"""Measurements of a network on some data: its losses, which training compares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..distributed import SINGLE_PROCESS, SingleProcess
from ..networks.calls.batches import device_of, lengths_of
from ..networks.calls.record import record
from ..networks.private.quiet import quiet, unwrap
from ..networks.private.workbench import private_copy
from ..networks.structure.inspect import Inspections
from ..options import Options
from ..scan.fast_steps import FastSteps, install_fast_steps
from ..scan.passes import KeptPasses
from ..stages.run import MEASURE
from ..stages.scores import comparing_loss, is_lower
from ..stages.task import Task, inspect_task
from .damping import SAMPLES, choose_damping

T = TypeVar("T")

# Training begins from small scores and makes them too large, a solve does neither: the loss at the best temperature compares them.
# With few validation samples it finds weights that test better than their accuracy does (docs/evidence/decisions.md).
TEMPERATURES = tuple(2.0 ** (k / 4) for k in range(-16, 17))
FIRST = 256  # training samples on which weights are compared without validation data, and faster steps are tried
FEW = 100  # validation samples below which earlier weights stay, unless the paired difference exceeds its standard error


class Judgement(NamedTuple):
    """Mean losses of a network over the samples of all ranks; NaN for none."""

    loss: float = math.nan  # at the best temperature, by which weights are chosen; a metric in its place
    own: float = math.nan  # without a temperature
    zero: float = math.nan  # of zero scores
    each: Tensor | None = None  # (n,), the loss of each of few samples, times its weight

    @classmethod
    def of_sums(cls, sums: list[Tensor]) -> Judgement:
        """Return the means of ``sum_losses`` of all ranks; NaN if all weights are zero."""
        rows = torch.cat(sums)
        weight, zero, own, *scaled = rows.sum(0).tolist()
        each = rows[:, 3 + scaled.index(min(scaled))] if len(sums) < len(rows) < FEW else None
        return cls(min(scaled) / weight, own / weight, zero / weight, each) if weight else cls()

    def is_near(self, other: Judgement) -> bool:
        """Return whether few samples, the same in both, differ by less than the standard error of their mean difference."""
        if self.each is None or other.each is None or len(self.each) != len(other.each):
            return False
        differences = self.each - other.each
        return bool(differences.mean().abs() <= differences.std() / len(differences) ** 0.5)

    def beats(self, other: Judgement) -> bool:
        """Return whether these weights are better; never without a judgement, and always than weights without one."""
        return is_lower(self.loss, other.loss)


class WeightJudge:
    """Judge of the weights that a network has, by data that its subclass knows; private copies of the network run.

    The options determine the loss, and how scores are read.  Processes share the data, and decide alike.  The copies refer to the
    objects in ``shared``, such as a trainer.
    """

    validates = True  # by data or a metric that decide which weights are best
    passes: KeptPasses | None = None  # with plans for all measurements, where none depends on more than network and functions

    def __init__(
        self, net: nn.Module, options: Options, processes: SingleProcess = SINGLE_PROCESS, shared: Iterable[object] = ()
    ) -> None:
        self.net, self.options, self.processes, self.shared = net, options, processes, tuple(shared)
        self.inspections = Inspections(unwrap(net))

    def samples(self, count: int) -> Iterable[Any]:
        """Return batches of at least so many training samples if there are as many; all ranks have the same."""
        raise NotImplementedError

    def measure(self) -> Judgement:
        """Judge the weights, to compare them."""
        return self.watch(FIRST)

    def watch(self, count: int = SAMPLES) -> Judgement:
        """Judge the weights on some training samples, by default the few that protect them."""
        return self.mean(lambda: self.sum_losses(self.samples(count), samples=count))

    # -- processes -------------------------------------------------------------------------------------------------------

    def together(self, work: Callable[[], T]) -> T:
        """Do some work in all processes; an error of one is raised in all."""
        with self.processes.share_errors(ends=True):
            return work()

    def broadcast(self, parameters: Iterable[nn.Parameter]) -> None:
        """Copy parameters from rank 0 into all, where processors may have rounded differently."""
        with torch.no_grad():
            for parameter in parameters if self.processes.is_distributed else ():
                parameter.copy_(self.processes.broadcast(parameter))

    def mean(self, sums: Callable[[], Tensor]) -> Judgement:
        """Return the mean losses over what all ranks measure."""
        return Judgement.of_sums(self.processes.gather(self.together(sums)))

    # -- aids ------------------------------------------------------------------------------------------------------------

    def choose_damping(self, *, fresh: bool) -> float:
        """Return the factor of recurrent gradients that suits the present weights; the same on all ranks."""
        found = self.together(
            lambda: choose_damping(self.net, self.samples(SAMPLES), self.options, fresh=fresh, shared=self.shared)
        )
        return self.processes.broadcast_number(found)

    def install_fast_steps(self) -> FastSteps:
        """Let the network take faster steps."""
        return self.together(lambda: install_fast_steps(self.net, self.samples(FIRST), self.options.call, self.shared))

    def install_fast_loop(self, aids: ExitStack) -> str:
        """Let the loop around the network run faster until ``aids`` close; return why it can't."""
        return "its time loop is outside of its modules: move it into forward, or train by handle(net, batch), see fast_steps"

    # -- measurements of a private copy ----------------------------------------------------------------------------------

    def sum_losses(self, batches: Iterable[Any], options: Options | None = None, samples: float = math.inf) -> Tensor:
        """Return losses of the first ``samples`` samples, (n, 3 + T), of ``FEW`` or more their sums, (1, 3 + T).

        These are weights, zero scores, own scores, scores over each of ``TEMPERATURES``.  Other ``options`` don't unpack batches.
        """
        seen, rows = 0, torch.zeros(0, 3 + len(TEMPERATURES), dtype=torch.float64)
        options = options or self.options
        copied = private_copy(unwrap(self.net), self.shared)
        with (self.passes or KeptPasses()).of(copied) as net, quiet(net, seed=options.seed, loader=batches):
            stream = options.open(batches, device_of(net))
            head, targets = stream.head(1)
            task = inspect_task(net, head[0], targets, options, MEASURE, self.inspections)
            for batch in stream:
                if seen >= samples:
                    break
                seen += len(batch.targets)
                output = record(net, replace(batch, rows=slice(0, len(batch.targets))), options.call)
                scores = task.readout.scores(output, lengths_of(batch.inputs)).double()
                labels = self.options.criterion.label(batch.targets)
                rows = torch.cat([rows, _list_losses(task, scores, labels.targets, labels.weights)])
                rows = rows if seen < FEW else rows.sum(0, keepdim=True)
        return rows


def _list_losses(task: Task, scores: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """Return the losses of a batch, (B, 3 + T); ``weights`` are of its samples.  Only scores of classes have a temperature."""
    of_sample = task.rows if scores.dim() == 2 else replace(task.rows, each=scores.shape[1])  # batches differ in their steps
    targets, rows = of_sample.targets(target), scores.flatten(0, -2)
    prepared = task.loss.prepare(targets, scores.shape[-1])
    compares, compared = comparing_loss(task.loss, prepared, targets.dim() == 1 and not targets.is_floating_point())
    shares = of_sample.weights(weights)
    shares = torch.ones(len(rows)) if shares is None else shares
    values = [task.loss.value(each, prepared) for each in (torch.zeros_like(rows), rows)]
    scales = TEMPERATURES if compares.has_temperature else [1.0] * len(TEMPERATURES)
    values += [compares.value(rows / scale, compared) for scale in scales]
    weighted = shares.to(rows) * torch.stack([torch.ones_like(rows[:, 0]), *values])
    return weighted.reshape(len(weighted), len(scores), -1).sum(2).T.double().cpu()
