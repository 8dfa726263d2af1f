"""Whether the features will fit into memory, asked before the pass that fills it."""

from __future__ import annotations

import os

import torch

from .errors import DataError

__all__ = ["check_memory"]

_COPIES = 3.0  # the features, the fitted part of them, and the solver's own blocks


def check_memory(samples: int | None, features: int, device: torch.device) -> None:
    """Refuses a capture whose features would not fit.

    Args:
        samples: how many will be captured; None (unknown) is not checked.
        features: inputs of the readout layer.
        device: where the features will lie.

    Raises:
        DataError: the estimate exceeds the free memory; the message says how many samples fit.
    """
    free = _free_bytes(device)
    if samples is None or free is None:
        return
    each = int(4 * features * _COPIES)
    if samples * each > free:
        raise DataError(
            f"{samples} samples of {features} features, which take about {samples * each / 2**30:.1f} GiB where "
            f"{free / 2**30:.1f} GiB are free on {device}",
            "features that fit into memory",
            f"pass max_samples={max(10, free // each)}",
        )


def _free_bytes(device: torch.device) -> int | None:
    """Free memory of a device in bytes, None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as lines:
            available = next(line for line in lines if line.startswith("MemAvailable"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
