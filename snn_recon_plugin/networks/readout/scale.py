"""Factor and offset of each output by which a net changes its readout's output, as a batch norm in evaluation mode does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..private.workbench import same_values

_ROUNDING = 1e-6  # of the largest value: a smaller offset is rounding
_LEAST_ROWS = 5  # two of them always lie on a line


@dataclass(frozen=True, eq=False)
class Scale:
    """``factor * value + offset`` for each output; ``[C]`` float64 each, or ``[1]`` for all outputs alike."""

    factor: Tensor  # never 0
    offset: Tensor

    def weight(self, weight: Tensor) -> Tensor:
        """Return the weight ``[C, P]`` that a scaled layer amounts to, in its dtype."""
        return (self.factor.to(weight.device)[:, None] * weight.double()).to(weight)

    def bias(self, bias: Tensor) -> Tensor:
        """Return the bias ``[C]`` that a scaled layer amounts to, in its dtype."""
        return self.values(bias.double()).to(bias)

    def invert(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the layer's own weight and bias, float64, which scaled amount to the given ones."""
        factor, offset = self.factor.to(weight.device), self.offset.to(weight.device)
        return weight.double() / factor[:, None], None if bias is None else (bias.double() - offset) / factor

    def values(self, values: Tensor) -> Tensor:
        """Scale values ``[*, C]``, in their dtype."""
        return values * self.factor.to(values) + self.offset.to(values)

    def after(self, first: Scale | None) -> Scale:
        """Return the scale that is ``first``, then this one."""
        return self if first is None else Scale(self.factor * first.factor, self.factor * first.offset + self.offset)


def fit_scale(values: Tensor, changed: Tensor) -> Scale | None:
    """Return the scale from values ``[*, C]`` to changed ones; None if they follow by no factor other than 0 and no offset."""
    if values.shape != changed.shape or values[..., 0].numel() < _LEAST_ROWS or not changed.is_floating_point():
        return None
    before, after = (each.flatten(0, -2).double().cpu() for each in (values, changed))
    centred = before - before.mean(0)
    factor = (centred * after).sum(0) / centred.square().sum(0).clamp_min(torch.finfo(torch.float64).tiny)
    offset, sizes = after.mean(0) - factor * before.mean(0), after.abs().amax(0)
    offset = torch.where(offset.abs() <= _ROUNDING * sizes, 0.0, offset)
    if not bool((torch.isfinite(factor) & (factor.abs() * centred.abs().amax(0) > _ROUNDING * sizes)).all()):
        return None
    expected = ((factor * before + offset) / sizes).to(changed.dtype)  # whose precision sets the tolerance
    return Scale(factor, offset) if same_values(expected, (after / sizes).to(changed.dtype)) else None
