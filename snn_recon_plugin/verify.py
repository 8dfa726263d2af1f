"""What the written network does, compared with what the program promised."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .convex import Loss, Problem, accuracy_of
from .errors import WriteError
from .networks import Readout
from .networks.population import block_mean
from .placement import Placement
from .report import Exactness
from .rows import Rows

__all__ = ["own_accuracy", "verify"]

# Share of samples in which a current at the threshold may fall to the other side: sums in another order, or in half precision.
_FLIPPED, _FLIPPED_HALF = 0.01, 0.1


def verify(
    own: Tensor,
    readout: Readout,
    placed: Placement,
    problem: Problem,
    weight: Tensor,
    bias: Tensor | None,
    *,
    loss: Loss,
    rows: Rows,
    tolerance: float,
) -> Exactness:
    """Compares the written network's scores with those promised.

    Args:
        own: ``[m, C]``, or ``[m, T, C]`` of a readout at every step: what the written network gives for the first samples.
        readout: its readout.
        placed: what was written.
        problem: the program on all samples.
        weight: ``[C, P]``, the layer's weight as it is now.
        bias: ``[C]`` or None.
        loss: of the scores.
        rows: how targets belong to rows.
        tolerance: difference, relative to the largest score, that is rounding alone.

    Returns:
        How the network's scores compare with the program's linear score.

    Raises:
        WriteError: the network does not do what was promised.
    """
    first = torch.arange(own.shape[:-1].numel(), device=own.device)
    of_classes = block_mean(weight.double(), readout.per_class)
    own_bias = weight.new_zeros(len(of_classes))
    if bias is not None:
        own_bias = block_mean(bias.double(), readout.per_class) + torch.as_tensor(placed.offset).to(weight.device)
    scores = problem.design.rows(first).scores(of_classes, own_bias)
    linear = readout.linked(scores).reshape(own.shape)
    targets = rows.decided(problem.targets[first])
    scale = max(1.0, float(linear.abs().max()))
    if placed.scores is None:
        _check(own, linear, tolerance * scale, 0.0, readout)
    else:
        promised = placed.scores[: len(own)].double()
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
        weight_scale=placed.scale,
        bias_shift=float(torch.as_tensor(placed.shift).mean()),
        refined=placed.refined,
    )


def own_accuracy(own: Tensor, problem: Problem, loss: Loss, rows: Rows) -> float:
    """Return the share of samples that a network's own scores decide right, NaN for regression.

    Args:
        own: ``[m, C]``, or ``[m, T, C]`` of a readout at every step: scores of the first samples.
        problem: the program on all samples.
        loss: of the scores.
        rows: how targets belong to rows.
    """
    if not problem.classifies:
        return math.nan
    first = torch.arange(own.shape[:-1].numel(), device=own.device)
    return accuracy_of(loss, rows.decisions(own), rows.decided(problem.targets[first]))


def _check(own: Tensor, promised: Tensor, limit: float, share: float, readout: Readout) -> None:
    """At most a share of the samples may differ by more than the limit."""
    differences = (own - promised).abs().flatten(1).amax(1)
    wrong = float((~(differences <= limit)).double().mean())
    if wrong > share:
        raise WriteError(
            f"scores of the written network that differ from those promised by up to {float(differences.max()):.3g}, "
            f"in {100 * wrong:.0f} % of the samples",
            f"agreement to {limit:.1e}, as the readout {readout.kind} is {readout.exactness}",
            "make forward(net, inputs) deterministic and let it reset the membranes; pass readout= if it decodes differently",
        )
