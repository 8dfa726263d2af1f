"""Operations over all time steps, in place of those of single steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..networks.libraries.stepper import Stepper


def walk(values: Tensor, index: Any, axis: int) -> Tensor:
    """Return what a loop takes step by step, as in ``values[:, step]``, ``[T, *]``."""
    return values[index].movedim(axis, 0)


def all_steps(values: Tensor, dim: int = 0) -> Tensor:
    """Return the items that ``unbind`` gives, ``[T, *]``."""
    return values.movedim(dim, 0)


def stack_steps(steps: Tensor, dim: int = 0) -> Tensor:
    """Return the stack of tensors that are together already, ``[T, *]``."""
    return steps.movedim(0, dim)


def once(linear: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return the output of a linear layer, computed once for a step that was expanded over time."""
    if x.dim() < 3 or x.stride(0) != 0:
        return linear(x, *args, **kwargs)
    found = linear(x[0], *args, **kwargs)
    return found.expand(len(x), *found.shape)


def add_sum(start: Any, steps: Tensor) -> Tensor:
    """Return the sum over steps ``[T, *]``, added to where a loop starts."""
    total = steps.sum(0)
    return total if isinstance(start, int | float) and start == 0 else start + total


def scan(
    stepper: Stepper, steps: int, first: tuple[Any, ...], states: tuple[Tensor | None, ...], x: Tensor, *, from_rest: bool
) -> list[Tensor]:
    """Return the spikes and the states of a neuron after each step, ``[T, *]`` each, and let it hold the last ones.

    Args:
        stepper: of the neuron.
        steps: their number.
        first: arguments of the first call.
        states: before it; None for those that the neuron finds itself, none if it makes them.
        x: inputs ``[T, *]``, or one of the shape of the first call's that all steps share.
        from_rest: whatever the neuron holds is forgotten.
    """
    if from_rest:
        stepper.rest()
    call = stepper.read(first)
    assert call is not None
    before = tuple(map(_start, states, call.states)) if states else call.states
    spikes, after = stepper.scan(x, before, steps, shared=x.dim() == first[0].dim())
    stepper.answer(spikes[-1], tuple(state[-1] for state in after))
    return [spikes, *after]


def _start(own: Tensor | None, found: Tensor) -> Tensor:
    """Return a state that was made in the pass, zeros if it has another shape; else the one that the neuron found."""
    if own is None:
        return found
    return own if own.shape == found.shape else torch.zeros_like(found)


def answer_all(stepper: Stepper, *args: Any) -> Any:
    """Return what a neuron returns that takes all steps in one call."""
    call = stepper.read(args)
    assert call is not None
    steps = len(call.x)
    shared = steps > 1 and call.x.stride(0) == 0
    return stepper.answer(*stepper.scan(call.x[0] if shared else call.x, call.states, steps, shared))
