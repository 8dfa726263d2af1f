"""Values of consecutive time steps in one tensor, and the step that a tensor of the user's loop belongs to."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor


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


class Sequence(Kept):
    """Values ``[T, B, *]`` of T steps.

    A tensor is recognised as one step by its place in memory, so views of a step, such as ``x.flatten(1)``, are too.
    """

    def __init__(self, values: Tensor) -> None:
        super().__init__(values)
        self.slices, self.root = values.unbind(0), root_of(values)
        self.results: dict[object, tuple[object, Sequence]] = {}  # of layers, with the condition under which they hold

    def release(self) -> None:
        """Give the values up, and those that layers made of them."""
        super().release()
        self.slices, self.root, self.results = (), self.values, {}

    def find(self, x: Tensor) -> int | None:
        """Return the step that a tensor has the values of; None if there is none."""
        if not self.is_valid or root_of(x) is not self.root:
            return None
        first = self.slices[0]
        alike = x.shape == first.shape and x.stride() == first.stride()
        reshaped = x.numel() == first.numel() and x.is_contiguous() and first.is_contiguous()
        if not (alike or reshaped) or x.requires_grad != first.requires_grad or x.dtype != first.dtype:
            return None
        step, rest = divmod(int(x.storage_offset()) - int(first.storage_offset()), self.values.stride(0) or 1)
        return step if rest == 0 and 0 <= step < len(self.slices) else None

    def shaped_like(self, x: Tensor) -> Tensor:
        """Return the values with steps of the shape of ``x``."""
        return self.values if self.slices[0].shape == x.shape else self.values.reshape(len(self.slices), *x.shape)


class Tape:
    """The sequences that are in use, by the memory that holds them."""

    def __init__(self) -> None:
        self.steps = 1  # of the last pass
        self._sequences: weakref.WeakValueDictionary[int, Sequence] = weakref.WeakValueDictionary()

    def add(self, sequence: Sequence) -> Sequence:
        """Add a sequence, unless its memory is another one's; it is found as long as something else holds it."""
        known = self._sequences.get(id(sequence.root))
        if known is None or not known.is_valid:
            self._sequences[id(sequence.root)] = sequence
        return sequence

    def holds(self, x: Tensor) -> bool:
        """Return whether a tensor is part of a sequence."""
        return id(root_of(x)) in self._sequences

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
