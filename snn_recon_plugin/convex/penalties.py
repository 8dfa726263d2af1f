"""Penalties of the readout weights ``W`` (C, P); ``W[:, j]`` are the outgoing weights of hidden neuron j."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from .checks import check_name


class Penalty(ABC):
    """Convex penalty of W that is zero at W = 0, with derivatives on its active set: zero entries of W count as inactive."""

    name: str  # the option value
    sparse: bool = True  # True if a finite strength makes all weights zero (so that a critical strength exists)
    separable: bool = False  # True if it is a sum over outputs, by ``by_output``, and the prox takes a step for every entry, (C, P)

    @abstractmethod
    def value(self, weight: Tensor) -> Tensor:
        """Return the penalty of ``weight``, a scalar tensor."""

    def by_output(self, weight: Tensor) -> Tensor:
        """Return the penalties of single outputs, (C,); only a separable penalty has them."""
        raise NotImplementedError

    @abstractmethod
    def prox(self, weight: Tensor, step: Tensor | float) -> Tensor:
        """Return ``argmin_V 1/2 ||V - W||^2 / step + penalty(V)``; a step for all, each column (P,) or each entry (C, P)."""

    @abstractmethod
    def dual_norm(self, gradient: Tensor) -> Tensor:
        """Return the smallest strength at which ``gradient`` (C, P) keeps all weights at zero, a scalar tensor."""

    @abstractmethod
    def conjugate(self, gradient: Tensor, strength: float) -> Tensor:
        """Return the conjugate of ``strength * penalty`` at ``gradient``, infinite outside its domain."""

    def same_side(self, weight: Tensor, reference: Tensor) -> Tensor:
        """Return True for entries of ``weight`` on the same side of the penalty's kink as ``reference``, bool (C, P).

        The other entries have crossed the kink, beyond which second-order models are invalid.  A penalty without kinks has none.
        """
        return torch.ones_like(weight, dtype=torch.bool)

    @abstractmethod
    def gradient(self, weight: Tensor) -> Tensor:
        """Return the gradient at the non-zero part of ``weight``; zero elsewhere."""

    @abstractmethod
    def hessian_diagonal(self, weight: Tensor) -> Tensor:
        """Return the diagonal of the second derivative at the non-zero part of ``weight``, (C, P)."""

    def hessian_product(self, weight: Tensor, direction: Tensor) -> Tensor:
        """Return the second derivative times ``direction``; a penalty that couples entries overrides this."""
        return self.hessian_diagonal(weight) * direction

    def cvxpy_value(self, cvxpy: Any, weight: Any) -> Any:
        """Return the penalty as an expression of CVXPY, for a variable of shape (C, P); without it no CVXPY solver takes it."""
        raise NotImplementedError


class _Norm(Penalty):
    """Penalty that is a norm: its conjugate is the indicator of the dual norm's ball."""

    def conjugate(self, gradient: Tensor, strength: float) -> Tensor:
        inside = self.dual_norm(gradient) <= strength * (1 + 1e-12)  # up to rounding
        return torch.where(inside, 0.0, torch.inf).to(gradient.dtype)


class GroupL1(_Norm):
    """Group lasso ``sum_j ||W[:, j]||_2``, the path norm of arXiv 2605.08022 for p = 2."""

    name = "group_l1"

    def value(self, weight: Tensor) -> Tensor:
        return column_norms(weight).sum()

    def prox(self, weight: Tensor, step: Tensor | float) -> Tensor:
        norms = column_norms(weight)
        return weight * (1 - step / norms.clamp_min(torch.finfo(weight.dtype).tiny)).clamp_min(0)

    def same_side(self, weight: Tensor, reference: Tensor) -> Tensor:
        return ((weight * reference).sum(0) > 0).expand_as(weight)

    def gradient(self, weight: Tensor) -> Tensor:
        return _unit_columns(weight)

    def hessian_product(self, weight: Tensor, direction: Tensor) -> Tensor:
        unit = _unit_columns(weight)
        return inverse(column_norms(weight)) * (direction - unit * (unit * direction).sum(0))

    def hessian_diagonal(self, weight: Tensor) -> Tensor:
        return inverse(column_norms(weight)) * (1 - _unit_columns(weight).square())

    def dual_norm(self, gradient: Tensor) -> Tensor:
        return column_norms(gradient).max()

    def cvxpy_value(self, cvxpy: Any, weight: Any) -> Any:
        return cvxpy.sum(cvxpy.norm(weight, 2, axis=0))


class L1(_Norm):
    """Lasso ``sum_jk |W[k, j]|``."""

    name = "l1"
    separable = True

    def value(self, weight: Tensor) -> Tensor:
        return weight.abs().sum()

    def by_output(self, weight: Tensor) -> Tensor:
        return weight.abs().sum(1)

    def prox(self, weight: Tensor, step: Tensor | float) -> Tensor:
        return weight.sign() * (weight.abs() - step).clamp_min(0)

    def same_side(self, weight: Tensor, reference: Tensor) -> Tensor:
        return weight * reference > 0

    def gradient(self, weight: Tensor) -> Tensor:
        return weight.sign()

    def hessian_diagonal(self, weight: Tensor) -> Tensor:
        return torch.zeros_like(weight)

    def dual_norm(self, gradient: Tensor) -> Tensor:
        return gradient.abs().max()

    def cvxpy_value(self, cvxpy: Any, weight: Any) -> Any:
        return cvxpy.sum(cvxpy.abs(weight))


class Ridge(Penalty):
    """Ridge ``1/2 ||W||^2``, summed over all entries; conjugate ``||V||^2 / (2 strength)``."""

    name = "ridge"
    sparse = False
    separable = True

    def value(self, weight: Tensor) -> Tensor:
        return 0.5 * weight.square().sum()

    def by_output(self, weight: Tensor) -> Tensor:
        return 0.5 * weight.square().sum(1)

    def prox(self, weight: Tensor, step: Tensor | float) -> Tensor:
        return weight / (1 + step)

    def gradient(self, weight: Tensor) -> Tensor:
        return weight

    def hessian_diagonal(self, weight: Tensor) -> Tensor:
        return torch.ones_like(weight)

    def dual_norm(self, gradient: Tensor) -> Tensor:
        """Return infinity unless the gradient is zero: no finite strength makes the weights exactly zero."""
        return torch.where((gradient == 0).all(), 0.0, torch.inf).to(gradient.dtype)

    def conjugate(self, gradient: Tensor, strength: float) -> Tensor:
        return gradient.square().sum() / (2 * strength)

    def cvxpy_value(self, cvxpy: Any, weight: Any) -> Any:
        return 0.5 * cvxpy.sum_squares(weight)


PENALTIES: dict[str, type[Penalty]] = {kind.name: kind for kind in (GroupL1, L1, Ridge)}


def make_penalty(penalty: str | Penalty) -> Penalty:
    """Return a penalty by name, or the given Penalty; raise an OptionError that lists the valid names for an unknown one."""
    if isinstance(penalty, Penalty):
        return penalty
    check_name("penalty", penalty, sorted(PENALTIES), "ridge")
    return PENALTIES[penalty]()


def column_norms(weight: Tensor) -> Tensor:
    """Return the Euclidean norm of each neuron's outgoing weights (C, P), (P,)."""
    return weight.square().sum(0).sqrt()  # ten times as fast as torch.linalg.vector_norm for so few rows


def inverse(sizes: Tensor) -> Tensor:
    """Return 1 / size, and 0 for size 0."""
    return torch.where(sizes > 0, 1 / sizes.clamp_min(torch.finfo(sizes.dtype).tiny), 0.0)


def _unit_columns(weight: Tensor) -> Tensor:
    return weight * inverse(column_norms(weight))
