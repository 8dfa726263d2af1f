"""Contract of a stepper: several time steps of a neuron as one operation, with the neuron's own values and gradients."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UnsupportedModuleError
from ..private.workbench import has_custom_forward

States = tuple[Tensor, ...]
# Gets distances from the threshold, which it may write into; returns the derivative of the spikes.
Slope = Callable[[Tensor], Tensor]
_CACHED = 2**19  # bytes
_gradient = torch.autograd.grad  # which ends a step of the user's while it is watched


class Stepper(ABC):
    """Time steps of one neuron."""

    takes_sequences = False  # a call gives all steps
    membrane = 0  # its place among the states

    @abstractmethod
    def read(self, args: tuple[Any, ...]) -> tuple[Tensor, States] | None:
        """Return input, ``[B, *]`` or ``[T, B, *]`` of all steps, and states of a call; None if the neuron itself must answer."""

    @abstractmethod
    def held(self, args: tuple[Any, ...]) -> States:
        """Return the states, of whatever shape, that a call gives or the neuron holds; none if it makes them."""

    def rest(self) -> None:  # noqa: B027 -- most neurons need none
        """Forget the states that the neuron holds; nothing for one that always holds some."""

    @abstractmethod
    def scan(self, x: Tensor, states: States, steps: int, shared: bool) -> tuple[Tensor, States]:
        """Take steps with inputs ``[T, B, *]``, or ``[B, *]`` that all share; return spikes and states after each one."""

    @abstractmethod
    def left(self, output: Any) -> States:
        """Return the states after a call that the neuron's own code answered with ``output``."""

    @abstractmethod
    def answer(self, spikes: Tensor, states: States) -> Any:
        """Store the states as the neuron does, and return what its call returns.

        Spikes and states are those of one step, or of all steps if the neuron takes them in one call.
        """


def slope_of(function: Callable[[Tensor], Tensor]) -> Slope:
    """Return the derivative of any surrogate function, through its own backward pass."""

    def slope(distances: Tensor) -> Tensor:
        with torch.enable_grad():
            variable = distances.detach().requires_grad_()
            spikes = function(variable)
            return _gradient(spikes, variable, torch.ones_like(spikes))[0]

    return slope


def slopes_backwards(
    membranes: Tensor, threshold: Tensor | float, slope: Slope | None, out: Tensor | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield the steps of membranes ``[T, B, *]`` from the last one to the first, each with the derivatives of its spikes.

    They are computed for as many steps at once as stay in a processor's cache, zeros without a ``slope``, and written into ``out``.
    """
    size = max(1, _CACHED // max(1, membranes[0].numel() * membranes.element_size()))
    for stop in range(len(membranes), 0, -size):
        part = slice(max(0, stop - size), stop)
        found = torch.empty_like(membranes[part]) if out is None else out[part]
        if slope is None:
            found.zero_()
        else:
            found.copy_(slope(torch.sub(membranes[part], threshold, out=found)))
        yield from zip(range(stop - 1, part.start - 1, -1), reversed(found.unbind(0)), strict=True)


def recurrent_gradient(gradients: Tensor, first: Tensor, spikes: Tensor) -> Tensor:
    """Return the gradient of recurrent weights, of that of all steps' currents and the spikes before (``first``) and after them."""
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
