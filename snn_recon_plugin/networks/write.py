"""The one place where a user's parameters are written: all or nothing, in place, and undone bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import UnsupportedModuleError, WriteError
from .computed import chain_of, comes_out, holder_of, is_frozen, originals_of, refuse_computed, table_of
from .interrupts import insist, run_all
from .layers import NetworkMap, spell
from .libraries import is_neuron
from .state import same_bits

__all__ = ["Transaction", "check_writable"]


@dataclass(frozen=True)
class _Written:
    module: nn.Module
    name: str
    path: str
    parameter: Tensor
    before: Tensor

    @property
    def in_place(self) -> bool:
        """Whether the module still holds the same object."""
        return table_of(self.module, self.name).get(self.name) is self.parameter

    def put_back(self) -> None:
        """Copy the old value back if there is another one by now."""
        # Detached rather than under no_grad, which an interrupt could leave switched on.
        if not same_bits(self.parameter, self.before):
            self.parameter.detach().copy_(self.before)


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
            insist(self.roll_back)

    def write(self, module: nn.Module, name: str, value: Tensor) -> None:
        """Copy a value into a parameter, or a neuron's buffer; the object, its gradient and ``requires_grad`` stay.

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
        parameter = table_of(module, name)[name]
        path = self._path(module, name)
        # Noted first: an interrupt between the two lines then still finds the old value.
        self._written.append(_Written(module, name, path, parameter, parameter.detach().clone()))
        try:
            parameter.detach().copy_(value)
        except RuntimeError as error:
            raise _not_in_place(path, str(error)) from error
        torch.clear_autocast_cache()  # or an autocast around the call would go on with the value that it has cast before

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
            if isinstance(written.parameter, nn.Parameter):
                first.setdefault(id(written.parameter), (written.parameter, written.before))
        return list(first.values())

    @property
    def buffers(self) -> set[int]:
        """The ids of the buffers that were written: whoever puts a net's state back leaves them alone."""
        return {id(written.parameter) for written in self._written if not isinstance(written.parameter, nn.Parameter)}

    def undo(self) -> None:
        """Bring back the values from before the transaction, whatever has been written to them since.

        Raises:
            WriteError: if the transaction hasn't ended, rolled back, or was undone before; or if a parameter that was written is
                not the module's any more, as after pruning or with a parametrization that came or went.  Nothing is undone then.
        """
        if self._state != "committed":
            raise WriteError(
                {"new": "nothing written yet", "open": "a transaction still open"}.get(self._state, "a transaction already undone"),
                "a committed transaction, which can be undone once",
                "undo once, after the block has ended",
            )
        modules = set(self._net.modules())
        for written in self._written:
            if written.module not in modules or not written.in_place:
                raise WriteError(
                    f"{written.path} {_became_of(written, modules)} since it was written",
                    "the parameters that were written, as the same objects in the same modules",
                    "undo before such a change, or take that change back first; report.replaced has the old values",
                )
        insist(self.roll_back)

    def roll_back(self) -> None:
        """Put all old values back, past errors; may be called in any state, and again.

        Raises:
            WriteError: if a parameter could not be put back; the others are.
        """
        # The latest first, so that of two writes to one parameter the oldest value wins.
        raised = run_all(written.put_back for written in reversed(self._written))
        if raised and isinstance(raised[0], Exception):
            raise WriteError(
                f"{len(raised)} of {len(self._written)} written parameters that could not be put back ({raised[0]})",
                "parameters that can be written in place",
                "load your last checkpoint into the net",
            ) from raised[0]
        if raised:
            raise raised[0]
        torch.clear_autocast_cache()
        self._state = "undone"
        self._written.clear()

    def _writable(self, module: nn.Module, name: str) -> Tensor:
        """Give the parameter or neuron's buffer, or say why a copy into it would be lost or do more than was asked."""
        path = self._path(module, name)
        if name not in module._buffers or not is_neuron(module):
            refuse_computed(module, name, path, spell(path.strip("'").rpartition(".")[0]))
        parameter: Tensor | None = table_of(module, name).get(name)
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
        if any(stride == 0 and size > 1 for stride, size in zip(parameter.stride(), parameter.shape, strict=True)):
            raise _not_in_place(path, "an expanded tensor, whose rows share their memory")
        for other_path, other in [] if self._allow_tied else self._all_parameters(module, name):
            if other is parameter or (other.numel() > 0 and other.data_ptr() == parameter.data_ptr()):
                raise UnsupportedModuleError(
                    f"{path} is tied to {other_path}",
                    "a parameter of one module alone",
                    "untie it first: give the module a parameter of its own, nn.Parameter(p.detach().clone()); or pass "
                    "allow_tied=True, which changes every module that shares it",
                )
        return parameter

    def _all_parameters(self, module: nn.Module, name: str) -> list[tuple[str, Tensor]]:
        """List every entry of every module but the given one; ``named_parameters`` would hide the second of a pair."""
        buffer = table_of(module, name) is module._buffers
        return [
            (f"{prefix}.{key}" if prefix else key, parameter)
            for prefix, owner in self._net.named_modules()
            for key, parameter in (owner._buffers if buffer else owner._parameters).items()
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


def _not_in_place(path: str, why: str) -> UnsupportedModuleError:
    return UnsupportedModuleError(
        f"{path} can't be written in place: {why}",
        "a parameter with memory of its own",
        "give the module one first, e.g. module.weight = nn.Parameter(module.weight.detach().clone())",
    )


def _became_of(written: _Written, modules: set[nn.Module]) -> str:
    """Say what happened to a parameter that is not the module's any more."""
    module, name = written.module, written.name
    if isinstance(module, parametrize.ParametrizationList) and module not in modules:
        return "is gone with its parametrization, which was removed"
    if module not in modules:
        return "is gone with its module, which is not part of the net any more"
    if f"{name}_mask" in module._buffers:
        return "was pruned"
    if parametrize.is_parametrized(module, name) or f"{name}_g" in module._parameters:
        return "was parametrized, so that it is computed from others"
    if module._parameters.get(name) is None:
        return "was taken from its module"
    return "was replaced by another Parameter object"


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
