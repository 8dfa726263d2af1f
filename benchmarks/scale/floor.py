"""Rates of the machine that bound a solve: bytes moved in memory, and floating-point operations of a large product."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["floor_seconds", "run_floor", "seconds_of"]

_COPIED, _SIDE, _TIMES = 2**26, 2048, 20  # float32 values copied; rows and columns of the product; the fastest of so many
DTYPES = ("float32", "float64", "bfloat16")


def run_floor(cell: dict[str, Any], report: Callable[[dict[str, Any]], object]) -> None:
    """Report bytes a second of a copy, read and written, and operations a second of a product in each precision."""
    device, shrink = cell["device"], cell.get("shrink", 1)
    source = torch.ones(_COPIED // shrink, device=device)
    target = torch.empty_like(source)
    rates = {}
    for name in DTYPES:
        square = torch.randn(_SIDE // shrink, _SIDE // shrink, device=device).to(getattr(torch, name))
        rates[name] = 2 * len(square) ** 3 / _fastest(lambda square=square: square @ square, device)
    copy = _fastest(lambda: target.copy_(source), device)
    report({"bytes_per_second": 8 * source.numel() / copy, "flops": rates})


def _fastest(action: Callable[[], object], device: str) -> float:
    seconds = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        action()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def floor_seconds(cell: dict[str, Any], rates: dict[str, Any]) -> float:
    """Return the least seconds that a solve's products with the features need on a machine of such rates.

    A product reads the features once and takes n P C multiply-adds, in the fastest precision.
    """
    moved = cell["features_bytes"] / rates["bytes_per_second"]
    computed = 2 * cell["n"] * cell["P"] * cell["C"] / max(rates["flops"].values())
    return float(cell["products"] * max(moved, computed))


def seconds_of(cell: dict[str, Any]) -> float:
    """Return CPU seconds of a single thread, which other processes disturb less, else those of the clock."""
    return float(cell["cpu_seconds"] if cell["threads"] == 1 and cell["device"] == "cpu" else cell["seconds"])
