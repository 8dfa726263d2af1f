"""Surroundings of a pass: attributes of modules, and Python values that the user's functions read."""

from __future__ import annotations

import random
import sysconfig
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from itertools import takewhile
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..networks.calls.forward import Within
from ..networks.libraries import LIBRARIES, is_neuron, parts_of_neurons
from ..read.step import ReadStep

_LARGEST = 32  # items of a container that are compared one by one; of larger ones the size
_LIBRARIES = {"torch", "numpy", "lightning", "pytorch_lightning", "torchmetrics", *(library.name for library in LIBRARIES)}
_LIBRARIES |= {"snn_recon_plugin", "torchvision", "random", "collections", "threading", "logging"}
_INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))
_CHANGING = (Iterator, random.Random, np.random.Generator, np.random.RandomState)  # each use changes them: equal to nothing
_APART = {"_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook"}  # attributes of each module

Surroundings = dict[tuple[str, str], Hashable]  # by the name of a module or function, and of what it reads


class Same:
    """An object that equals itself alone.  It is kept alive: another one could get its id."""

    def __init__(self, held: object) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.held is other.held

    def __hash__(self) -> int:
        return id(self.held)


_PLAIN = (int, float, str, complex, bytes, torch.device, torch.dtype, Same)


def surroundings_of(
    net: nn.Module,
    run: Callable[..., Any],
    inputs: Iterable[Tensor] = (),
    *,
    exact: bool = False,
    reads: Collection[str] | None = None,
) -> Surroundings:
    """Return what a run of a net on inputs depends on, in a form that is equal as long as it stays.

    If ``exact``, tensors have to be the same ones; else of the same kinds.  ``reads`` are names of the attributes of the net itself
    that matter, beside its mode; None for all.
    """
    look = _Look(exact, {*net.modules()})
    for place, tensor in enumerate(inputs):
        look.found["input", str(place)] = look.show(tensor)
    look.found["forward", ""] = look.show(run)
    inside = parts_of_neurons(net)
    unread = {*vars(net)} - {*reads, "training"} if reads is not None else set[str]()
    for name, module in net.named_modules():
        if package_of(type(module)) != "torchmetrics":
            left_out = _APART | unread if module is net else _APART
            look.module(name, module, left_out, is_part=module in inside or is_neuron(module), with_hooks=module in inside)
    return look.found


def modules_around(net: nn.Module, run: Callable[..., Any]) -> list[nn.Module]:
    """Return modules that a run of a net reads beside the net's own, such as a loss with weights of classes."""
    look = _Look(exact=False, inside={*net.modules()})
    look.show(run)
    return look.outside


class _Look:
    def __init__(self, exact: bool, inside: set[nn.Module]) -> None:
        self.found: Surroundings = {}
        self._exact, self._inside = exact, inside  # the net's modules, which are looked at one by one
        self._numbers: dict[int, int] = {}  # of tensors, by id: some may be the same one
        self._read: set[FunctionType] = set()
        self.outside: list[nn.Module] = []  # other modules without parts, such as losses

    def module(self, name: str, module: nn.Module, left_out: set[str], *, is_part: bool, with_hooks: bool) -> None:
        """Add a module's attributes but some; of neurons and their parts all but tensors that are no parameters."""
        self.found[name, "module"] = Same(module)
        for key, value in vars(module).items():
            if key in left_out or (is_part and isinstance(value, Tensor)):
                continue
            if key == "_memories" and (is_part or self._exact):  # states of SpikingJelly
                held = () if self._exact else value.values()  # a pass may change them
                self.found[name, key] = tuple(None if isinstance(state, Tensor) else self.show(state) for state in held)
            elif "_hooks" not in key or with_hooks:
                self.found[name, key] = self.show(value)
        for key, value in module._buffers.items():
            if not (is_part and key in module._non_persistent_buffers_set):
                self.found[name, key] = self.show(value)
        for kind in takewhile(lambda kind: package_of(kind) not in _LIBRARIES, type(module).__mro__):
            self.found[name, kind.__name__] = self.show(kind)

    def show(self, value: Any, depth: int = 0) -> Hashable:
        """Return a value in a form that is equal as long as the value is."""
        if value is None or isinstance(value, _PLAIN):
            return value
        is_loss = isinstance(value, nn.Module) and self._inside.isdisjoint(value.modules())
        if is_loss and not [*value.children()]:  # a change inside of parts would not be seen
            self.outside.append(value)
        whole, value = value, _unwrapped(value)
        depth -= value is not whole  # its parts are as deep as the whole
        if isinstance(value, Tensor):
            return Same(value) if self._exact else (_kind_of(value), self._numbers.setdefault(id(value), len(self._numbers)))
        if isinstance(value, _CHANGING):
            return object()
        if isinstance(value, list | tuple | set | deque | Mapping):
            if len(value) > _LARGEST or depth > 2:
                return Same(value), len(value)
            parts = [*value, *value.values()] if isinstance(value, Mapping) else value
            return type(value).__name__, *(self.show(part, depth + 1) for part in parts)
        if isinstance(value, FunctionType):
            self._function(value)
        elif depth == 0 and (is_loss or (not isinstance(value, nn.Module | ModuleType) and package_of(value) not in _LIBRARIES)):
            members = getattr(value, "__dict__", {}).items()
            return Same(value), *((key, self.show(each, 1)) for key, each in members if key[:2] != "__" or key == "__call__")
        return Same(value)

    def _function(self, function: FunctionType) -> None:
        """Add the values around a function that it reads, and those that the functions among them read."""
        if function in self._read or package_of(function) in _LIBRARIES or _is_apart(function):
            return
        self._read.add(function)
        names, around, cells = names_in(function.__code__), function.__globals__, function.__closure__ or ()
        read = {name: around[name] for name in names if name in around}
        read |= zip(function.__code__.co_freevars, map(_content, cells), strict=True)
        read["defaults"] = function.__defaults__, function.__kwdefaults__
        for name, value in read.items():
            if not isinstance(value, ModuleType):
                shown = self.show(value)
            elif value.__name__.partition(".")[0] in _LIBRARIES:
                continue
            else:
                shown = self.show({key: vars(value)[key] for key in names if key in vars(value)})
            place = function.__qualname__, name
            self.found[place] = self.found.get(place), shown  # another function may have this name


def _unwrapped(value: Any) -> Any:
    """Return what a method, a partial function or a small array consists of."""
    if isinstance(value, partial):
        return value.func, *value.args, value.keywords
    if isinstance(value, MethodType):
        return value.__func__, Same(value.__self__)
    if isinstance(value, ReadStep | Within):
        return Same(value), value.step if isinstance(value, ReadStep) else value.inner
    if isinstance(value, np.ndarray) and value.size <= _LARGEST:
        return value.tolist()
    return value.fget if isinstance(value, property) else value.__func__ if isinstance(value, staticmethod | classmethod) else value


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not there yet
        return None


def _kind_of(tensor: Tensor) -> Hashable:
    """Return all of a tensor but its values."""
    strides = tensor.stride() if tensor.layout is torch.strided else None
    return tensor.shape, tensor.dtype, tensor.device, strides, tensor.requires_grad and torch.is_grad_enabled()


def package_of(value: Any) -> str:
    """Return the package that a function or class, or else an object's class, is of."""
    module = getattr(value, "__module__", None) or type(value).__module__
    return str(module).partition(".")[0]


def _is_apart(function: FunctionType) -> bool:
    """Return whether a function is of an installed package and has no part in tensors: plots and logs read thousands of values."""
    return function.__code__.co_filename.startswith(_INSTALLED) and "torch" not in function.__globals__


@lru_cache(maxsize=4096)
def names_in(code: CodeType) -> tuple[str, ...]:
    """Return names that a function reads, and those of functions inside."""
    inside = (name for part in code.co_consts if isinstance(part, CodeType) for name in names_in(part))
    return tuple(dict.fromkeys((*code.co_names, *inside)))
