"""Memory of a solve beyond its features."""

from __future__ import annotations

import torch

__all__ = ["memory_bound"]

_ROW_BYTES = 200  # per sample and output: scores, dual rows and curvature, a dozen float64 arrays and as many float32 ones
_WEIGHT_BYTES = 200  # per weight: the same
_SQUARES = 6  # P x P matrices while a preconditioner is built, besides one for each output
_ROUGH = 2  # per feature in bfloat16
_BUFFERS = 64_000_000  # blocks of rows, and rounding by the allocator


def memory_bound(samples: int, features: int, outputs: int, dtype: torch.dtype) -> int:
    """Return the maximum number of bytes that the native solver takes beyond the features, in single precision.

    The bound is for contiguous features, as a capture gives them; others are copied once more.  The active features are copied
    once, and once in bfloat16 if the processor multiplies it.  Bool and integer features keep their type.  The preconditioner of
    the Newton steps is one matrix of active features by active features a class.  It is a single one for ``group_l1``, and for
    ``ridge`` if the matrices would be too large.  If rounding or collinear features require float64, floating copies and matrices
    take twice as much.

    Args:
        samples: n, the rows.
        features: P.
        outputs: C.
        dtype: dtype of the features.

    Example:
        >>> f"{memory_bound(60_000, 1_000, 10, torch.uint8) / 2**30:.1f} GiB"
        '0.4 GiB'
    """
    if not dtype.is_floating_point:
        copies = 1.5 * torch.empty(0, dtype=dtype).element_size()  # the half is for a screened program
    else:
        copies = 4.0 if dtype is torch.float32 else 16.0  # others: a whole conversion, and a copy of the active ones
    matrices = 4 * (outputs + _SQUARES) * features**2
    copies += _ROUGH
    return int(copies * samples * features) + outputs * (_ROW_BYTES * samples + _WEIGHT_BYTES * features) + matrices + _BUFFERS
