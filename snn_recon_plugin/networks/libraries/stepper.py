"""Contract of a stepper: several time steps of a neuron as one operation, with the neuron's own values and gradients."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UnsupportedModuleError
from ..private.workbench import has_custom_forward

States = tuple[Tensor, ...]
# Gets distances from the threshold and the gradient of the spikes; returns the gradient of the distances, a new tensor.
Pull = Callable[[Tensor, Tensor], Tensor]
_CACHED = 2**19  # bytes
_gradient = torch.autograd.grad  # which ends a step of the user's while it is watched


@dataclass(frozen=True)
class Call:
    """Arguments of a call of a neuron."""

    x: Tensor  # [B, *], of one step; [T, B, *] if the neuron takes all steps in one call
    states: States  # [B, *] each


class Stepper(ABC):
    """Time steps of one neuron."""

    takes_sequences = False  # a call gives all steps
    membrane = 0  # its place among the states

    @abstractmethod
    def read(self, args: tuple[Any, ...]) -> Call | None:
        """Return what a call gives; None for a call that the neuron's own code must answer."""

    @abstractmethod
    def held(self, args: tuple[Any, ...]) -> States:
        """Return the states, of whatever shape, that a call gives or the neuron holds; none if it makes them."""

    def rest(self) -> None:  # noqa: B027 -- most neurons need none
        """Forget the states that the neuron holds; nothing for one that always holds some."""

    @abstractmethod
    def scan(self, x: Tensor, states: States, steps: int, shared: bool) -> tuple[Tensor, States]:
        """Take steps.

        Args:
            x: inputs ``[T, B, *]``; ``[B, *]`` if all steps share it.
            states: before the first step, ``[B, *]`` each.
            steps: their number T.
            shared: all steps have the same input.

        Returns:
            Spikes and states after each step, ``[T, B, *]`` each.
        """

    @abstractmethod
    def left(self, output: Any) -> States:
        """Return the states after a call that the neuron's own code answered with ``output``."""

    @abstractmethod
    def answer(self, spikes: Tensor, states: States) -> Any:
        """Store the states as the neuron does, and return what its call returns.

        Spikes and states are those of one step, or of all steps if the neuron takes them in one call.
        """


def pull_through(function: Callable[[Tensor], Tensor]) -> Pull:
    """Return the gradient of any surrogate function, through its own backward pass."""

    def pull(distance: Tensor, grad: Tensor) -> Tensor:
        with torch.enable_grad():
            variable = distance.detach().requires_grad_()
            return _gradient(function(variable), variable, grad)[0]

    return pull


class Surrogate:
    """Derivative of spikes.

    Args:
        through: its product with a gradient.
        slope: writes it over distances from the threshold; None for a function without such a formula.
        threshold: of the membranes.
    """

    def __init__(self, through: Pull, slope: Callable[[Tensor], Tensor] | None, threshold: Tensor | float) -> None:
        self.through, self.slope, self.threshold = through, slope, threshold

    def begin(self, membranes: Tensor, out: Tensor | None = None, *, any_gradient: bool = True) -> Tensor:
        """Return what :meth:`pull` takes, for each of some steps ``[n, B, *]``; zeros if no spike has a gradient."""
        if not any_gradient:
            return torch.zeros_like(membranes) if out is None else out.zero_()
        found = torch.sub(membranes, self.threshold, out=out)
        return found if self.slope is None else self.slope(found)

    def pull(self, found: Tensor, gradient: Tensor | None) -> None:
        """Write the gradient of the membranes of a step in place of what :meth:`begin` found; None stands for zeros."""
        if gradient is None:
            found.zero_()
        elif self.slope is not None:
            found.mul_(gradient)
        else:
            found.copy_(self.through(found, gradient))


def steps_in_cache(state: Tensor) -> int:
    """Return how many steps a backward pass takes at once, given a state: more would leave a processor's cache."""
    return max(1, _CACHED // max(1, state.numel() * state.element_size()))


def add_decayed(steps: Tensor, factor: Tensor) -> Tensor:
    """Add to each step what follows it, times a factor a step; in place, from the last step ``[T, *]`` to the first.

    Args:
        steps: ``[T, *]``.
        factor: a number, one a unit, or ``[T, *]`` of each step for the one before.
    """
    number = float(factor) if factor.numel() == 1 else None
    of_steps = factor.unbind(0) if factor.dim() == steps.dim() else [factor] * len(steps)
    parts = steps.unbind(0)
    for step in range(len(parts) - 2, -1, -1):
        if number is not None:
            parts[step].add_(parts[step + 1], alpha=number)
        else:
            parts[step].addcmul_(parts[step + 1], of_steps[step + 1])
    return steps


def recurrent_gradient(gradients: Tensor, first: Tensor, spikes: Tensor) -> Tensor:
    """Return the gradient of recurrent weights.

    Args:
        gradients: of the currents of all steps, ``[T, B, M]``.
        first: spikes before the first step, ``[B, M]``.
        spikes: after each step, ``[T, B, M]``.
    """
    gradient = gradients[0].flatten(0, -2).T @ first.flatten(0, -2)
    return gradient.addmm_(gradients[1:].flatten(0, -2).T, spikes[:-1].flatten(0, -2))


def gradient_factor(module: nn.Module) -> float | None:
    """Return the factor on gradients through an nn.Linear, 1 unless it is damped; None for others, or with hooks of the user."""
    hooks = [hook for held in (module._forward_hooks, module._backward_hooks, module._backward_pre_hooks) for hook in held.values()]
    factors = [getattr(hook, "gradient_factor", math.nan) for hook in module._forward_pre_hooks.values()]
    factor = math.prod(map(float, factors))
    return None if type(module) is not nn.Linear or has_custom_forward(module) or hooks or math.isnan(factor) else factor


def refuse_second_order() -> None:
    """Raise if a backward pass is recorded."""
    if torch.is_grad_enabled():
        raise UnsupportedModuleError(
            "a second derivative (create_graph=True) through fast_steps",
            "first derivatives",
            "call remove() of the handle before, or leave out fast_steps",
        )
