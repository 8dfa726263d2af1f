"""The one place where a user's parameters are written: all or nothing, in place, and undone bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import UnsupportedModuleError, WriteError
from .computed import chain_of, comes_out, holder_of, is_frozen, originals_of, refuse_computed
from .layers import NetworkMap, spell

__all__ = ["Transaction", "check_writable"]


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

    A parametrized weight, as of ``torch.nn.utils.parametrizations.weight_norm``, is written through the inverse of its
    parametrization, into the parameters that it is computed from.

    Args:
        net: the net that is written to; needed to see parameters that two of its modules share.
        allow_tied: whether a parameter that other modules share may be written, which changes these as well.
    """

    def __init__(self, net: nn.Module, *, allow_tied: bool = False) -> None:
        self._net, self._allow_tied = net, allow_tied
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
        parametrized = self.check(module, name)
        current: Tensor = getattr(module, name)
        if value.shape != current.shape:
            raise WriteError(
                f"a value of shape {list(value.shape)} for {self._path(module, name)}",
                f"the parameter's shape {list(current.shape)}",
                "give a value of that shape",
            )
        value = value.detach().to(current)
        if not bool(torch.isfinite(value).all()):
            raise WriteError(
                f"a value for {self._path(module, name)} that is not finite as {current.dtype}",
                "finite values within the parameter's range",
                "loosen the program, e.g. with a larger strength",
            )
        if not parametrized:
            self._copy(module, name, value)
            return
        try:
            originals = originals_of(module, name, value)
        except (ValueError, RuntimeError, NotImplementedError) as error:
            raise self._not_invertible(module, name, f"a parametrization that can't take the value ({error})") from error
        for holder, part, original in originals:
            self._copy(holder, part, original)
        with torch.no_grad():
            written: Tensor = getattr(module, name)
        if not comes_out(written, value):
            off = float((written.double() - value.double()).abs().max())
            raise self._not_invertible(module, name, f"a value that comes out different by {off:.3g}")

    def check(self, module: nn.Module, name: str) -> bool:
        """Say whether a parameter is parametrized, or refuse it; nothing is written.

        Args:
            module: a module of the net.
            name: the parameter's name in the module.

        Raises:
            UnsupportedModuleError: as for :meth:`write`.
            WriteError: if there is no such parameter.
        """
        if not parametrize.is_parametrized(module, name):
            self._writable(module, name)
            return False
        chain = chain_of(module, name)
        if any("SpectralNorm" in type(step).__name__ for step in chain):
            raise self._not_invertible(module, name, "spectral_norm, which rescales whatever is written")
        if not all(hasattr(step, "right_inverse") for step in chain):
            raise self._not_invertible(module, name, "a parametrization without a right_inverse")
        holder = holder_of(module, name)
        for part in holder._parameters:
            self._writable(holder, part)
        return True

    def _copy(self, module: nn.Module, name: str, value: Tensor) -> None:
        parameter = module._parameters[name]
        assert parameter is not None
        # Noted first: an interrupt between the two lines then still finds the old value.
        self._written.append(_Written(module, name, parameter.detach().clone()))
        with torch.no_grad():
            parameter.copy_(value)

    def _not_invertible(self, module: nn.Module, name: str, how: str) -> UnsupportedModuleError:
        return UnsupportedModuleError(
            f"{self._path(module, name)} is computed by {how}",
            "a plain parameter, or a parametrization that can be inverted, such as weight_norm",
            "torch.nn.utils.parametrize.remove_parametrizations(module, name) first",
        )

    @property
    def replaced(self) -> list[tuple[nn.Parameter, Tensor]]:
        """The parameters that were written, each once, and what they held before; none after that was brought back."""
        first: dict[int, tuple[nn.Parameter, Tensor]] = {}
        for written in self._written:
            parameter = written.module._parameters[written.name]
            if parameter is not None:
                first.setdefault(id(parameter), (parameter, written.before))
        return list(first.values())

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
        refuse_computed(module, name, path, spell(path.strip("'").rpartition(".")[0]))
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
        for other_path, other in [] if self._allow_tied else self._all_parameters(module, name):
            if other is parameter or (other.numel() > 0 and other.data_ptr() == parameter.data_ptr()):
                raise UnsupportedModuleError(
                    f"{path} is tied to {other_path}",
                    "a parameter of one module alone",
                    "untie it first: give the module a parameter of its own, nn.Parameter(p.detach().clone()); or pass "
                    "allow_tied=True, which changes every module that shares it",
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


def check_writable(net: nn.Module, net_map: NetworkMap, *, allow_tied: bool = False) -> None:
    """Refuse a net whose readout can't be written, before any work is done on it.

    Args:
        net: the net.
        net_map: its map.
        allow_tied: as for :class:`Transaction`.

    Raises:
        UnsupportedModuleError: if weight or bias are computed, tied, frozen, or made in inference mode.
    """
    readout, transaction = net_map.readout, Transaction(net, allow_tied=allow_tied)
    for name in (readout.weight_name, readout.bias_name):
        if name is None:
            continue
        transaction.check(readout.module, name)
        if is_frozen(readout.module, name):
            raise UnsupportedModuleError(
                f"the readout {readout.name!r} is frozen: its {name} has requires_grad=False",
                "a readout that may be written",
                f"unfreeze it first: {spell(readout.name)}.requires_grad_(True)",
            )
