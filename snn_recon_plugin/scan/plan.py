"""Plan of a pass: its operations, those of all time steps as one, in an order in which they can run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..networks.calls.batches import refilled
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
    effects: frozenset[object] = frozenset()  # nodes that share one keep their order
    stays: bool = False  # though nobody takes its output
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


def leaves(tree: Any, kind: type[Any] = Value) -> Iterator[Any]:
    """Yield the values, or the steps, in nested arguments."""
    if isinstance(tree, Value | Steps):
        if isinstance(tree, kind):
            yield tree
    elif isinstance(tree, tuple | list | Mapping):
        for item in tree.values() if isinstance(tree, Mapping) else tree:
            yield from leaves(item, kind)


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return nested arguments with ``function`` of each value, and of steps, in its place."""
    if isinstance(tree, Value | Steps):
        return function(tree)
    if isinstance(tree, tuple):
        items = [mapped(function, item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    if isinstance(tree, list):
        return [mapped(function, item) for item in tree]
    if isinstance(tree, Mapping):
        return refilled(tree, {key: mapped(function, item) for key, item in tree.items()})
    return tree


@dataclass(frozen=True)
class Layout:
    """Places of tensors: one step of all steps, or all steps of single tensors."""

    elements: Mapping[int, tuple[Place, int]]  # by the number of a value: its place, and its step
    members: Mapping[Place, tuple[int, ...]]  # numbers of the values of all steps; none for sites that are one operation

    def read(self, tree: Any) -> Iterator[int | Place]:
        """Yield what has to be there for some arguments: tensors by their numbers, those of all steps by their places."""
        for leaf in leaves(tree, object):
            if isinstance(leaf, Value):
                yield self.elements[leaf.number][0] if leaf.number in self.elements else leaf.number
            elif leaf[:2] in self.members:
                yield from self.members[leaf[:2]][leaf.start : leaf.stop]
            else:
                yield leaf[:2]


def made_by(node: Node) -> Iterator[int | Place]:
    """Yield what an operation makes, as :meth:`Layout.read` does."""
    for leaf in leaves(node.output, object):
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

    def run(self, inputs: list[Tensor]) -> Any:
        """Return what the pass returns for inputs."""
        tensors = _Tensors(self, inputs)
        for node in self.nodes:
            args, kwargs = mapped(tensors.find, node.args), node.kwargs and mapped(tensors.find, node.kwargs)
            tensors.store(node.output, node.function(*args, **kwargs))
        given = dict[Value, Value]()  # by the value that was found

        def own(leaf: Value) -> Tensor:
            """Return a tensor that the user may write into: one that shares its memory with no other, as in the loop."""
            first = self.same.get(leaf, leaf)
            tensor = tensors.find(first)
            return tensor.clone() if tensor._is_view() or given.setdefault(first, leaf) != leaf else tensor

        return mapped(own, self.returned)


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
