"""Private copy of a user's net, on which all work runs, so that the user's net stays as it is; and its tensors' contents."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import NetworkError
from ..calls.batches import tensors_in
from .quiet import full_precision, refuse_lazy, unwrap, user_attributes


@dataclass(frozen=True)
class Workbench:
    """A private copy of a net, on which the user's hooks run as on the origin, and the net it was copied from."""

    net: nn.Module
    origin: nn.Module  # the user's net, which is only read

    @classmethod
    def of(cls, net: nn.Module, shared: Iterable[object] = ()) -> Workbench:
        """Copy a net; of a compiled one the net inside.  Both refer to the objects in ``shared``, such as a trainer."""
        net = unwrap(net)
        refuse_lazy(net)
        return cls(private_copy(net, shared), net)

    def origin_of(self, module: nn.Module) -> nn.Module:
        """Return the user's module that a module of the copy was copied from."""
        return self.origin.get_submodule(next(name for name, own in self.net.named_modules() if own is module))


def probe_copy(net: nn.Module) -> tuple[nn.Module, dict[nn.Module, nn.Module]]:
    """Copy a net, with shared parameters, for a pass that may spoil its state; return it, and its module for each of the net's."""
    copied = private_copy(net, net.parameters())
    return copied, dict(zip(net.modules(), copied.modules(), strict=True))


def private_copy(net: nn.Module, shared: Iterable[object] = ()) -> nn.Module:
    """Copy a net with all it holds.

    Hidden states that hang in a graph, which ``deepcopy`` refuses, become detached clones.  Attributes that can't be copied, such
    as a lock, are shared, like the objects in ``shared``.  Errors are those of :meth:`Workbench.of`.
    """
    known = {id(value): value for value in shared}
    with full_precision():  # tensors made in inference mode could never be trained
        copied = _copied(net, dict(known))
    for one, other in zip(net.modules(), copied.modules(), strict=True):  # a LightningModule's copy forgets its trainer
        vars(other).update({name: value for name, value in vars(one).items() if id(value) in known})
    return copied


def take_over(kept: nn.Module, fresh: nn.Module) -> bool:
    """Let a private copy hold what another, fresh copy of the same net holds; its modules stay the same objects.

    Return whether it does: its modules have to be of the same kinds, and what they hold has to be what ``deepcopy`` can copy.
    Objects that both copies share with the net, such as a trainer, stay shared.
    """
    mine, theirs = list(kept.modules()), list(fresh.modules())
    if list(map(type, mine)) != list(map(type, theirs)):
        return False
    known: dict[int, Any] = {}
    for old, new in zip(mine, theirs, strict=True):
        known |= {id(value): value for name, value in vars(new).items() if vars(old).get(name) is value}
        known[id(new)] = old
    try:
        held = copy.deepcopy([vars(module) for module in theirs], known)
    except Exception:
        return False
    for module, values in zip(mine, held, strict=True):
        vars(module).clear()
        vars(module).update(values)
    return True


def copy_around(net: nn.Module, part: nn.Module, private: nn.Module, shared: Iterable[object] = ()) -> nn.Module:
    """Copy a net that holds, in the place of a part, that part's private copy."""
    held: dict[int, object] = {id(old): new for old, new in zip(part.modules(), private.modules(), strict=True)}
    held |= {id(old): new for old, new in zip(part.parameters(), private.parameters(), strict=True)}
    return _copied(net, {**{id(value): value for value in shared}, **held})


def _copied(net: nn.Module, memo: dict[int, Any]) -> nn.Module:
    for module in net.modules():
        for value in [*vars(module).values(), *module._buffers.values()]:
            memo |= {id(part): part.detach().clone() for part in tensors_in(value) if not part.is_leaf}
    try:
        return copy.deepcopy(net, dict(memo))
    except (MemoryError, torch.OutOfMemoryError) as error:
        held = sum(tensor.numel() * tensor.element_size() for tensor in [*net.parameters(), *net.buffers()])
        found = f"a {type(net).__name__} of {held / 2**30:.1f} GiB of parameters and buffers, without memory for a second copy"
        fix = "free memory, or move the net to a device with more of it"
        raise NetworkError(found, "memory for a private copy of the net, which all work is done on", fix) from error
    except Exception:  # an attribute that can't be copied; which one it is takes a search
        memo |= {id(value): value for value in _uncopyable(net, memo)}
    try:
        return copy.deepcopy(net, memo)
    except Exception as error:
        found = f"a {type(net).__name__} that can't be copied ({type(error).__name__}: {error})"
        fix = "correct the __deepcopy__ of its modules, or hold the part that can't be copied outside the net"
        raise NetworkError(found, "a net that copy.deepcopy(net) can copy, since work is done on a private copy", fix) from error


def _uncopyable(net: nn.Module, memo: dict[int, Any]) -> Iterator[object]:
    """Yield the hooks and attributes of a net's modules, other than tensors and modules, that can't be copied."""
    tables = [value for module in net.modules() for name, value in vars(module).items() if name.endswith("_hooks")]
    hooks = [hook for table in tables if isinstance(table, dict) for hook in table.values()]
    for value in [*(value for _, _, value in user_attributes(net)), *hooks]:
        if isinstance(value, Tensor | nn.Module) or id(value) in memo:
            continue
        try:
            copy.deepcopy(value, dict(memo))
        except Exception:
            yield value


def has_custom_forward(module: nn.Module) -> bool:
    """Return whether a module runs another forward than its class's, set on the instance."""
    own = vars(module).get("forward")
    return own is not None and not (isinstance(own, MethodType) and own.__func__ is getattr(type(module), "forward", None))


def overwrite(tensor: Tensor, value: Tensor) -> None:
    """Copy a value into a tensor, which stays the same object.  If it takes another shape, its gradient is dropped."""
    if tensor.shape != value.shape:
        if isinstance(tensor, nn.Parameter):
            tensor.grad = None
        dtype = tensor.dtype
        # Two steps: a graph that is still alive holds the old shape, to which it would sum gradients; a change of dtype drops it.
        tensor.data = torch.empty_like(value, dtype=torch.float32 if dtype is torch.float64 else torch.float64, device="cpu")
        tensor.data = torch.empty_like(value, dtype=dtype, device=tensor.device)
    tensor.detach().copy_(value)  # raises the tensor's version, so that a backward pass still to come notices


def same_values(left: Tensor, right: Tensor) -> bool:
    """Return whether two tensors agree up to rounding in their precision, relative to the largest magnitude of ``right``."""
    if left.shape != right.shape:
        return False
    scale = max(float(right.abs().max()), 1e-12)
    coarsest = max((torch.finfo(t.dtype).eps for t in (left, right) if t.is_floating_point()), default=0.0)
    return float((left.double() - right.double()).abs().max()) <= max(1e-4, 8 * coarsest) * scale


def checksum(values: Mapping[str, Any]) -> str:
    """Return a checksum of tensors by name, 16 digits; other values are left out."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in values.items():
        if isinstance(value, Tensor):  # a module may keep anything as its extra state
            digest.update(name.encode() + value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
