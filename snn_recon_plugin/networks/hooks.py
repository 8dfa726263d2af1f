"""Temporary hooks that never outlive the block they were made for.  What they call runs outside the net's autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import CaptureError
from .modes import autocast_rounding, full_precision
from .structures import describe

__all__ = ["Hooks", "temporary_hooks"]


class Hooks:
    """Registers hooks and remembers their handles; made by :func:`temporary_hooks`.

    Attributes:
        rounding: relative rounding of the coarsest autocast that a module watched by ``on_input`` ran in; 0 without one.
    """

    def __init__(self) -> None:
        self.rounding = 0.0
        self._handles: list[RemovableHandle] = []
        self._parameters: list[tuple[nn.Module, str, nn.Parameter | None]] = []

    def on_input(self, module: nn.Module, function: Callable[[Tensor], None]) -> None:
        """Call ``function`` with the first argument of every call of ``module``, before the module runs.

        Args:
            module: the module to watch.
            function: receives the tensor that enters it.

        Raises:
            CaptureError: during the forward pass, if the first argument isn't a tensor.
        """

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            value, _ = _first_argument(module, args, kwargs)
            self.rounding = max(self.rounding, autocast_rounding(value.device))
            with full_precision():
                function(value)

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def on_call(self, module: nn.Module, function: Callable[[Any], None]) -> None:
        """Call ``function`` with whatever is the first argument of every call of ``module``, before the module runs.

        Args:
            module: the module to watch.
            function: receives the argument, None where there is none.
        """

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            function(next(iter((*args, *kwargs.values())), None))

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def replace_input(self, module: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        """Hand every call of ``module`` what ``function`` makes of its first argument.

        Args:
            module: the module.
            function: receives the tensor that would enter it.

        Raises:
            CaptureError: during the forward pass, if the first argument isn't a tensor.
        """

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            value, name = _first_argument(module, args, kwargs)
            with full_precision():
                replaced = function(value)
            if name is None:
                return (replaced, *args[1:]), kwargs
            return args, {**kwargs, name: replaced}

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def replace_parameter(self, module: nn.Module, name: str, value: Tensor) -> None:
        """Hang another parameter, of any shape, on ``module`` until the hooks are removed.

        Args:
            module: the module.
            name: the parameter's name in it.
            value: what it runs with.
        """
        self._parameters.append((module, name, module._parameters[name]))
        module._parameters[name] = nn.Parameter(value, requires_grad=False)

    def on_output(self, module: nn.Module, function: Callable[[Any], Any]) -> None:
        """Call ``function`` with every output of ``module``; what it returns, unless None, replaces the output.

        Args:
            module: the module to watch.
            function: receives the output.
        """

        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            with full_precision():
                return function(output)

        self._handles.append(module.register_forward_hook(hook))

    def after_call(self, module: nn.Module, function: Callable[[Any, Any], None]) -> None:
        """Call ``function`` after every call of ``module``, whatever its arguments are.

        Args:
            module: the module to watch.
            function: receives the arguments, ``(args, kwargs)``, and the output.
        """

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            function((args, kwargs), output)

        self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def remove(self) -> None:
        """Remove every hook registered so far, and put replaced parameters back."""
        while self._handles:
            self._handles.pop().remove()
        while self._parameters:
            module, name, parameter = self._parameters.pop()
            module._parameters[name] = parameter


def _first_argument(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, str | None]:
    """Find the tensor that enters a module, and its name where it was passed by name."""
    name = None if args else ("input_" if "input_" in kwargs else next(iter(kwargs), None))
    value = args[0] if args else kwargs.get(name or "")
    if not isinstance(value, Tensor):
        raise CaptureError(
            f"{type(module).__name__} was called with {describe(value)} as its first argument",
            "a tensor as the first argument of every synapse and neuron",
            "call the module with its input current as the first argument",
        )
    return value, name


@contextmanager
def temporary_hooks() -> Iterator[Hooks]:
    """Give a :class:`Hooks` whose hooks are all removed when the block ends, however it ends.

    Yields:
        The object to register hooks through.
    """
    hooks = Hooks()
    try:
        yield hooks
    finally:
        hooks.remove()
