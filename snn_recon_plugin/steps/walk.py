"""Steps that a user's loop takes from one tensor, as in ``for t in range(T): net(x[t])``."""

from __future__ import annotations

import torch
from torch import Tensor

from .sequence import Sequence, Tape, root_of

_LIMIT = 2**22  # bytes of a sequence: larger ones leave a processor's cache (benchmarks/studies/steps.py)


def at_once(steps: int, x: Tensor) -> int:
    """Return how many of the steps to take at once, given one of them."""
    return max(1, min(steps, _LIMIT // max(1, x.numel() * x.element_size())))


class Walk:
    """The inputs of one module, and the steps that will follow if the loop walks along a tensor as in the pass before."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self._given: Sequence | None = None  # steps that follow in the user's tensor
        self._at: tuple[Tensor, int, object] | None = None  # that tensor, the place of the last step in it, and condition
        self._run = 0  # consecutive steps of such a tensor so far

    def find(self, x: Tensor, condition: object) -> tuple[Sequence, int] | None:
        """Return the sequence and the step that an input has the values of: a module's outputs, or the user's tensor."""
        found = self.tape.find(x)
        if found is None or (found[0] is self._given and found[1] != self._run):
            return self._follow(x, condition)
        if found[0] is self._given:
            self._run += 1
        return found

    def _follow(self, x: Tensor, condition: object) -> tuple[Sequence, int] | None:
        """Count a step, or begin a pass with as many steps as the one before had."""
        root, offset = root_of(x), int(x.storage_offset())
        if root is x or x.dim() < 2 or x.numel() == 0 or x.requires_grad or not root.is_contiguous() or not x[0].is_contiguous():
            return None
        apart = x.numel() if x.is_contiguous() else x[0].numel()
        at, self._at = self._at, (root, offset, condition)
        if at is not None and at[0] is root and at[1:] == (offset - apart, condition):
            self._run += 1
            return None
        steps, self._run = at_once(self._run, x), 1
        if self._given is not None:
            self._given.release()
        shape, strides = (steps, *x.shape), (apart, *x.stride())
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if steps < 2 or last >= root.numel():
            return None
        values = root.as_strided(shape, strides, offset)
        if values.is_floating_point() and not bool(torch.isfinite(values.sum())):
            return None  # a layer's gradient would be NaN for steps that the loop may leave out
        self._given = self.tape.add(Sequence(values, made=False))
        return self._given, 0
