"""Plan of a pass: its operations, those of all time steps as one, in an order in which they can run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..networks.calls.batches import map_tensors, tensors_in
from .tape import Origin, Value

leaves = partial(tensors_in, kind=Value)
mapped = partial(map_tensors, kind=Value)


@dataclass(frozen=True)
class Node:
    """Operation of a plan; values stand in place of tensors."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    effects: frozenset[object] = frozenset()  # neurons, random numbers and buffers: nodes that share one keep their order
    module: nn.Module | None = None  # neuron, or layer whose parameters it takes


@dataclass(frozen=True)
class Done:
    """Calls of a layer or neuron, and operations that take them."""

    calls: int
    operations: int
    is_neuron: bool

    def __str__(self) -> str:
        steps = "1 step" if self.calls == 1 else f"{self.calls} steps"
        if self.operations >= self.calls:
            return f"as usual, {steps}"
        if self.is_neuron:
            return f"{steps} in {self.operations} operation{'s' if self.operations > 1 else ''}"
        return f"computed {'once' if self.operations == 1 else f'{self.operations} times'} for {steps}"


@dataclass(frozen=True)
class PassPlan:
    """Operations of a pass.

    Args:
        nodes: in order.
        returned: what the pass returns.
        same: values that an earlier operation has made.
        sources: tensors that it finds, by number.
        done: what it does with the calls of each layer and neuron.
    """

    nodes: list[Node]
    returned: Any
    same: Mapping[Value, Value]
    sources: Mapping[int, Origin]
    done: Mapping[nn.Module, Done]

    def part(self, returned: Any, *, with_states: bool) -> PassPlan:
        """Return the plan of a part of what the pass returns; of states that neurons hold, all or those that it needs."""
        needed, effects, kept = {self.same.get(leaf, leaf) for leaf in leaves(returned)}, set[object](), list[Node]()
        for node in reversed(self.nodes):
            stays = with_states or not all(isinstance(effect, nn.Module) for effect in node.effects)
            if (stays and node.effects) or not needed.isdisjoint(leaves(node.output)) or not effects.isdisjoint(node.effects):
                kept.append(node)
                needed.update(leaves((node.args, node.kwargs)))
                effects |= node.effects
        return replace(self, nodes=kept[::-1], returned=returned)

    def run(self, inputs: list[Tensor], *, own: bool = True) -> Any:
        """Return what the pass returns for inputs; for a user's own, tensors that share no memory, as in the loop."""
        made = dict[Value, Tensor]()
        given = dict[Value, Value]()  # by the value that was found

        def find(leaf: Value) -> Tensor:
            return made[leaf] if leaf in made else self.sources[leaf.number].find(inputs)

        def give(leaf: Value) -> Tensor:
            first = self.same.get(leaf, leaf)
            tensor = find(first)
            return tensor.clone() if own and (tensor._is_view() or given.setdefault(first, leaf) != leaf) else tensor

        for node in self.nodes:
            args, kwargs = mapped(find, node.args), node.kwargs and mapped(find, node.kwargs)
            _keep(node.output, node.function(*args, **kwargs), made)
        return mapped(give, self.returned)


def _keep(output: Any, found: Any, made: dict[Value, Tensor]) -> None:
    """Keep the tensors that an operation made."""
    if isinstance(output, Value):
        made[output] = found
    elif isinstance(output, Mapping):
        for key, item in output.items():
            _keep(item, found[key], made)
    elif isinstance(output, tuple | list):
        for item, value in zip(output, found, strict=True):
            _keep(item, value, made)


def difference(plain: Iterable[Tensor | None], planned: Iterable[Tensor | None], *, least: float = 0.0) -> float:
    """Return the largest difference of tensors, relative to the size of each; None stands for zeros.

    Args:
        plain: of the net's own code.
        planned: of its plan.
        least: share of the largest tensor's size that any size has at least.
    """
    pairs = [(one, other) for one, other in zip(plain, planned, strict=True) if one is not None or other is not None]
    if any(one is not None and other is not None and one.shape != other.shape for one, other in pairs):
        return math.inf
    none = torch.zeros(())
    both = [[none if each is None else each if each.dtype is torch.double else each.float() for each in pair] for pair in pairs]
    smallest = least * max((float(one.norm()) for one, _ in both), default=0.0)
    found = [(float((one - other).norm()), max(float(one.norm()), smallest)) for one, other in both]
    return max((distance / size if size else float(distance > 0) for distance, size in found), default=0.0)
