"""Plan of a pass: its operations, those of all time steps as one, in an order in which they can run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..networks.calls.batches import map_tensors, tensors_in
from .tape import Origin, Value

Place = tuple[int, int]  # a site, and the position of a tensor among its outputs


class Steps(NamedTuple):
    """Outputs of a site, ``[T, *]``, from one of its calls to before another."""

    site: int
    position: int
    start: int
    stop: int


@dataclass(frozen=True)
class Node:
    """Operation of a plan; in its arguments and its output, values and steps stand in place of tensors."""

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


Leaf = Value | Steps  # what stands in place of tensors
leaves = partial(tensors_in, kind=Value)
mapped = partial(map_tensors, kind=Leaf)


@dataclass(frozen=True)
class Layout:
    """Places of tensors: one step of all steps, or all steps of single tensors."""

    elements: Mapping[int, tuple[Place, int]]  # by the number of a value: its place, and its step
    members: Mapping[Place, tuple[int, ...]]  # numbers of the values of all steps; none for sites that are one operation

    def read(self, tree: Any) -> Iterator[int | Place]:
        """Yield what has to be there for some arguments: tensors by their numbers, those of all steps by their places."""
        for leaf in tensors_in(tree, Leaf):
            if isinstance(leaf, Value):
                yield self.elements[leaf.number][0] if leaf.number in self.elements else leaf.number
            elif leaf[:2] in self.members:
                yield from self.members[leaf[:2]][leaf.start : leaf.stop]
            else:
                yield leaf[:2]


def made_by(node: Node) -> Iterator[int | Place]:
    """Yield what an operation makes, as :meth:`Layout.read` does."""
    for leaf in tensors_in(node.output, Leaf):
        yield leaf.number if isinstance(leaf, Value) else leaf[:2]


@dataclass(frozen=True)
class PassPlan:
    """Operations of a pass.

    Args:
        nodes: in order.
        returned: what the pass returns.
        same: values that an earlier operation has made.
        sources: tensors that it finds, by number.
        layout: of the tensors of all steps.
        done: what it does with the calls of each layer and neuron.
    """

    nodes: list[Node]
    returned: Any
    same: Mapping[Value, Value]
    sources: Mapping[int, Origin]
    layout: Layout
    done: Mapping[nn.Module, Done]

    def part(self, returned: Any, *, with_states: bool) -> PassPlan:
        """Return the plan of a part of what the pass returns; of states that neurons hold, all or those that it needs."""
        needed, effects, kept = set(self.layout.read(self.first(returned))), set[object](), list[Node]()
        for node in reversed(self.nodes):
            stays = with_states or not all(isinstance(effect, nn.Module) for effect in node.effects)
            if (stays and node.effects) or not needed.isdisjoint(made_by(node)) or not effects.isdisjoint(node.effects):
                kept.append(node)
                needed.update(self.layout.read((node.args, node.kwargs)))
                effects |= node.effects
        return replace(self, nodes=kept[::-1], returned=returned)

    def first(self, tree: Any) -> Any:
        """Return nested arguments with the values that were made first in place of the same ones."""
        return mapped(lambda leaf: self.same.get(leaf, leaf), tree)

    def run(self, inputs: list[Tensor], *, own: bool = True) -> Any:
        """Return what the pass returns for inputs; for a user's own, tensors that share no memory, as in the loop."""
        tensors = _Tensors(self, inputs)
        for node in self.nodes:
            args, kwargs = mapped(tensors.find, node.args), node.kwargs and mapped(tensors.find, node.kwargs)
            tensors.store(node.output, node.function(*args, **kwargs))
        given = dict[Value, Value]()  # by the value that was found

        def find(leaf: Value) -> Tensor:
            first = self.same.get(leaf, leaf)
            tensor = tensors.find(first)
            return tensor.clone() if own and (tensor._is_view() or given.setdefault(first, leaf) != leaf) else tensor

        return mapped(find, self.returned)


class _Tensors:
    """Tensors of a run of a plan."""

    def __init__(self, plan: PassPlan, inputs: list[Tensor]) -> None:
        self.plan, self.inputs = plan, inputs
        self._single: dict[int, Any] = {}
        self._stepped: dict[Place, Tensor] = {}
        self._split: dict[Place, tuple[Tensor, ...]] = {}

    def find(self, leaf: Value | Steps) -> Tensor:
        """Return the tensor of a value, or of steps."""
        return self._value(leaf.number) if isinstance(leaf, Value) else self._steps(leaf)

    def _value(self, number: int) -> Tensor:
        if number not in self._single:
            if number in self.plan.sources:
                return self.plan.sources[number].find(self.inputs)
            place, step = self.plan.layout.elements[number]
            if place not in self._split:
                self._split[place] = self._stepped[place].unbind(0)
            self._single[number] = self._split[place][step]
        found: Tensor = self._single[number]
        return found

    def _steps(self, steps: Steps) -> Tensor:
        place = steps[:2]
        if place not in self._stepped:
            numbers = self.plan.layout.members[place][steps.start : steps.stop]
            return torch.stack([self._value(number) for number in numbers])
        whole = self._stepped[place]
        return whole if steps.stop - steps.start == len(whole) else whole[steps.start : steps.stop]

    def store(self, output: Any, made: Any) -> None:
        """Keep what an operation made."""
        if isinstance(output, Value):
            self._single[output.number] = made
        elif isinstance(output, Steps):
            self._stepped[output[:2]] = made
        elif isinstance(output, Mapping):
            for key, item in output.items():
                self.store(item, made[key])
        elif isinstance(output, tuple | list):
            for item, value in zip(output, made, strict=True):
                self.store(item, value)
