"""The one place where a user's parameters are written: all or nothing, in place, and undone bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import UnsupportedModuleError, WriteError

__all__ = ["Transaction"]


@dataclass(frozen=True)
class _Written:
    module: nn.Module
    name: str
    before: Tensor


class Transaction:
    """Writes parameters in place; keeps what they were, so that an error, or :meth:`undo`, brings them all back.

    Example::

        with Transaction(net) as transaction:
            transaction.write(net.fc2, "weight", weight)
            transaction.write(net.fc2, "bias", bias)
        transaction.undo()

    Args:
        net: the net that is written to; needed to see parameters that two of its modules share.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._written: list[_Written] = []
        self._state: Literal["new", "open", "committed", "undone"] = "new"

    def __enter__(self) -> Transaction:
        if self._state != "new":
            raise WriteError("a transaction entered twice", "one use of each transaction", "make a new Transaction(net)")
        self._state = "open"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._state = "committed"
        else:
            self._restore()

    def write(self, module: nn.Module, name: str, value: Tensor) -> None:
        """Copy a value into a parameter; the Parameter object, its gradient and ``requires_grad`` stay.

        Args:
            module: a module of the net.
            name: the parameter's name in the module, ``"weight"`` or ``"bias"``.
            value: what to write, of the parameter's shape, in any dtype and on any device.

        Raises:
            UnsupportedModuleError: if the parameter is computed from others, shared with another module or frozen
                by inference mode; nothing is written then.
            WriteError: if there is no such parameter, or the value has another shape or isn't finite.
        """
        if self._state != "open":
            raise WriteError("a write outside the transaction", "an open transaction", "write inside `with Transaction(net) as t:`")
        parameter = self._writable(module, name)
        if value.shape != parameter.shape:
            raise WriteError(
                f"a value of shape {list(value.shape)} for {self._path(module, name)}",
                f"the parameter's shape {list(parameter.shape)}",
                "give a value of that shape",
            )
        value = value.detach().to(parameter)
        if not bool(torch.isfinite(value).all()):
            raise WriteError(
                f"a value for {self._path(module, name)} that is not finite as {parameter.dtype}",
                "finite values within the parameter's range",
                "loosen the program, e.g. with a larger strength",
            )
        # Noted first: an interrupt between the two lines then still finds the old value.
        self._written.append(_Written(module, name, parameter.detach().clone()))
        with torch.no_grad():
            parameter.copy_(value)

    def undo(self) -> None:
        """Bring back the values from before the transaction, whatever has been written to them since.

        Raises:
            WriteError: if the transaction hasn't ended, rolled back, or was undone before.
        """
        if self._state != "committed":
            raise WriteError(
                {"new": "nothing written yet", "open": "a transaction still open"}.get(self._state, "a transaction already undone"),
                "a committed transaction, which can be undone once",
                "undo once, after the block has ended",
            )
        self._restore()

    def _restore(self) -> None:
        """Put all old values back, the latest first, so that of two writes to one parameter the oldest value wins."""
        with torch.no_grad():
            for written in reversed(self._written):
                parameter = written.module._parameters[written.name]
                assert parameter is not None
                parameter.copy_(written.before)
        self._written.clear()
        self._state = "undone"

    def _writable(self, module: nn.Module, name: str) -> nn.Parameter:
        """Give the parameter, or say why a copy into it would be lost or do more than was asked."""
        path = self._path(module, name)
        _refuse_computed(module, name, path)
        parameter = module._parameters.get(name)
        if parameter is None:
            raise WriteError(
                f"no parameter {path}",
                f"one of the module's parameters {sorted(k for k, p in module._parameters.items() if p is not None)}",
                "build the layer with it, e.g. nn.Linear(..., bias=True)",
            )
        if parameter.is_inference():
            raise UnsupportedModuleError(
                f"{path} was made in torch.inference_mode",
                "a parameter that may be written",
                "build the net outside torch.inference_mode",
            )
        for other_path, other in self._all_parameters(module, name):
            if other is parameter or (other.numel() > 0 and other.data_ptr() == parameter.data_ptr()):
                raise UnsupportedModuleError(
                    f"{path} is tied to {other_path}",
                    "a parameter of one module alone",
                    "untie it first: give the module a parameter of its own, nn.Parameter(p.detach().clone())",
                )
        return parameter

    def _all_parameters(self, module: nn.Module, name: str) -> list[tuple[str, nn.Parameter]]:
        """List every entry of every module but the given one; ``named_parameters`` would hide the second of a pair."""
        return [
            (f"{prefix}.{key}" if prefix else key, parameter)
            for prefix, owner in self._net.named_modules()
            for key, parameter in owner._parameters.items()
            if parameter is not None and not (owner is module and key == name)
        ]

    def _path(self, module: nn.Module, name: str) -> str:
        prefix = next((prefix for prefix, owner in self._net.named_modules() if owner is module), None)
        if prefix is None:
            raise WriteError(
                f"a {type(module).__name__} that is not part of the net",
                "a module of the net",
                "give a module from net.modules()",
            )
        return repr(f"{prefix}.{name}" if prefix else name)


def _refuse_computed(module: nn.Module, name: str, path: str) -> None:
    """Refuse a parameter that others are computed into, where a copy is lost at the next forward."""
    if parametrize.is_parametrized(module, name):
        how, fix = "a parametrization", "torch.nn.utils.parametrize.remove_parametrizations(module, name) first"
    elif f"{name}_mask" in module._buffers:
        how, fix = "pruning", "torch.nn.utils.prune.remove(module, name) first"
    elif f"{name}_g" in module._parameters:
        how, fix = "weight_norm", "torch.nn.utils.remove_weight_norm(module, name) first"
    elif f"{name}_orig" in module._parameters:
        how, fix = "spectral_norm", "torch.nn.utils.remove_spectral_norm(module, name) first"
    elif name not in module._parameters and hasattr(module, name):
        how, fix = "the module, e.g. by quantization,", "reconstruct first and quantize afterwards"
    else:
        return
    raise UnsupportedModuleError(f"{path} is computed by {how}", "a plain parameter", fix)
