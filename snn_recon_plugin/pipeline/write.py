"""Write of all parameters in one transaction, their certificate, and a run of the written network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

from ..convex import Certificate
from ..networks import Source, StoredBatch, Taps, Transaction, record
from ..report import Exactness
from ..witnesses import ParameterValues
from .calibrate import CalibratedReadout
from .capture import ProgramData, decode_batches
from .fit import Fit
from .options import Context, Options
from .task import Task
from .verify import own_accuracy, verify

__all__ = ["Written", "write_network"]

_DRAWS = 5  # passes whose mean accuracy is reported if forward draws random numbers


@dataclass(frozen=True)
class Written:
    """Measurements of the written network.

    Args:
        certificate: of the written readout.
        exactness: agreement of the network's scores with the program's.
        accuracy: accuracy of the network on stored samples, 0 to 1; NaN for regression.
        scores: ``[m, C]``, its scores on these samples.
        other_scores: the same by other items of its output.
    """

    certificate: Certificate
    exactness: Exactness
    accuracy: float
    scores: Tensor
    other_scores: Mapping[Source, Tensor]


def write_network(
    net: nn.Module,
    transaction: Transaction,
    hidden: ParameterValues,
    calibrated: CalibratedReadout,
    task: Task,
    data: ProgramData,
    fit: Fit,
    options: Options,
    context: Context,
) -> Written:
    """Write all parameters, certify them, and verify the network's own scores.

    Raises:
        WriteError: the written network does not do what the program promised.
    """
    layer = task.net_map.readout
    problem = fit.problem
    processes = context.processes
    with processes.together():
        for (module, name), value in hidden.items():
            transaction.write(module, name, value)
        transaction.write(layer.module, layer.weight_name, calibrated.weight)
        if layer.bias_name is not None and calibrated.bias is not None:
            transaction.write(layer.module, layer.bias_name, calibrated.bias)
    weight = layer.weight.detach()
    bias = None if layer.bias is None else layer.bias.detach()
    # A refined readout is no point of the program any more: the program's solution is certified instead.
    point = (fit.solution.weight, fit.solution.bias) if calibrated.refined else calibrated.in_program(weight, bias)
    # The solver's dual value bounds every point of the program; the written point's own one may be lower.
    certificate = problem.certify(*point, options.tol, fit.solution.certificate.dual)
    sources = task.readout.others if problem.classifies and not task.rows.stepwise else ()
    roundings = [0.0]  # of the autocast that the readout runs in
    taps = Taps(roundings={layer.module: roundings.append})
    with processes.together():
        decoders = [task.readout.scores, *(source.scores for source in sources)]
        own, *others = decode_batches(lambda batch: record(net, batch, options.call, taps), data.captured.batches, decoders)
        redrawn = _redrawn_scores(net, task, data, options, own)
        exactness = verify(
            own,
            task.readout,
            calibrated,
            problem,
            weight,
            bias,
            loss=task.loss,
            rows=task.rows,
            tolerance=max(layer.tolerance, 8 * max(roundings)),
        )
    accuracy = fmean(own_accuracy(each, problem, task.loss, task.rows) for each in redrawn)
    return Written(certificate, exactness, accuracy, own, dict(zip(sources, others, strict=True)))


def _redrawn_scores(net: nn.Module, task: Task, data: ProgramData, options: Options, own: Tensor) -> list[Tensor]:
    """Return scores under random numbers that the readout was not fitted on; ``own`` if forward draws none."""
    batches = data.captured.batches

    def scores(number: int, some: Sequence[StoredBatch]) -> Tensor:
        return decode_batches(lambda batch: record(net, batch, options.call, draw=number), some, [task.readout.scores])[0]

    first = scores(1, batches[:1])
    if torch.equal(first, own[: len(first)]):
        return [own]
    return [scores(number, batches) for number in range(1, _DRAWS + 1)]
