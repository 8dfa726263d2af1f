"""Population codes: neighbouring outputs stand for a class, whose score is the sum of theirs.

All functions take the number of outputs for each class, and return values unchanged if it is 1.
"""

from __future__ import annotations

from torch import Tensor

from ..errors import OptionError

__all__ = ["block_mean", "block_sum", "outputs_per_class", "spread"]


def outputs_per_class(outputs: int, classes: int | None) -> int:
    """Return the number of outputs for each class; 1 if ``classes`` is None.

    Raises:
        OptionError: if the number of outputs is no multiple of the number of classes.
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
    """Average over each class's outputs along an axis, for example the rows of a weight, ``[C, P]`` to ``[K, P]``."""
    if per_class == 1:
        return rows
    blocks = rows.movedim(dim, -1)
    return blocks.reshape(*blocks.shape[:-1], -1, per_class).mean(-1).movedim(-1, dim)


def spread(rows: Tensor, per_class: int, own: Tensor, share: float) -> Tensor:
    """Give each output the row of its class plus a share of its present difference from the other outputs of the class.

    Outputs with the same weights would spike alike, and stay so in training.  The differences sum to zero in each class, so that
    linear scores do not change.  Hidden neurons that no class uses stay unused.

    Args:
        rows: ``[K, P]``, the classes' rows.
        per_class: number of outputs for each class.
        own: ``[C, P]``, the present rows of the outputs.
        share: size of the differences relative to the rows (root mean square).

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
