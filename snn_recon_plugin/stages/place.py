"""Write of the readout into the private network, its certificate, and a run of the network that verifies its scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from ..convex import Certificate, Problem, accuracy_of
from ..distributed import SingleProcess
from ..errors import WriteError
from ..networks.calls.fast_passes import fast_passes
from ..networks.calls.record import StoredBatch, Taps, record
from ..networks.private.parameters import Values
from ..networks.private.quiet import autocast_rounding
from ..networks.readout.readout import Readout, Source, block_mean
from ..networks.write import Transaction
from ..options import Options
from ..report.report_parts import Exactness
from .calibrate import CalibratedReadout
from .collect import ProgramData, decode_batches
from .fit import Fit
from .run import Run
from .task import Task

_DRAWS = 5  # passes whose mean accuracy is reported if forward draws random numbers
# Share of samples with a current so close to the threshold that another order of sums, or half precision, changes a spike.
_FLIPPED, _FLIPPED_HALF = 0.01, 0.1


@dataclass(frozen=True)
class Placed:
    """Measurements of the written network."""

    certificate: Certificate
    exactness: Exactness
    accuracy: float  # on stored samples, 0 to 1; NaN for regression
    scores: Tensor  # [m, C], on these samples
    other_scores: Mapping[Source, Tensor]  # the same by other items of its output
    values: Values  # of the readout, to write


def place(run: Run, task: Task, data: ProgramData, fit: Fit, calibrated: CalibratedReadout) -> Placed:
    """Write the readout into the private network, certify it, and verify the network's own scores."""
    layer, problem, processes, net, options = task.net_map.readout, fit.problem, run.processes, run.net, run.options
    parameters = layer.parameters(calibrated.weight, calibrated.bias)
    values = {(layer.module, name): value for name, value in parameters.items()}
    with processes.share_errors():
        writes = Transaction(net, allow_tied=options.allow_tied)
        for (module, name), value in values.items():
            writes.write(module, name, value)
    weight = layer.weight.detach()
    bias = None if layer.bias is None else layer.bias.detach()
    # A refined readout is no point of the program any more: the program's solution is certified instead.
    point = (fit.solution.weight, fit.solution.bias) if calibrated.refined else calibrated.in_program(weight, bias)
    # The solver's dual value bounds every point of the program; the written point's own one may be lower.
    certificate = problem.certify(*point, options.tol, fit.solution.certificate.dual)
    sources = task.readout.others if problem.classifies and not task.rows.stepwise else ()
    roundings = [0.0]  # of the autocast that the readout runs in
    taps = Taps(calls={layer.module: lambda arguments, output: roundings.append(autocast_rounding(weight.device))})
    with processes.share_errors():
        decoders = [task.readout.scores, *(source.scores for source in sources)]
        play = partial(record, net, forward=options.call, taps=taps)
        own, *others = _decode_all(net, play, data.captured.batches, decoders)
        redrawn = _redrawn_scores(net, task, data, options, own)
        exactness = verify(own, task, data, calibrated, problem, max(layer.tolerance, 8 * max(roundings)))
        accuracy = fmean(_accuracy(each, task, data, problem) for each in redrawn)
    exactness, accuracy = _of_all(exactness, accuracy, processes)
    return Placed(certificate, exactness, accuracy, own, dict(zip(sources, others, strict=True)), values)


def _decode_all(
    net: nn.Module, play: Callable[[StoredBatch], Any], batches: Sequence[StoredBatch], decoders: Sequence[Callable[..., Tensor]]
) -> list[Tensor]:
    """Return the scores that each decoder makes of the outputs of all batches, the first one in a plain pass.

    Faster passes run the others if they give that batch the same scores, to the bit.  Otherwise a forward that they change would
    only be compared with itself.
    """
    plain = decode_batches(play, batches[:1], decoders)
    if len(batches) == 1:
        return plain
    with fast_passes(net):
        if all(map(torch.equal, plain, decode_batches(play, batches[:1], decoders))):
            return [torch.cat(pair) for pair in zip(plain, decode_batches(play, batches[1:], decoders), strict=True)]
    return decode_batches(play, batches, decoders)


def _of_all(own: Exactness, accuracy: float, processes: SingleProcess) -> tuple[Exactness, float]:
    """Return exactness and accuracy on the samples of all processes."""
    parts = processes.gather((own, accuracy))
    if len(parts) == 1:
        return own, accuracy
    found = [part for part, _ in parts]
    counts = [part.samples for part in found]

    def mean(values: Iterable[float]) -> float:
        return sum(value * count for value, count in zip(values, counts, strict=True)) / sum(counts)

    return replace(
        own,
        max_difference=max(part.max_difference for part in found),
        scale=max(part.scale for part in found),
        tolerance=max(part.tolerance for part in found),
        samples=sum(counts),
        agreement=mean(part.agreement for part in found),
        linear_accuracy=mean(part.linear_accuracy for part in found),
    ), mean(each for _, each in parts)


def _redrawn_scores(net: nn.Module, task: Task, data: ProgramData, options: Options, own: Tensor) -> list[Tensor]:
    """Return scores under random numbers that the readout was not fitted on; ``own`` if forward draws none."""
    batches = data.captured.batches

    def scores(number: int, some: Sequence[StoredBatch]) -> Tensor:
        return decode_batches(lambda batch: record(net, batch, options.call, draw=number), some, [task.readout.scores])[0]

    first = scores(1, batches[:1])
    if torch.equal(first, own[: len(first)]):
        return [own]
    return [scores(number, batches) for number in range(1, _DRAWS + 1)]


def _accuracy(scores: Tensor, task: Task, data: ProgramData, problem: Problem) -> float:
    """Return the accuracy of scores of the first samples, NaN for regression."""
    if not problem.classifies:
        return math.nan
    first = torch.arange(scores.shape[:-1].numel(), device=scores.device)
    decided = task.rows.decisions(scores), task.rows.decided(problem.targets[first])
    return accuracy_of(task.loss, *decided, counted=data.counted(torch.arange(len(scores))))


def verify(
    own: Tensor, task: Task, data: ProgramData, calibrated: CalibratedReadout, problem: Problem, tolerance: float
) -> Exactness:
    """Compare the written network's scores of the first samples, ``[m, C]`` or ``[m, T, C]``, with those promised.

    ``tolerance`` is the difference, relative to the largest score, that rounding explains.
    """
    readout, loss, rows, layer = task.readout, task.loss, task.rows, task.net_map.readout
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    first = torch.arange(own.shape[:-1].numel(), device=own.device)
    of_classes = block_mean(weight.double(), readout.per_class)
    own_bias = weight.new_zeros(len(of_classes))
    if bias is not None:
        own_bias = block_mean(bias.double(), readout.per_class) + torch.as_tensor(calibrated.offset).to(weight.device)
    linear = readout.linked(problem.features.scores(of_classes, own_bias)[first]).reshape(own.shape)
    scale = float(linear.abs().max())
    limit = tolerance * max(1.0, scale)
    if calibrated.scores is None:
        _check_scores(own, linear, limit, 0.0, readout)
    else:
        promised = calibrated.scores[: len(own)].double()
        flipped = _FLIPPED if tolerance <= 1e-4 else _FLIPPED_HALF
        _check_scores(own[: len(promised)], promised, tolerance * max(1.0, float(promised.abs().max())), flipped, readout)
    decided, wanted = (loss.predictions(rows.decisions(part)) for part in (own, linear))
    return Exactness(
        label=readout.exactness,
        max_difference=float((own - linear).abs().max()),
        scale=scale,
        tolerance=limit,
        samples=len(own),
        agreement=float((decided == wanted).double().mean()) if problem.classifies else math.nan,
        linear_accuracy=_accuracy(linear, task, data, problem),
        weight_scale=calibrated.scale,
        bias_shift=float(torch.as_tensor(calibrated.shift).mean()),
        refined=calibrated.refined,
    )


def _check_scores(own: Tensor, promised: Tensor, limit: float, share: float, readout: Readout) -> None:
    """Refuse scores that differ by more than the limit in more than a share of the samples."""
    differences = (own - promised).abs().flatten(1).amax(1)
    wrong = float((~(differences <= limit)).double().mean())
    if wrong > share:
        raise WriteError(
            f"scores of the written network that differ from those promised by up to {float(differences.max()):.3g}, "
            f"in {100 * wrong:.0f} % of the samples",
            f"agreement to {limit:.1e}, as the readout {readout.kind} is {readout.exactness}",
            "make forward(net, inputs) deterministic and let it reset the membranes; pass readout= if it decodes differently",
        )
