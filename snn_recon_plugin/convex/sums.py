"""A sparse penalty and a ridge together: the ridge makes the optimum unique and keeps correlated neurons side by side."""

from __future__ import annotations

from torch import Tensor

from ..errors import OptionError
from .checks import positive_number
from .penalties import Penalty

__all__ = ["Elastic"]


class Elastic(Penalty):
    """``sparse(W) + share / 2 ||W||^2``.

    Its conjugate, for a strength s, is ``dist(V, ball)^2 / (2 s share)`` with the ball of radius s of the sparse penalty's dual
    norm; it is finite everywhere, so no dual point needs to be shrunk.

    Args:
        sparse: group_l1 or l1.
        share: weight of the ridge beside it, positive.

    Raises:
        OptionError: ``sparse`` is not a sparse penalty, or ``share`` is not positive.
    """

    def __init__(self, sparse: Penalty, share: float = 1.0) -> None:
        if not sparse.sparse or isinstance(sparse, Elastic):
            raise OptionError(f"sparse={sparse.name!r}", "group_l1 or l1", "pass Elastic(GroupL1(), share=1.0)")
        self.base, self.share = sparse, positive_number("share", share, "a positive number", "pass share=1.0")
        self.name = f"{sparse.name}+ridge"
        self.separable = sparse.separable

    def value(self, weight: Tensor) -> Tensor:
        """Sum of both."""
        return self.base.value(weight) + 0.5 * self.share * weight.square().sum()

    def by_output(self, weight: Tensor) -> Tensor | None:
        """Sums of both, (C,); None where the sparse penalty has none."""
        base = self.base.by_output(weight)
        return None if base is None else base + 0.5 * self.share * weight.square().sum(1)

    def prox(self, weight: Tensor, step: Tensor | float) -> Tensor:
        """The sparse penalty's, divided by ``1 + share * step``."""
        return self.base.prox(weight, step) / (1 + self.share * step)

    def same_side(self, weight: Tensor, reference: Tensor) -> Tensor:
        """As the sparse penalty: the ridge has no kink."""
        return self.base.same_side(weight, reference)

    def gradient(self, weight: Tensor) -> Tensor:
        """Sum of both."""
        return self.base.gradient(weight) + self.share * weight

    def hessian_product(self, weight: Tensor, direction: Tensor) -> Tensor:
        """Sum of both."""
        return self.base.hessian_product(weight, direction) + self.share * direction

    def hessian_diagonal(self, weight: Tensor) -> Tensor:
        """Sum of both."""
        return self.base.hessian_diagonal(weight) + self.share

    def dual_sizes(self, gradient: Tensor) -> Tensor:
        """The sparse penalty's: the ridge has no slope at zero."""
        return self.base.dual_sizes(gradient)

    def conjugate(self, gradient: Tensor, strength: float) -> Tensor:
        """``||prox(V, strength)||^2 / (2 strength share)``: the sparse prox removes exactly what the dual ball holds."""
        return self.base.prox(gradient, strength).square().sum() / (2 * strength * self.share)

    def neuron_sizes(self, weight: Tensor) -> Tensor:
        """The sparse penalty's."""
        return self.base.neuron_sizes(weight)
