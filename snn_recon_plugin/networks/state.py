"""State of modules except the values of their parameters: recorded, and put back bit for bit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .interrupts import run_all

__all__ = ["MODULE_ATTRIBUTES", "ModuleState", "same_bits"]

MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))  # those of every module, such as parameters and hooks; all others are the user's


class ModuleState:
    """Buffers, attributes, modes, hooks and Parameter objects of some modules at one moment.

    Libraries keep membranes in unregistered tensors, buffers, named tuples and lists, and users add their own recordings.  So all
    attributes are kept, and the contents of tensors and mutable containers, which may be changed in place.  Of a parameter the
    object and ``requires_grad`` are kept, not its value.

    Args:
        modules: the modules, kept with their submodules and with modules in plain lists and dicts.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._tensors: dict[int, tuple[Tensor, Tensor | None, bool]] = {}
        self._containers: dict[int, tuple[Any, Any]] = {}
        for module in modules:
            self._remember(module)

    def restore(self, but: Collection[int] = ()) -> None:
        """Put every attribute, object and content back; what is unchanged is not written to.

        The call may be repeated after an interrupt.  An error is raised after the rest has been put back.

        Args:
            but: ids of tensors whose content stays as it is now.
        """
        raised = run_all(self._steps(but))
        if raised:
            raise raised[0]

    def _steps(self, but: Collection[int]) -> Iterator[Callable[[], object]]:
        yield from (partial(_refill, *container) for container in self._containers.values())
        for tensor, content, requires_grad in self._tensors.values():
            yield partial(_rewrite, tensor, None if id(tensor) in but else content, requires_grad)

    def _remember(self, value: Any) -> None:
        """Keep the contents of a module, tensor or container, and of everything in it."""
        if isinstance(value, Tensor):
            if value.device.type != "meta" and id(value) not in self._tensors:
                content = None if isinstance(value, nn.Parameter) else value.detach().clone()
                self._tensors[id(value)] = (value, content, value.requires_grad)
        elif isinstance(value, nn.Module):
            self._remember(vars(value))
        elif isinstance(value, (list, dict, set, deque)):
            if id(value) not in self._containers:
                self._containers[id(value)] = (value, value.copy())
                for item in value.values() if isinstance(value, dict) else value:
                    self._remember(item)
        elif isinstance(value, tuple):
            for item in value:
                self._remember(item)


def _refill(container: Any, items: Any) -> None:
    """Give a mutable container its items back, unless it is unchanged."""
    if isinstance(container, dict):
        # Not emptied first: an interrupt must not leave a module without its attributes.
        for key in [key for key in container if key not in items]:
            del container[key]
        if list(map(id, container.values())) != list(map(id, items.values())):
            container.update(items)
        if list(container) != list(items):  # in another order
            container.clear()
            container.update(items)
    elif isinstance(container, set):
        if container != items:
            container.clear()
            container.update(items)
    elif list(map(id, container)) != list(map(id, items)):
        container.clear()
        container.extend(items)


def _rewrite(tensor: Tensor, content: Tensor | None, requires_grad: bool) -> None:
    """Copy the old contents and ``requires_grad`` back if the tensor was changed in place.

    A write into an unchanged tensor would raise its version and break a backward pass still to come.
    """
    if content is not None and not same_bits(tensor, content):
        with torch.inference_mode() if tensor.is_inference() else nullcontext():
            tensor.detach().copy_(content)
    if tensor.is_leaf and tensor.requires_grad != requires_grad:
        tensor.requires_grad_(requires_grad)  # some cells use their constants as their first state


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Compare contents as bytes, so that NaN equals NaN and 0.0 differs from -0.0."""
    if left.layout is not torch.strided or left.is_quantized or left.shape != right.shape:
        return False
    return torch.equal(_as_bytes(left), _as_bytes(right))


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
