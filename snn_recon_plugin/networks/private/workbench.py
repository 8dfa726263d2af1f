"""Private copy of a user's net: work that may change a net runs on the copy, and the user's net stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import NetworkError
from ..calls.batches import tensors_in
from .quiet import full_precision, refuse_lazy, unwrap
from .state import hooks_of, user_attributes


@dataclass(frozen=True)
class Workbench:
    """A private copy of a net, and the net it was copied from.

    Args:
        net: the copy; hooks of the user run on it as they run on the origin.
        origin: the user's net, which is only read.
    """

    net: nn.Module
    origin: nn.Module

    @classmethod
    def of(cls, net: nn.Module, shared: Iterable[object] = ()) -> Workbench:
        """Copy a net.

        Args:
            net: any net; of a compiled one the net inside is copied.
            shared: objects that copy and origin both refer to, such as a trainer.

        Raises:
            NetworkError: a part can't be copied, or two copies of the parameters do not fit into memory.
        """
        net = unwrap(net)
        refuse_lazy(net)
        return cls(private_copy(net, shared), net)

    def origin_of(self, module: nn.Module) -> nn.Module:
        """Return the user's module that a module of the copy was copied from."""
        return self.origin.get_submodule(next(name for name, own in self.net.named_modules() if own is module))


def probe_copy(net: nn.Module) -> tuple[nn.Module, dict[nn.Module, nn.Module]]:
    """Copy a net for one pass that may spoil its state; return the copy, and its module for each of the net's.

    The two share their parameters, which a pass does not write, so a large net takes no more memory.
    """
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


def _copied(net: nn.Module, memo: dict[int, Any]) -> nn.Module:
    for module in net.modules():
        for value in [*vars(module).values(), *module._buffers.values()]:
            memo |= {id(part): part.detach().clone() for part in tensors_in(value) if not part.is_leaf}
    try:
        return copy.deepcopy(net, dict(memo))
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _no_room(net) from error
    except Exception:  # an attribute that can't be copied; which one it is takes a search
        memo |= {id(value): value for value in _uncopyable(net, memo)}
    try:
        return copy.deepcopy(net, memo)
    except Exception as error:
        raise NetworkError(
            f"a {type(net).__name__} that can't be copied ({type(error).__name__}: {error})",
            "a net that copy.deepcopy(net) can copy, since work is done on a private copy",
            "correct the __deepcopy__ of its modules, or hold the part that can't be copied outside the net",
        ) from error


def _uncopyable(net: nn.Module, memo: dict[int, Any]) -> list[object]:
    """List the hooks and attributes of a net's modules, other than tensors and modules, that can't be copied."""
    found = []
    for value in [*(value for _, _, value in user_attributes(net)), *hooks_of(net)]:
        if isinstance(value, Tensor | nn.Module) or id(value) in memo:
            continue
        try:
            copy.deepcopy(value, dict(memo))
        except Exception:
            found.append(value)
    return found


def _no_room(net: nn.Module) -> NetworkError:
    held = sum(tensor.numel() * tensor.element_size() for tensor in [*net.parameters(), *net.buffers()])
    return NetworkError(
        f"a {type(net).__name__} of {held / 2**30:.1f} GiB of parameters and buffers, without memory for a second copy",
        "memory for a private copy of the net, which all work is done on",
        "free memory, or move the net to a device with more of it",
    )
