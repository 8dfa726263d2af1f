r"""Direction of a proximal Newton step, by preconditioned conjugate gradients.

With a step t_j for each hidden neuron let ``W+ = prox(W - t grad)``.  Its zero entries are predicted inactive and jump to zero.  On
the others the penalty is expanded to second order around W+ (gradient p, Hessian E), and the loss around W (gradient g, Hessian H).
This gives the linear system

    (H + E) d = -(g + p) - E (W - W+) - H d_inactive        on the active entries, jointly with the bias,

solved by preconditioned conjugate gradients, for each output separately if nothing couples them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..certificate import Evaluation
from ..curvature import Curvature
from ..features import Features
from ..penalties import NewtonPenalty, inverse
from ..problem import Problem
from .preconditioner import heaviest_rows, preconditioner

_LEFT_OUT = 0.3  # share of the curvature that products may omit, over the relative residual that conjugate gradients leave
_NEGLIGIBLE = 1e-2  # share of an output's part of the accuracy; in float32 steps of an output that is nearly solved overflow


@dataclass(frozen=True)
class Direction:
    """Step in (W, b) for features as given, float64."""

    weight: Tensor
    bias: Tensor
    proximal: Tensor  # (C, P), proximal point whose zeros are predicted inactive and around which the penalty was expanded
    products: int  # conjugate gradient steps, each of two products with the active features
    active: tuple[int, ...] = ()  # number of features of each preconditioner that was made


def newton_direction(
    problem: Problem, point: Evaluation, damping: Tensor, *, dtype: torch.dtype, tol: float, max_products: int
) -> Direction:
    """Return the semismooth Newton step at ``point``, whose bias is exact.

    With a sparse penalty ``damping`` times the curvature, one for each output (C,) or for all (1,), is added to the system's
    diagonal.  The system is singular without it if the loss is flat and the penalty linear, e.g. cross-entropy with l1 along equal
    changes of all classes.  ``tol`` is the factor by which the preconditioned residual has to fall.  The next step corrects the
    errors of the precision ``dtype``.
    """
    curvature = problem.loss.curvature(point.scores, problem.targets)
    proximal, added = point.weight, torch.zeros_like(point.weight)
    if problem.penalty.sparse:
        moments = curvature_moments(problem, curvature)
        proximal, added = prox_point(problem, point, moments), damping[:, None] * moments
    # With a penalty that is not sparse all weights are active, zeros included, and all columns are available.
    nonzero = proximal != 0 if problem.penalty.sparse else torch.ones_like(proximal, dtype=torch.bool)
    neurons = nonzero.any(0).nonzero()[:, 0]
    mask = nonzero[:, neurons]
    to_zero = torch.where(nonzero, 0.0, -point.weight)
    if len(neurons) == 0:
        return Direction(to_zero, torch.zeros_like(point.bias), proximal, 0)
    columns = problem.features.columns(None if len(neurons) == problem.features.num_features else neurons, dtype)
    reduced, damped = proximal[:, neurons].to(dtype), added[..., neurons].to(dtype)
    system = _System(problem, columns, curvature.to(dtype), reduced, mask, damped)
    system.leave_out(_LEFT_OUT * tol)
    right, right_shift = system.right_side(problem, point, proximal, neurons, to_zero)
    step, shift, products = _conjugate_gradients(system, right, right_shift, tol, max_products)
    full = to_zero.index_copy(1, neurons, torch.where(mask, step.double(), to_zero[:, neurons]))
    active = tuple(mask.sum(1).tolist()) if system.masked else (len(neurons),)
    return Direction(full, shift.double() - problem.features.centring(full), proximal, products, active)


def prox_point(problem: Problem, point: Evaluation, moments: Tensor) -> Tensor:
    """Return ``prox(W - t grad)``, (C, P), with t the inverse of ``moments``."""
    steps = inverse(moments)
    proximal: Tensor = problem.penalty.prox(point.weight - steps * point.gradient, steps * problem.strength)
    return problem.features.shards.broadcast(proximal)


def curvature_moments(problem: Problem, curvature: Curvature) -> Tensor:
    """Return the loss's second derivative in every weight, (C, P), or its mean over classes (P,) for a penalty of groups."""
    weights, features = curvature.entries(), problem.features
    if problem.penalty.separable:
        return features.second_moments(weights)
    return features.second_moments(weights.mean(1, keepdim=True))[0]


class _System:
    """Matrix of the Newton system on the active entries, and its preconditioner."""

    def __init__(
        self, problem: Problem, columns: Features, curvature: Curvature, proximal: Tensor, mask: Tensor, damping: Tensor
    ) -> None:
        self.columns, self.curvature, self.proximal = columns, curvature, proximal
        self.leading, self.bend = columns, curvature
        self.mask, self.damping, self.masked = mask, damping, not bool(mask.all())
        assert isinstance(problem.penalty, NewtonPenalty)  # see Newton.supports
        self.strength, self.penalty = problem.strength, problem.penalty
        self.separate = problem.separate
        diagonal = self.strength * self.penalty.hessian_diagonal(proximal) + damping
        self.precondition = preconditioner(columns, curvature.entries(), diagonal, mask if self.masked else None)
        bends = columns.row_mean(columns.bias_column.square() * curvature.entries())
        self.bias_scale = bends.clamp_min(torch.finfo(columns.dtype).tiny)

    def leave_out(self, share: float) -> None:
        """Leave the rows that carry the least curvature, up to ``share`` of it, out of products.

        Most samples of a fitted classifier have almost none.
        """
        mass = 1 - share
        rows = heaviest_rows(self.columns.row_weights * self.curvature.entries().sum(1), mass)
        if rows is not None:
            self.leading, self.bend = self.columns.part(rows, mass), self.curvature.part(rows)

    def restrict(self, weight: Tensor) -> Tensor:
        """Return ``weight`` with zeros at the inactive entries."""
        return torch.where(self.mask, weight, 0.0) if self.masked else weight

    def product(self, weight: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Return about the matrix times a step (C, A) with bias (C,); the next Newton step corrects what the products omit."""
        scores = self.leading.centred_scores(weight, shift)
        result, result_shift = self.leading.adjoint(self.bend.product(scores))
        result = result + self.strength * self.penalty.hessian_product(self.proximal, weight) + self.damping * weight
        return self.restrict(result), result_shift

    def inner(self, weight: Tensor, other: Tensor, shift: Tensor, other_shift: Tensor) -> Tensor:
        """Return inner products of two steps, the same on all ranks: (C, 1) if outputs are separate, else (1, 1)."""
        products = (weight * other).sum(1) + shift * other_shift
        return self.columns.shards.broadcast(products if self.separate else products.sum()[None])[:, None]

    def right_side(
        self, problem: Problem, point: Evaluation, proximal: Tensor, neurons: Tensor, to_zero: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the right-hand side of the system, (C, A) and (C,)."""
        dtype = self.proximal.dtype
        lag = point.weight[:, neurons] - proximal[:, neurons]
        slope = self.penalty.gradient(proximal[:, neurons]) + self.penalty.hessian_product(proximal[:, neurons], lag)
        right = -(point.gradient[:, neurons] + self.strength * slope)
        if not bool((to_zero != 0).any()):
            return self.restrict(right.to(dtype)), torch.zeros_like(self.bias_scale)
        moved = problem.features.scores(to_zero, -problem.features.centring(to_zero))
        change, shift = self.columns.adjoint(self.curvature.product(moved.to(dtype)))
        return self.restrict(right.to(dtype) - change), -shift


def _conjugate_gradients(
    system: _System, right: Tensor, right_shift: Tensor, tol: float, max_products: int
) -> tuple[Tensor, Tensor, int]:
    """Run preconditioned conjugate gradients from zero; stop early at a direction without curvature."""
    step, shift = torch.zeros_like(right), torch.zeros_like(right_shift)
    residual, residual_shift = right, right_shift
    solved, solved_shift = system.precondition(residual), residual_shift / system.bias_scale
    direction, direction_shift = solved, solved_shift
    size = first = system.inner(residual, solved, residual_shift, solved_shift)
    negligible = _NEGLIGIBLE * tol * tol * first.mean()
    products, going = 0, size > negligible
    while products < max_products and bool(going.any()):
        image, image_shift = system.product(direction, direction_shift)
        products += 1
        bend = system.inner(direction, image, direction_shift, image_shift)
        going = going & (bend > 0) & (size > negligible)
        length = torch.where(going, size / bend, 0.0)
        step, shift = step + length * direction, shift + length[:, 0] * direction_shift
        residual, residual_shift = residual - length * image, residual_shift - length[:, 0] * image_shift
        solved, solved_shift = system.precondition(residual), residual_shift / system.bias_scale
        last, size = size, system.inner(residual, solved, residual_shift, solved_shift)
        if (size * going).sum() <= tol * tol * first.sum():  # a stopped output does not delay the others
            break
        turn = torch.where(going, size / last, 0.0)
        direction = torch.where(going, solved + turn * direction, 0.0)
        direction_shift = torch.where(going[:, 0], solved_shift + turn[:, 0] * direction_shift, 0.0)
    return step, shift, products
