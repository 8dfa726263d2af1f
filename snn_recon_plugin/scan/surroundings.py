"""Surroundings of a pass: attributes of modules, and Python values that the user's functions read."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping
from functools import lru_cache, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..networks.libraries import is_neuron

_LARGEST = 32  # items of a container that are compared one by one; of larger ones the size
_LIBRARIES = {"torch", "numpy", "snntorch", "norse", "spikingjelly", "lightning", "pytorch_lightning", "torchmetrics"}
_LIBRARIES |= {"snn_recon_plugin", "torchvision", "random", "collections", "threading", "logging"}

_APART = {"_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook"}  # attributes of each module

Surroundings = dict[tuple[str, str], Hashable]  # by the name of a module or function, and of what it reads


class Same:
    """An object that equals itself alone, and stays alive, so that no other one takes its id."""

    def __init__(self, held: object) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.held is other.held

    def __hash__(self) -> int:
        return id(self.held)


def kind_of(tensor: Tensor) -> Hashable:
    """Return all of a tensor but its values."""
    strides = tensor.stride() if tensor.layout is torch.strided else None
    return tensor.shape, tensor.dtype, tensor.device, strides, tensor.requires_grad and torch.is_grad_enabled()


def surroundings_of(net: nn.Module, run: Callable[..., Any], inputs: Iterable[Tensor] = (), *, exact: bool = False) -> Surroundings:
    """Return what a run of a net depends on, in a form that is equal as long as it stays.

    Args:
        net: whose modules run.
        run: the function that runs it.
        inputs: of the run.
        exact: tensors have to be the same ones; else of the same kinds.
    """
    look = _Look(exact)
    for place, tensor in enumerate(inputs):
        look.found["input", str(place)] = look.show(tensor)
    look.found["forward", ""] = look.show(run)
    inside: set[nn.Module] = set()  # parts of neurons
    for name, module in net.named_modules():
        neuron = is_neuron(module)
        if neuron:
            inside.update(module.modules())
        look.module(name, module, is_part=module in inside, with_hooks=module in inside and not neuron)
    return look.found


class _Look:
    def __init__(self, exact: bool) -> None:
        self.found: Surroundings = {}
        self._exact = exact
        self._numbers: dict[int, int] = {}  # of tensors, by id: some may be the same one
        self._read: set[Hashable] = set()  # functions

    def module(self, name: str, module: nn.Module, *, is_part: bool, with_hooks: bool) -> None:
        """Add a module's attributes; of neurons and their parts all but tensors that are no parameters."""
        if _package(type(module)) == "torchmetrics":
            return
        self.found[name, "module"] = Same(module)
        for key, value in vars(module).items():
            if key in _APART or (is_part and isinstance(value, Tensor)):
                continue
            if key == "_memories":  # states of SpikingJelly
                held = () if self._exact else value.values()  # a pass may change them
                self.found[name, key] = tuple(None if isinstance(state, Tensor) else state for state in held)
            elif "_hooks" not in key or with_hooks:
                self.found[name, key] = self.show(value)
        for key, value in module._buffers.items():
            if not (is_part and key in module._non_persistent_buffers_set):
                self.found[name, key] = self.show(value)
        for kind in type(module).__mro__:
            if _package(kind) in _LIBRARIES:
                break
            self.found[name, kind.__name__] = self._members(kind)

    def show(self, value: Any, depth: int = 0) -> Hashable:
        """Return a value in a form that is equal as long as the value is."""
        if value is None or isinstance(value, int | float | str | complex | bytes):
            return value
        if isinstance(value, Tensor):
            return Same(value) if self._exact else (kind_of(value), self._numbers.setdefault(id(value), len(self._numbers)))
        if isinstance(value, list | tuple | set | deque | Mapping):
            if len(value) > _LARGEST or depth > 2:
                return Same(value), len(value)
            parts = [*value.items()] if isinstance(value, Mapping) else value
            return type(value).__name__, *(self.show(part, depth + 1) for part in parts)
        return self._show_object(value, depth)

    def _show_object(self, value: Any, depth: int) -> Hashable:
        if isinstance(value, np.ndarray):
            return value.shape, value.tobytes() if value.size <= _LARGEST else Same(value)
        if (
            isinstance(value, Generator | random.Random | np.random.Generator | np.random.RandomState)
            or _package(value) == "itertools"
        ):
            return object()  # its state may change: equal to nothing
        if isinstance(value, partial):
            return self.show(value.func), self.show(value.args, depth), self.show(value.keywords, depth)
        if isinstance(value, property):
            return self.show(value.fget)
        if isinstance(value, MethodType):
            return self.show(value.__func__), Same(value.__self__)
        value = getattr(value, "__func__", value)  # of a static method
        if isinstance(value, FunctionType):
            self._function(value)
        elif depth == 0 and not isinstance(value, nn.Module | ModuleType) and _package(value) not in _LIBRARIES:
            return Same(value), self._members(value)
        return Same(value)

    def _members(self, value: Any) -> Hashable:
        """Return attributes of an object, or a class."""
        if isinstance(value, type) and issubclass(value, Tensor):
            return None
        members = getattr(value, "__dict__", {})
        return tuple(
            (name, self.show(member, 1)) for name, member in members.items() if not name.startswith("__") or name == "__call__"
        )

    def _function(self, function: FunctionType) -> None:
        """Add the values around a function that it reads, and those that the functions among them read."""
        code = function.__code__
        if function in self._read or _package(function) in _LIBRARIES:
            return
        self._read.add(function)
        place = f"{function.__module__}.{function.__qualname__}"
        if function.__closure__ and (place, "closure") not in self.found:
            self.found[place, "closure"] = None
            self.found[place, "closure"] = tuple(map(self._content, function.__closure__))
        self.found[place, "defaults"] = self.show(function.__defaults__), self.show(function.__kwdefaults__)
        names, around = _names(code), function.__globals__
        for name in names:
            if name in around and (place, name) not in self.found:
                value = around[name]
                if isinstance(value, ModuleType):
                    if value.__name__.partition(".")[0] in _LIBRARIES:
                        continue
                    members = {key: vars(value)[key] for key in names if key in vars(value)}
                    self.found[place, name] = tuple(v for v in members.values() if isinstance(v, int | float | str))
                else:
                    self.found[place, name] = self.show(value)

    def _content(self, cell: Any) -> Hashable:
        try:
            return self.show(cell.cell_contents)
        except ValueError:  # not there yet
            return None


def _package(value: Any) -> str:
    module = getattr(value, "__module__", None) or type(value).__module__
    return str(module).partition(".")[0]


@lru_cache(maxsize=4096)
def _names(code: CodeType) -> tuple[str, ...]:
    """Return names that a function reads, and those of functions inside."""
    inside = (name for part in code.co_consts if isinstance(part, CodeType) for name in _names(part))
    return tuple(dict.fromkeys((*code.co_names, *inside)))
