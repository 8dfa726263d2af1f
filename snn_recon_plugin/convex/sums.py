"""Sum of a sparse penalty and a ridge: the ridge makes the optimum unique, and keeps correlated neurons together."""

from __future__ import annotations

from torch import Tensor

from ..errors import OptionError
from .checks import positive_number
from .penalties import Penalty

__all__ = ["Elastic"]


class Elastic(Penalty):
    """Elastic net ``sparse(W) + share / 2 ||W||^2``.

    Its conjugate, for a strength s, is ``dist(V, ball)^2 / (2 s share)`` with the ball of radius s of the sparse penalty's dual
    norm.  It is finite everywhere, so no dual point needs to be shrunk.

    Args:
        sparse: group_l1 or l1.
        share: weight of the ridge, positive.

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
        """Return the sum of both."""
        return self.base.value(weight) + 0.5 * self.share * weight.square().sum()

    def by_output(self, weight: Tensor) -> Tensor | None:
        """Return the sums of both, (C,); None if the sparse penalty has none."""
        base = self.base.by_output(weight)
        return None if base is None else base + 0.5 * self.share * weight.square().sum(1)

    def prox(self, weight: Tensor, step: Tensor | float) -> Tensor:
        """Return the sparse penalty's, divided by ``1 + share * step``."""
        return self.base.prox(weight, step) / (1 + self.share * step)

    def same_side(self, weight: Tensor, reference: Tensor) -> Tensor:
        """Return the sparse penalty's result: the ridge has no kink."""
        return self.base.same_side(weight, reference)

    def gradient(self, weight: Tensor) -> Tensor:
        """Return the sum of both."""
        return self.base.gradient(weight) + self.share * weight

    def hessian_product(self, weight: Tensor, direction: Tensor) -> Tensor:
        """Return the sum of both."""
        return self.base.hessian_product(weight, direction) + self.share * direction

    def hessian_diagonal(self, weight: Tensor) -> Tensor:
        """Return the sum of both."""
        return self.base.hessian_diagonal(weight) + self.share

    def dual_sizes(self, gradient: Tensor) -> Tensor:
        """Return the sparse penalty's: the ridge has no slope at zero."""
        return self.base.dual_sizes(gradient)

    def conjugate(self, gradient: Tensor, strength: float) -> Tensor:
        """Return ``||prox(V, strength)||^2 / (2 strength share)``: the sparse prox removes the part inside the dual ball."""
        return self.base.prox(gradient, strength).square().sum() / (2 * strength * self.share)

    def neuron_sizes(self, weight: Tensor) -> Tensor:
        """Return the sparse penalty's."""
        return self.base.neuron_sizes(weight)
