"""Precision: the package computes in full, a user's forward as the user runs it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from .forward import Forward, Within

__all__ = ["as_called", "autocast_rounding", "full_precision", "unmixed"]


@functools.cache
def _devices() -> list[str]:
    """Return the kinds of devices there are; hooks ask for them at every call."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "xpu": torch.xpu.is_available()}
    return ["cpu", *(name for name, available in found.items() if available)]


def full_precision() -> AbstractContextManager[Any]:
    """Return a context without autocast and inference mode, whose tensors could never be trained."""
    mixed = _autocast_dtypes()
    return _without(mixed) if mixed or torch.is_inference_mode_enabled() else nullcontext()


@contextmanager
def _without(devices: Iterable[str]) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def as_called(forward: Forward) -> Forward:
    """Return a forward that runs in the autocast of this moment, wherever it is called."""
    mixed = _autocast_dtypes()

    @contextmanager
    def autocast() -> Iterator[None]:
        with ExitStack() as stack:
            for device, dtype in mixed.items():
                stack.enter_context(torch.autocast(device, dtype, cache_enabled=False))  # parameters change between calls
            yield

    return Within(forward, autocast) if mixed else forward


def unmixed(forward: Forward) -> Forward:
    """Return a forward without the autocast around it, in the precision of the net's parameters."""
    if isinstance(forward, Within):
        return Within(unmixed(forward.inner), forward.context)
    return Within(forward, full_precision)


def autocast_rounding(device: torch.device) -> float:
    """Return the relative rounding of what autocast computes now; 0 where it is off."""
    return torch.finfo(torch.get_autocast_dtype(device.type)).eps if torch.is_autocast_enabled(device.type) else 0.0


def _autocast_dtypes() -> dict[str, torch.dtype]:
    """Return the devices whose autocast is on, and what it casts to."""
    return {device: torch.get_autocast_dtype(device) for device in _devices() if torch.is_autocast_enabled(device)}
