"""From static inputs to inputs over time: shown unchanged, as random spikes, or as one spike whose time tells the value."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ENCODINGS", "encode"]

ENCODINGS = ("direct", "rate", "latency")


def encode(values: Tensor, num_steps: int, encoding: str) -> Tensor:
    """Spread a static input over time.

    Args:
        values: ``[B, *]``; for "rate" and "latency" intensities from 0 to 1, beyond which they are clipped.
        num_steps: how many steps, T.
        encoding: ``"direct"`` shows the values at every step; ``"rate"`` draws a spike at each step with the value as its
            probability, from torch's global generator of the values' device; ``"latency"`` gives each value above 0 one
            spike, at step ``round((T - 1) * (1 - value))``, so that strong inputs come first.

    Returns:
        ``[T, B, *]``; the same dtype for floating values, float32 otherwise.  For "direct" a view, not to be written to.
    """
    if encoding == "direct":
        return values.expand(num_steps, *values.shape)
    clipped = (values if values.is_floating_point() else values.float()).clamp(0.0, 1.0)
    if encoding == "rate":
        return torch.bernoulli(clipped.expand(num_steps, *clipped.shape))
    times = ((num_steps - 1) * (1.0 - clipped)).round()
    steps = torch.arange(num_steps, device=values.device).reshape(-1, *([1] * values.ndim))
    return ((times == steps) & (clipped > 0)).to(clipped.dtype)
