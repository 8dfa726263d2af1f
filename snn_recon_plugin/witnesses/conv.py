"""Convolutions: the patches that a row sees, and pooled positions for a readout."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CONVOLUTIONS", "count_groups", "extract_patches", "pool_positions"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

# About nine pooled positions, by the number of axes: a readout needs to know roughly where a feature is.
_POOLS: dict[int, Callable[[Tensor], Tensor]] = {
    1: partial(functional.adaptive_avg_pool1d, output_size=9),
    2: partial(functional.adaptive_avg_pool2d, output_size=3),
    3: partial(functional.adaptive_avg_pool3d, output_size=2),
}


def count_groups(synapse: nn.Module) -> int:
    """Return the number of groups of a convolution; 1 for other layers."""
    return int(synapse.groups) if isinstance(synapse, CONVOLUTIONS) else 1


def extract_patches(conv: Any, inputs: Tensor) -> Tensor:
    """Return the patch that a row of a convolution sees at each position.

    Args:
        conv: a convolution over one, two or three axes.
        inputs: (n, C, *), its input, or one group of channels.

    Returns:
        (n, C * K, positions), with K kernel values a channel.
    """
    axes = inputs.dim() - 2
    found = functional.pad(inputs, [size for size in reversed(_find_padding(conv)) for _ in range(2)])
    for axis, size, stride, dilation in zip(range(axes), conv.kernel_size, conv.stride, conv.dilation, strict=True):
        found = found.unfold(axis + 2, dilation * (size - 1) + 1, stride)[..., ::dilation]
    kernel, positions = range(2 + axes, 2 + 2 * axes), range(2, 2 + axes)
    return found.permute(0, 1, *kernel, *positions).reshape(len(inputs), found.shape[1] * math.prod(conv.kernel_size), -1)


def _find_padding(conv: Any) -> tuple[int, ...]:
    """Return a convolution's padding in numbers; "same" pads both sides equally here, which only shifts the patches."""
    if not isinstance(conv.padding, str):
        return tuple(conv.padding)
    if conv.padding == "valid":
        return (0,) * len(conv.kernel_size)
    return tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))


def pool_positions(features: Tensor) -> Tensor:
    """Return features (n, M, G): a convolution's positions (n, M, *) averaged on a grid; G is 1 without positions."""
    axes = features.dim() - 2
    if axes == 0:
        return features[:, :, None]
    return _POOLS[axes](features).flatten(2)
