"""Comparison of the written network's scores with those that the program promised."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..convex import Loss, Problem, accuracy_of
from ..errors import WriteError
from ..networks import Readout
from ..networks.population import block_mean
from ..report import Exactness
from .calibrate import CalibratedReadout
from .rows import Rows

__all__ = ["own_accuracy", "verify"]

# Share of samples with a current so close to the threshold that another order of sums, or half precision, changes a spike.
_FLIPPED, _FLIPPED_HALF = 0.01, 0.1


def verify(
    own: Tensor,
    readout: Readout,
    calibrated: CalibratedReadout,
    problem: Problem,
    weight: Tensor,
    bias: Tensor | None,
    *,
    loss: Loss,
    rows: Rows,
    tolerance: float,
) -> Exactness:
    """Compare the written network's scores with those promised.

    Args:
        own: ``[m, C]``, or ``[m, T, C]`` for a readout at every step: the written network's scores of the first samples.
        readout: its readout.
        calibrated: the written readout.
        problem: the program on all samples.
        weight: ``[C, P]``, the layer's weight after the write.
        bias: ``[C]`` or None.
        loss: loss of the scores.
        rows: rows of a sample.
        tolerance: difference, relative to the largest score, that rounding explains.

    Raises:
        WriteError: the scores differ by more.
    """
    first = torch.arange(own.shape[:-1].numel(), device=own.device)
    of_classes = block_mean(weight.double(), readout.per_class)
    own_bias = weight.new_zeros(len(of_classes))
    if bias is not None:
        own_bias = block_mean(bias.double(), readout.per_class) + torch.as_tensor(calibrated.offset).to(weight.device)
    scores = problem.features.scores(of_classes, own_bias)[first]
    linear = readout.linked(scores).reshape(own.shape)
    targets = rows.decided(problem.targets[first])
    scale = max(1.0, float(linear.abs().max()))
    if calibrated.scores is None:
        _check(own, linear, tolerance * scale, 0.0, readout)
    else:
        promised = calibrated.scores[: len(own)].double()
        limit = tolerance * max(1.0, float(promised.abs().max()))
        _check(own[: len(promised)], promised, limit, _FLIPPED if tolerance <= 1e-4 else _FLIPPED_HALF, readout)
    decided, wanted = (loss.predictions(rows.decisions(part)) for part in (own, linear))
    return Exactness(
        label=readout.exactness,
        max_difference=float((own - linear).abs().max()),
        scale=float(linear.abs().max()),
        tolerance=tolerance * scale,
        samples=len(own),
        agreement=float((decided == wanted).double().mean()) if problem.classifies else math.nan,
        linear_accuracy=accuracy_of(loss, rows.decisions(linear), targets) if problem.classifies else math.nan,
        weight_scale=calibrated.scale,
        bias_shift=float(torch.as_tensor(calibrated.shift).mean()),
        refined=calibrated.refined,
    )


def own_accuracy(own: Tensor, problem: Problem, loss: Loss, rows: Rows) -> float:
    """Return the accuracy of a network's own scores of the first samples, NaN for regression."""
    if not problem.classifies:
        return math.nan
    first = torch.arange(own.shape[:-1].numel(), device=own.device)
    return accuracy_of(loss, rows.decisions(own), rows.decided(problem.targets[first]))


def _check(own: Tensor, promised: Tensor, limit: float, share: float, readout: Readout) -> None:
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
