"""Taps: functions that watch or replace what enters and leaves modules while a net runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import CaptureError
from .modes import autocast_rounding, full_precision
from .structures import describe

__all__ = ["Taps", "tapped"]


@dataclass(frozen=True)
class Taps:
    """Functions to call at every call of a module, and what to replace.

    Functions run in full precision, outside the net's autocast, except those of ``arguments`` and ``calls``.

    Args:
        inputs: receive the tensor that enters the module, its first argument.
        outputs: receive what the module returns.
        new_inputs: return the tensor that enters in place of the one given; ``inputs`` see it.
        new_outputs: return what the module returns in place of its output; ``outputs`` see it.
        parameters: for a module and the name of its parameter, the value to run with, of any shape.
        arguments: receive the first argument, of any type, before the module runs; None if there is none.
        calls: receive ``(args, kwargs)`` and the output.
        roundings: receive the relative rounding of the autocast that the module runs in; 0 without one.
    """

    inputs: Mapping[nn.Module, Callable[[Tensor], object]] = field(default_factory=dict)
    outputs: Mapping[nn.Module, Callable[[Any], object]] = field(default_factory=dict)
    new_inputs: Mapping[nn.Module, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    new_outputs: Mapping[nn.Module, Callable[[Any], Any]] = field(default_factory=dict)
    parameters: Mapping[tuple[nn.Module, str], Tensor] = field(default_factory=dict)
    arguments: Mapping[nn.Module, Callable[[Any], object]] = field(default_factory=dict)
    calls: Mapping[nn.Module, Callable[[Any, Any], object]] = field(default_factory=dict)
    roundings: Mapping[nn.Module, Callable[[float], object]] = field(default_factory=dict)

    @property
    def before(self) -> list[nn.Module]:
        """The modules at which something happens before they run."""
        return list({**self.inputs, **self.new_inputs, **self.arguments, **self.roundings})

    @property
    def after(self) -> list[nn.Module]:
        """The modules at which something happens after they ran."""
        return list({**self.outputs, **self.new_outputs, **self.calls})


@contextmanager
def tapped(taps: Taps) -> Iterator[set[nn.Module]]:
    """Register hooks and replace parameters until the block ends, however it ends; yield the tapped modules called so far.

    Raises:
        CaptureError: during a call, if the first argument of a module in ``inputs``, ``new_inputs`` or ``roundings`` is no tensor.
    """
    called: set[nn.Module] = set()
    handles: list[RemovableHandle] = []
    replaced: list[tuple[nn.Module, str, nn.Parameter | None]] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        called.add(module)
        return _before(taps, module, args, kwargs)

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        called.add(module)
        return _after(taps, module, (args, kwargs), output)

    try:
        for (module, name), value in taps.parameters.items():
            replaced.append((module, name, module._parameters[name]))
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
        handles.extend(module.register_forward_pre_hook(before, with_kwargs=True) for module in taps.before)
        handles.extend(module.register_forward_hook(after, with_kwargs=True) for module in taps.after)
        yield called
    finally:
        for handle in handles:
            handle.remove()
        for module, name, parameter in replaced:
            module._parameters[name] = parameter


def _before(taps: Taps, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call what is to see a module's arguments; return new arguments, or None to leave them."""
    if module in taps.arguments:
        taps.arguments[module](next(iter((*args, *kwargs.values())), None))
    if not (module in taps.inputs or module in taps.new_inputs or module in taps.roundings):
        return None
    value, name = _first_argument(module, args, kwargs)
    if module in taps.roundings:
        taps.roundings[module](autocast_rounding(value.device))
    with full_precision():
        if module in taps.new_inputs:
            value = taps.new_inputs[module](value)
        if module in taps.inputs:
            taps.inputs[module](value)
    if module not in taps.new_inputs:
        return None
    return ((value, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: value})


def _after(taps: Taps, module: nn.Module, arguments: Any, output: Any) -> Any:
    """Call what is to see a module's output; return a new output, or None to leave it."""
    if module in taps.calls:
        taps.calls[module](arguments, output)
    with full_precision():
        new = taps.new_outputs[module](output) if module in taps.new_outputs else None
        if module in taps.outputs:
            taps.outputs[module](output if new is None else new)
    return new


def _first_argument(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, str | None]:
    """Find the tensor that enters a module, and its name if it was passed by name."""
    name = None if args else ("input_" if "input_" in kwargs else next(iter(kwargs), None))
    value = args[0] if args else kwargs.get(name or "")
    if not isinstance(value, Tensor):
        raise CaptureError(
            f"{type(module).__name__} was called with {describe(value)} as its first argument",
            "a tensor as the first argument of every synapse and neuron",
            "call the module with its input current as the first argument",
        )
    return value, name
