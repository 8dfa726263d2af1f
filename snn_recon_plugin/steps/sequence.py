"""Values of consecutive time steps in one tensor, and the step that a tensor of the user's loop belongs to."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from ..errors import NetworkError


def root_of(x: Tensor) -> Tensor:
    """Return the tensor that holds the memory of ``x``: itself, or the one that it is a view of."""
    base = x._base
    return x if base is None else base


def is_tracked(x: Tensor) -> bool:
    """Return whether a tensor has a place in memory, and writes into it and into what is made of it are counted."""
    return x.layout is torch.strided and not (x.is_inference() or torch.is_inference_mode_enabled())


class Kept:
    """A tensor that may be given again, until it is written into or a backward pass has used up its graph."""

    def __init__(self, values: Tensor) -> None:
        self.values, self._version, self._spent = values, values._version, False
        if values.grad_fn is not None:
            own = weakref.ref(self)  # the graph must not hold what holds the graph
            values.grad_fn.register_hook(lambda *gradients: _spend(own()))

    @property
    def is_valid(self) -> bool:
        """True if the values and their graph are as they were made."""
        return not self._spent and self.values._version == self._version

    def release(self) -> None:
        """Give the values up."""
        self._spent, self.values = True, self.values.new_empty(0)


def _spend(kept: Kept | None) -> None:
    if kept is not None:
        kept.release()


_FRESH: int = torch.empty(0).set_(torch.empty(0).untyped_storage())._version  # of a step that nobody wrote into


def is_written(step: Tensor) -> bool:
    """Return whether a step from :func:`split` was written into."""
    return bool(step._version != _FRESH)


class _Split(torch.autograd.Function):
    """The steps of a sequence, in its memory; no views, since torch forbids many writes into views."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> tuple[Tensor, ...]:
        """Return the steps."""
        storage, start, apart = values.untyped_storage(), values.storage_offset(), values.stride(0)
        shape, strides = values.shape[1:], values.stride()[1:]
        steps = tuple(values.new_empty(0).set_(storage, start + step * apart, shape, strides) for step in range(len(values)))
        ctx.steps = [step.detach() for step in steps]  # which share the count of writes, and don't hold the graph
        ctx.set_materialize_grads(False)
        return steps

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Tensor | None:
        """Return the gradient of all steps; refuse it if a step was written into, since the sequence is needed as it was."""
        if any(map(is_written, ctx.steps)):
            found = "an operation that writes into the output of a layer or neuron with faster steps, such as mem.clamp_()"
            raise NetworkError(found, "operations that return a new tensor", "write mem = mem.clamp(...), or leave out fast_steps")
        given = next((gradient for gradient in gradients if gradient is not None), None)
        if given is None:
            return None
        return torch.stack([torch.zeros_like(given) if gradient is None else gradient for gradient in gradients])


def split(values: Tensor) -> tuple[Tensor, ...]:
    """Return the steps of a sequence."""
    steps: tuple[Tensor, ...] = _Split.apply(values)  # type: ignore[no-untyped-call]
    return steps


class Sequence(Kept):
    """Values ``[T, B, *]`` of T steps.

    A tensor is recognised as one step by its place in memory, so views of a step, such as ``x.flatten(1)``, are too.

    Args:
        values: of all steps.
        made: by a layer or neuron; else they are the user's, who takes views of them.
    """

    def __init__(self, values: Tensor, made: bool = True) -> None:
        super().__init__(values)
        self.made, self.root = made, root_of(values)
        self.slices = split(values) if made else values.unbind(0)
        self.results: dict[object, tuple[object, Sequence]] = {}  # of layers, with the condition under which they hold

    def owns(self, root: Tensor) -> bool:
        """Return whether a tensor is the memory of the steps; once they are given up, none is."""
        return root is self.root or any(root is step for step in self.slices)

    def release(self) -> None:
        """Give the values up, and those that layers made of them."""
        super().release()
        self.slices, self.root, self.results = (), self.values, {}

    def holds(self, step: int) -> bool:
        """Return whether a step is as it was made."""
        return self.is_valid and not (self.made and is_written(self.slices[step]))

    def find(self, x: Tensor) -> int | None:
        """Return the step that a tensor has the values of; None if there is none."""
        if not self.is_valid:
            return None
        first = self.slices[0]
        alike = x.shape == first.shape and x.stride() == first.stride()
        reshaped = x.numel() == first.numel() and x.is_contiguous() and first.is_contiguous()
        if not (alike or reshaped) or x.requires_grad != first.requires_grad or x.dtype != first.dtype:
            return None
        step, rest = divmod(int(x.storage_offset()) - int(first.storage_offset()), self.values.stride(0) or 1)
        if rest or not 0 <= step < len(self.slices):
            return None
        is_step = root_of(x) is (self.slices[step] if self.made else self.root)
        return step if is_step and self.holds(step) else None

    def shaped_like(self, x: Tensor) -> Tensor:
        """Return the values with steps of the shape of ``x``."""
        return self.values if self.slices[0].shape == x.shape else self.values.reshape(len(self.slices), *x.shape)


class Tape:
    """The sequences that are in use, by the memory that holds them."""

    def __init__(self) -> None:
        self.lengths: dict[object, int] = {}  # steps of the last pass, by neuron
        self.calls = self.passes = 0  # of the net; passes are those that can be told apart
        self.loops_inside = False  # within the last call of the net, a neuron took several steps
        self._sequences: weakref.WeakValueDictionary[int, Sequence] = weakref.WeakValueDictionary()

    @property
    def steps(self) -> int:
        """Steps of the last pass; 1 if some neuron's states were cut off in between, whose graph may be gone."""
        return min(self.lengths.values(), default=1)

    def begin_call(self) -> None:
        """Note a call of the net; it begins a pass if the time loop is inside."""
        self.calls += 1
        self.passes += self.loops_inside
        self.loops_inside = False

    def add(self, sequence: Sequence) -> Sequence:
        """Add a sequence, unless its memory is another one's; it is found as long as something else holds it."""
        for root in (sequence.root, *(sequence.slices if sequence.made else ())):
            known = self._sequences.get(id(root))
            if known is None or not known.is_valid:
                self._sequences[id(root)] = sequence
        return sequence

    def holds(self, x: Tensor) -> bool:
        """Return whether a tensor is part of a sequence."""
        root = root_of(x)
        sequence = self._sequences.get(id(root))  # which may be an id that a tensor had whose memory was given up
        return sequence is not None and sequence.owns(root)

    def find(self, x: Tensor) -> tuple[Sequence, int] | None:
        """Return the sequence and the step that a tensor has the values of."""
        sequence = self._sequences.get(id(root_of(x)))
        step = None if sequence is None else sequence.find(x)
        return None if sequence is None or step is None else (sequence, step)


class Place:
    """A tensor's place in memory, its version and the gradient mode: equal places hold equal values."""

    def __init__(self, x: Tensor) -> None:
        self._root, self._version = root_of(x), x._version
        self._layout = (x.storage_offset(), x.shape, x.stride(), x.dtype, x.requires_grad, torch.is_grad_enabled())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Place):
            return NotImplemented
        return self._root is other._root and (self._version, self._layout) == (other._version, other._layout)

    __hash__ = None  # type: ignore[assignment]


def condition_of(tensors: list[Tensor], training: bool) -> tuple[object, ...]:
    """Return what a kept result depends on, beside its input: parameters and their versions, and modes."""
    versions = [(id(tensor), tensor._version) for tensor in tensors]
    return (*versions, training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"))
