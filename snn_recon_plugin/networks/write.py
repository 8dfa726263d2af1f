"""Writes into a user's parameters: all or nothing, in place, and undone bit for bit.

No other file writes solved values.  During training ``training/watch.py`` exchanges weights, and ``training/protect.py``
shortens steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import TypeVar, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import UnsupportedModuleError, WriteError
from .private.parameters import follow_rows, is_frozen, parametrization_of, plain_values, refuse_computed, store_of
from .private.quiet import full_precision, run_all, run_past_interrupts
from .private.workbench import overwrite
from .structure.layers import NetworkMap, as_typed

T = TypeVar("T")

_NUMBERS = count()  # of transactions, in the order of their calls
_IN_FORCE: WeakSet[Transaction] = WeakSet()  # those that ended, and can be undone


@dataclass(frozen=True)
class _Write:
    """One write: the parameter, its path in the net, a copy of its value before, and its gradient then if its shape changes."""

    module: nn.Module
    name: str
    path: str
    parameter: Tensor
    before: Tensor
    reshaped: bool
    gradient: Tensor | None

    def put_back(self) -> None:
        # Detached, not under no_grad, which an interrupt could leave switched on.
        overwrite(self.parameter, self.before)
        if self.reshaped:
            self.parameter.grad = self.gradient
            follow_rows(self.module)


class Transaction:
    """Block that writes parameters in place.  An error in the block, or :meth:`undo` after it, brings all old values back.

    A weight under ``torch.nn.utils.parametrizations.weight_norm`` is written into the parameters that it is computed from.  With
    ``allow_tied`` a parameter that other modules of the net share may be written, which changes these as well.
    """

    def __init__(self, net: nn.Module, *, allow_tied: bool = False) -> None:
        self._net, self._allow_tied = net, allow_tied
        self._written: list[_Write] = []
        self._number, self._committed = next(_NUMBERS), False
        self.undone = False  # by :meth:`undo`

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._committed = True
            _IN_FORCE.add(self)
        else:
            run_past_interrupts(self.roll_back)

    def write(self, module: nn.Module, name: str, value: Tensor, *, grows: bool = False) -> None:
        """Copy a value, in any dtype and on any device, into a parameter, or a neuron's buffer.

        The object, its gradient and ``requires_grad`` stay.  The leak that all units of a neuron share may become one for each
        unit, and with ``grows`` the value may have more rows; the gradient, of the old shape, is then dropped.

        Raises:
            UnsupportedModuleError: the parameter is computed, shared with another module, or made in inference mode; nothing is
                written then.
            WriteError: there is no such parameter, or the value has another shape or isn't finite.
        """
        self.check(module, name)
        path, current = self._path(module, name), cast(Tensor, getattr(module, name))
        if not bool(torch.isfinite(value.detach().to(current)).all()):
            found = f"a value for {path} that is not finite as {current.dtype}"
            raise WriteError(found, "finite values within the parameter's range", "loosen the program, e.g. with a larger strength")
        for holder, part, plain in plain_values(module, name, value, path=path, grows=grows):
            self._copy(holder, part, plain)

    def check(self, module: nn.Module, name: str) -> None:
        """Refuse a parameter that :meth:`write` would refuse; nothing is written."""
        path = self._path(module, name)
        refuse_computed(module, name, path, typed=as_typed(path.strip("'").rpartition(".")[0]))
        if not parametrize.is_parametrized(module, name):
            self._check_plain(module, name)
            return
        steps = parametrization_of(module, name)
        for part in steps._parameters:
            self._check_plain(steps, part)

    def explain(self, module: nn.Module, name: str) -> str:
        """Return the reason why :meth:`write` would refuse a parameter; empty if it can be written."""
        try:
            self.check(module, name)
        except (UnsupportedModuleError, WriteError) as error:
            return error.found
        return ""

    def _copy(self, module: nn.Module, name: str, value: Tensor) -> None:
        parameter, path = store_of(module, name)[name], self._path(module, name)
        reshaped = isinstance(parameter, nn.Parameter) and parameter.shape != value.shape
        gradient = parameter.grad if reshaped else None
        # Noted first, so that an interrupt between the two lines still finds the old value.
        self._written.append(_Write(module, name, path, parameter, parameter.detach().clone(), reshaped, gradient))
        try:
            overwrite(parameter, value)
        except RuntimeError as error:
            raise _not_in_place(path, str(error)) from error
        follow_rows(module)
        torch.clear_autocast_cache()  # an autocast around the call would go on with its cast of the old value

    @property
    def replaced(self) -> list[tuple[nn.Parameter, Tensor]]:
        """The parameters that were written, each once with its old value; none after these were brought back."""
        first: dict[int, tuple[nn.Parameter, Tensor]] = {}
        for written in self._written:
            if isinstance(written.parameter, nn.Parameter):
                first.setdefault(id(written.parameter), (written.parameter, written.before))
        return list(first.values())

    def undo(self) -> None:
        """Bring back the values from before the transaction, whatever has been written to them since; a second call does nothing.

        Later transactions of the same parameters are undone first, the latest of them before the others.

        Raises:
            WriteError: the transaction hasn't ended, was rolled back or forgotten; or a parameter that was written is not the
                module's any more, as after pruning or with a parametrization that came or went.  Nothing is undone then.
        """
        if self.undone:
            return
        if not self._committed:
            needed = "one that ended, and was not forgotten"
            raise WriteError("a transaction without old values", needed, "undo before report.forget()")
        self.check_present()
        for later in self.later:
            later.undo()
        run_past_interrupts(self.roll_back)
        self.undone = True

    @property
    def later(self) -> list[Transaction]:
        """Later transactions in force of the same parameters, the latest first."""
        own = {id(written.parameter) for written in self._written}
        shared = [other for other in _IN_FORCE if not own.isdisjoint(id(written.parameter) for written in other._written)]
        return sorted((other for other in shared if other._number > self._number), key=lambda other: -other._number)

    def check_present(self) -> None:
        """Raise a WriteError unless all that was written is in the net, as the same objects in the same modules."""
        modules = set(self._net.modules())
        for written in self._written:
            now = store_of(written.module, written.name).get(written.name) if written.module in modules else None
            if now is not written.parameter:
                found = f"{written.path}, which was removed or replaced since it was written, e.g. by pruning or a parametrization"
                fix = "undo before such a change, or take that change back first; report.replaced has the old values"
                raise WriteError(found, "the parameters that were written, as the same objects in the same modules", fix)

    def roll_back(self) -> None:
        """Put all old values back, past errors; may be called in any state, and again."""
        try:
            # The latest first, so that of two writes to one parameter the oldest value wins.
            run_all(written.put_back for written in reversed(self._written))
        except Exception as error:
            found = f"a written parameter that could not be put back ({error})"
            raise WriteError(found, "parameters that can be written in place", "load your last checkpoint into the net") from error
        torch.clear_autocast_cache()
        self.forget()

    def forget(self) -> None:
        """Drop the old values, which can't be brought back after that."""
        self._committed = False
        _IN_FORCE.discard(self)
        self._written.clear()

    def _check_plain(self, module: nn.Module, name: str) -> None:
        """Refuse a parameter, or a neuron's buffer, if a copy into it would be lost or would change something else."""
        path = self._path(module, name)
        parameter: Tensor | None = store_of(module, name).get(name)
        if parameter is None:
            needed = f"one of the module's parameters {sorted(k for k, p in module._parameters.items() if p is not None)}"
            raise WriteError(f"no parameter {path}", needed, "build the layer with it, e.g. nn.Linear(..., bias=True)")
        if parameter.is_inference():
            found = f"{path} was made in torch.inference_mode"
            raise UnsupportedModuleError(found, "a parameter that may be written", "build the net outside torch.inference_mode")
        if any(stride == 0 and size > 1 for stride, size in zip(parameter.stride(), parameter.shape, strict=True)):
            raise _not_in_place(path, "an expanded tensor, whose rows share their memory")
        for other_path, other in [] if self._allow_tied else self._others(module, name):
            has_memory = other.layout is torch.strided and other.numel() > 0  # a sparse tensor has no pointer
            if other is parameter or (has_memory and other.data_ptr() == parameter.data_ptr()):
                raise UnsupportedModuleError(
                    f"{path} is tied to {other_path}",
                    "a parameter of one module alone",
                    "untie it first: give the module a parameter of its own, nn.Parameter(p.detach().clone()); or pass "
                    "allow_tied=True, which changes every module that shares it",
                )

    def _others(self, module: nn.Module, name: str) -> list[tuple[str, Tensor]]:
        """List all other entries of all modules; ``named_parameters`` would hide the second of a tied pair."""
        buffer = store_of(module, name) is module._buffers
        return [
            (f"{prefix}.{key}" if prefix else key, parameter)
            for prefix, owner in self._net.named_modules()
            for key, parameter in (owner._buffers if buffer else owner._parameters).items()
            if parameter is not None and not (owner is module and key == name)
        ]

    def _path(self, module: nn.Module, name: str) -> str:
        for prefix, owner in self._net.named_modules():
            if owner is module:
                return repr(f"{prefix}.{name}" if prefix else name)
        found = f"a {type(module).__name__} that is not part of the net"
        raise WriteError(found, "a module of the net", "give a module from net.modules()")


def commit(transaction: Transaction, work: Callable[[Transaction], T]) -> T:
    """Return what ``work`` makes, which writes by the transaction: after an error or an interrupt nothing of it stays written."""
    try:
        with full_precision(), transaction:
            return work(transaction)
    except BaseException:
        run_past_interrupts(transaction.roll_back)  # again: an interrupt may come at the end of the first time
        raise


def _not_in_place(path: str, why: str) -> UnsupportedModuleError:
    fix = "give the module one first, e.g. module.weight = nn.Parameter(module.weight.detach().clone())"
    return UnsupportedModuleError(f"{path} can't be written in place: {why}", "a parameter with memory of its own", fix)


def check_writable(net: nn.Module, net_map: NetworkMap, *, allow_tied: bool = False) -> None:
    """Refuse a readout whose weight or bias is computed, tied, frozen, or made in inference mode, before any work is done."""
    readout, transaction = net_map.readout, Transaction(net, allow_tied=allow_tied)
    for name in (readout.weight_name, readout.bias_name):
        if name is None:
            continue
        transaction.check(readout.module, name)
        if is_frozen(readout.module, name):
            found = f"the readout {readout.name!r} is frozen: its {name} has requires_grad=False"
            fix = f"unfreeze it first: {as_typed(readout.name)}.requires_grad_(True)"
            raise UnsupportedModuleError(found, "a readout that may be written", fix)
