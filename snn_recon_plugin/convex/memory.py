"""How much memory a solve takes beyond its features."""

from __future__ import annotations

import torch

__all__ = ["memory_bound"]

_ROW_BYTES = 200  # a sample and output: scores, dual rows and curvature, a dozen float64 arrays and as many float32 ones
_WEIGHT_BYTES = 200  # a weight: likewise
_SQUARES = 6  # P x P matrices in the making of a preconditioner, beside one for each output
_ROUGH = 2  # a feature in bfloat16
_BUFFERS = 64_000_000  # blocks of rows, and what the allocator rounds up


def memory_bound(samples: int, features: int, outputs: int, dtype: torch.dtype) -> int:
    """Bytes that the native solver takes at most beyond the features, in single precision.

    For contiguous features, as a capture gives them: others are copied once more.  The active ones are copied once, in their own
    type where they are bool or integers, and once in bfloat16 where the processor multiplies that.  One matrix of active
    features by active features a class preconditions the Newton steps (a single one for ``group_l1``, and for ``ridge`` where
    they would be too large).  Where rounding, or features that nearly span each other, make the solver go on in float64, floating
    copies and matrices take twice as much.

    Args:
        samples: n, the rows.
        features: P.
        outputs: C.
        dtype: of the features.

    Example:
        >>> f"{memory_bound(60_000, 1_000, 10, torch.uint8) / 2**30:.1f} GiB"
        '0.4 GiB'
    """
    if not dtype.is_floating_point:
        copies = 1.5 * torch.empty(0, dtype=dtype).element_size()  # the half is that of a screened program
    else:
        copies = 4.0 if dtype is torch.float32 else 16.0  # others are converted whole, and a copy of the active ones besides
    matrices = 4 * (outputs + _SQUARES) * features**2
    copies += _ROUGH
    return int(copies * samples * features) + outputs * (_ROW_BYTES * samples + _WEIGHT_BYTES * features) + matrices + _BUFFERS
