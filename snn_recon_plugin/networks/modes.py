"""Modes that a net runs in: autocast, inference mode, ``torch.compile``.  The package computes in full precision, uncompiled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedModuleError
from .forward import Forward, Within

__all__ = ["autocast_rounding", "drop_autocast", "full_precision", "keep_autocast", "run_eagerly", "unwrap"]


@functools.cache
def _devices() -> list[str]:
    """Return the kinds of devices there are; cached, since hooks need them at every call."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "xpu": torch.xpu.is_available()}
    return ["cpu", *(name for name, available in found.items() if available)]


def _autocast_dtypes() -> dict[str, torch.dtype]:
    """Return the devices whose autocast is on, with its dtype."""
    return {device: torch.get_autocast_dtype(device) for device in _devices() if torch.is_autocast_enabled(device)}


def autocast_rounding(device: torch.device) -> float:
    """Return the relative rounding of the autocast that is on; 0 without one."""
    return torch.finfo(torch.get_autocast_dtype(device.type)).eps if torch.is_autocast_enabled(device.type) else 0.0


def full_precision() -> AbstractContextManager[Any]:
    """Return a context without autocast, and without inference mode, whose tensors could never be trained."""
    devices = _autocast_dtypes()
    return _without_autocast(devices) if devices or torch.is_inference_mode_enabled() else nullcontext()


@contextmanager
def _without_autocast(devices: Iterable[str]) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def keep_autocast(forward: Forward) -> Forward:
    """Return a forward that runs in the autocast of this moment, wherever it is called."""
    dtypes = _autocast_dtypes()

    @contextmanager
    def autocast() -> Iterator[None]:
        with ExitStack() as stack:
            for device, dtype in dtypes.items():
                stack.enter_context(torch.autocast(device, dtype, cache_enabled=False))  # parameters change between calls
            yield

    return Within(forward, autocast) if dtypes else forward


def drop_autocast(forward: Forward) -> Forward:
    """Return a forward that runs in the precision of the net's parameters, whatever autocast is around the call."""
    if isinstance(forward, Within):
        return Within(drop_autocast(forward.inner), forward.context)
    return Within(forward, full_precision)


def unwrap(net: nn.Module) -> nn.Module:
    """Return the net inside a compiled one, which shares all its parameters and on which hooks fire; another net as it is."""
    inner = getattr(net, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else net


def run_eagerly(net: nn.Module) -> Callable[[], object]:
    """Run the compiled modules of a net without their compiled code from now on.

    Returns:
        The call that ends it; it may be repeated.

    Raises:
        UnsupportedModuleError: a part of the net is compiled, and this version of torch can't run it otherwise.
    """
    compiled = [name for name, module in net.named_modules() if _is_compiled(module)]
    if not compiled:
        return lambda: None
    set_stance = getattr(torch.compiler, "set_stance", None)
    if set_stance is None:
        raise UnsupportedModuleError(
            f"a compiled module {compiled[0]!r}, on which hooks do not fire",
            "modules that are not compiled, or torch 2.6, which can run them uncompiled",
            "compile the net afterwards",
        )
    # One line, so that no interrupt comes between the stance and the call that ends it.
    return partial(set_stance("force_eager").__exit__, None, None, None)


def _is_compiled(module: nn.Module) -> bool:
    """Return whether a module came from ``torch.compile``, or was compiled in place by ``module.compile()``."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
