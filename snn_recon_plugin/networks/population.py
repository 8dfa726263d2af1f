"""Population codes: several outputs, next to each other, stand for a class, whose score is the sum of theirs.

All functions take the number of outputs a class, and give values back as they are where it is 1.
"""

from __future__ import annotations

from torch import Tensor

from ..errors import OptionError

__all__ = ["block_mean", "block_sum", "outputs_per_class", "spread"]


def outputs_per_class(outputs: int, classes: int | None) -> int:
    """Return how many outputs stand for a class.

    Args:
        outputs: of the net, C.
        classes: how many classes they stand for, K; None for one class an output.

    Raises:
        OptionError: C is no multiple of K.
    """
    if classes is None:
        return 1
    if outputs % classes:
        raise OptionError(
            f"{classes} classes for a readout of {outputs} outputs",
            "a number of outputs that is a multiple of the number of classes, as snnTorch's population codes have it",
            f"pass classes={outputs}, or num_classes= and classes= that divide {outputs}",
        )
    return outputs // classes


def block_sum(values: Tensor, per_class: int) -> Tensor:
    """Sum the values of each class's outputs, ``[*, C]`` to ``[*, K]``."""
    return values if per_class == 1 else values.reshape(*values.shape[:-1], -1, per_class).sum(-1)


def block_mean(rows: Tensor, per_class: int, dim: int = 0) -> Tensor:
    """Average over each class's outputs along an axis, e.g. the rows of a weight, ``[C, P]`` to ``[K, P]``."""
    if per_class == 1:
        return rows
    blocks = rows.movedim(dim, -1)
    return blocks.reshape(*blocks.shape[:-1], -1, per_class).mean(-1).movedim(-1, dim)


def spread(rows: Tensor, per_class: int, own: Tensor, share: float) -> Tensor:
    """Give each output its class's row, and a share of what it differed in from the other outputs of its class.

    Outputs with the same weights would spike alike, and stay so in training.  The differences add up to zero in each class, so
    that a linear score does not change; neurons that a class's row does not use stay unused.

    Args:
        rows: ``[K, P]``, the classes' rows.
        per_class: outputs a class.
        own: ``[C, P]``, the rows of the outputs so far.
        share: size of the differences, relative to the rows (root mean square).

    Returns:
        ``[C, P]``.
    """
    if per_class == 1:
        return rows
    repeated = rows.repeat_interleave(per_class, 0)
    own = own.to(rows)
    differences = own - block_mean(own, per_class).repeat_interleave(per_class, 0)
    differences = differences * (rows != 0).any(0)
    size = float(differences.square().mean())
    factor = share * (float(rows.square().mean()) / size) ** 0.5 if size > 0 else 0.0
    return repeated + factor * differences
