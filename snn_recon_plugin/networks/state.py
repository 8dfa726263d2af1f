"""Everything a module remembers between two calls that is not a parameter: taken down, and put back bit for bit."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ModuleState"]

# The attributes that nn.Module itself keeps: parameters, buffers, submodules, hooks, mode.  All others are the user's.
_OWN_ATTRIBUTES = frozenset(vars(nn.Module()))


class ModuleState:
    """The buffers and plain attributes of some modules at one moment.

    Libraries keep membranes in unregistered tensors, in non-persistent buffers, in named tuples and in lists, and
    users add recordings and counters of their own.  So all attributes are kept, and the contents of tensors and of
    mutable containers too, since either may be changed in place.  Parameters are not state and are left alone.

    Args:
        modules: whose state to keep; submodules count only if they are listed.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = [_OneModule(module) for module in modules]
        self._tensors: dict[int, tuple[Tensor, Tensor, bool]] = {}
        self._containers: dict[int, tuple[Any, Any]] = {}
        for kept in self._modules:
            for value in (*kept.buffers.values(), *kept.attributes.values()):
                self._remember(value)

    def restore(self) -> None:
        """Put every attribute, buffer object and content back as it was."""
        for container, items in self._containers.values():
            _refill(container, items)
        for tensor, copy, requires_grad in self._tensors.values():
            _rewrite(tensor, copy)
            if tensor.is_leaf and tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)  # Norse's IAF cells take their constants as their first state.
        for kept in self._modules:
            kept.restore()

    def _remember(self, value: Any) -> None:
        """Keep the contents of a tensor or container, and of what lies in it."""
        if isinstance(value, Tensor):
            if not isinstance(value, nn.Parameter) and value.device.type != "meta" and id(value) not in self._tensors:
                self._tensors[id(value)] = (value, value.detach().clone(), value.requires_grad)
        elif isinstance(value, (list, dict, set, deque)):
            if id(value) not in self._containers:
                self._containers[id(value)] = (value, value.copy())
                for item in value.values() if isinstance(value, dict) else value:
                    self._remember(item)
        elif isinstance(value, tuple):
            for item in value:
                self._remember(item)


class _OneModule:
    """Which objects hang on one module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.buffers = dict(module._buffers)
        self.temporary = set(module._non_persistent_buffers_set)
        self.attributes = {name: value for name, value in vars(module).items() if name not in _OWN_ATTRIBUTES}

    def restore(self) -> None:
        """Hang the same objects on the module again, and take away what came since."""
        own = vars(self.module)
        for name in [name for name in own if name not in _OWN_ATTRIBUTES and name not in self.attributes]:
            del own[name]
        own.update(self.attributes)
        self.module._buffers.clear()
        self.module._buffers.update(self.buffers)
        self.module._non_persistent_buffers_set.clear()
        self.module._non_persistent_buffers_set.update(self.temporary)


def _refill(container: Any, items: Any) -> None:
    """Give a mutable container its items back, and leave one that never changed alone."""
    if isinstance(container, dict):
        if list(map(id, container.values())) != list(map(id, items.values())) or list(container) != list(items):
            container.clear()
            container.update(items)
    elif isinstance(container, set):
        if container != items:
            container.clear()
            container.update(items)
    elif list(map(id, container)) != list(map(id, items)):
        container.clear()
        container.extend(items)


def _rewrite(tensor: Tensor, copy: Tensor) -> None:
    """Copy the old contents back if the tensor was changed in place.

    An untouched tensor is not written, for a write would raise its version and break a backward pass still to come.
    """
    if _same_bits(tensor, copy):
        return
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        tensor.copy_(copy)


def _same_bits(left: Tensor, right: Tensor) -> bool:
    """Compare contents as bytes, so that NaN equals NaN and 0.0 differs from -0.0."""
    if left.layout is not torch.strided or left.is_quantized or left.shape != right.shape:
        return False
    return torch.equal(_as_bytes(left), _as_bytes(right))


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
