"""Large tables: in memory, or above a limit in temporary files that the operating system reads and writes page by page.

Where a table lies never changes a result: the same copies are made, to the same bits.  A file loses its name once it is mapped,
so it is gone with its last tensor, also after an error, an interrupt or a crash.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from .errors import DataError

COPIES = 3.0  # of the features at once: all, the fitted part, and the solver's own; see tests/test_tables.py
_FREE_SHARE = 0.5  # of free memory, for all tables together by default
_BLOCK_ELEMENTS = 2**22  # copied at once into a file: rows that are gathered first take that much memory
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Tables:
    """Place of tables by their size.

    Args:
        largest: bytes of the largest table in memory; larger ones are temporary files, in the folder of Python's ``tempfile``
            (``TMPDIR``).  Tables on other devices than the CPU always stay there.

    Example:
        >>> rows = Tables(largest=0).taken(torch.eye(3), torch.tensor([2, 0]))  # in a file
        >>> rows[0]
        tensor([0., 0., 1.])
    """

    largest: float = math.inf

    def in_memory(self, size: float, device: torch.device = _CPU) -> bool:
        """Return True if a table of so many bytes is held in memory."""
        return device.type != "cpu" or size <= self.largest

    def empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device = _CPU) -> Tensor:
        """Return a table with values yet to be written; refuse one for which the folder of temporary files has too little room."""
        size = math.prod(shape) * dtype.itemsize
        if self.in_memory(size, device):
            return torch.empty(tuple(shape), dtype=dtype, device=device)
        return _mapped(shape, dtype, size)

    def taken(
        self, table: Tensor, rows: Tensor | None = None, columns: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return rows (m,) and columns (K,) of a table (n, P) or (n, *), all if None, in a dtype: a copy, or a view if possible."""
        shape = [len(table) if rows is None else len(rows), *table.shape[1:]]
        if columns is not None:
            shape[1] = len(columns)
        dtype = table.dtype if dtype is None else dtype
        same = rows is None and columns is None and dtype == table.dtype
        if same or self.in_memory(math.prod(shape) * dtype.itemsize, table.device):
            return _part(table, rows, columns).to(dtype)
        result = self.empty(shape, dtype)
        for part in blocks(shape[0], math.prod(table.shape[1:])):
            result[part] = _part(table[part] if rows is None else table, None if rows is None else rows[part], columns)
        return result


IN_MEMORY = Tables()


def tables_within(max_memory: int | None, part_of: Callable[[int], int] = int) -> Tables:
    """Return the place of tables of so many bytes of memory together; by default half of what is free, or ``part_of`` that."""
    total = part_of(int(_FREE_SHARE * psutil.virtual_memory().available)) if max_memory is None else max_memory
    return Tables(total / COPIES)


def blocks(count: int, width: int) -> list[slice]:
    """Return slices that together are all rows of a table of so many elements a row, a few megabytes each."""
    size = max(1, _BLOCK_ELEMENTS // max(1, width))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def free_disk() -> int:
    """Return the bytes that are free in the folder of temporary files."""
    return shutil.disk_usage(tempfile.gettempdir()).free


def _part(table: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    table = table if rows is None else table[rows]
    return table if columns is None else table[:, columns]


def _mapped(shape: Sequence[int], dtype: torch.dtype, size: int) -> Tensor:
    folder, needed = tempfile.gettempdir(), f"{size / 2**30:.2f} GiB for a table of shape {tuple(shape)}"
    fix = "set TMPDIR to a folder on a disk with room, or pass a larger max_memory=, or max_samples="
    if free_disk() < size:  # a reservation that fails would fill the disk first
        raise DataError(f"{free_disk() / 2**30:.2f} GiB free in {folder}, the folder of temporary files", needed, fix)
    try:
        handle, path = tempfile.mkstemp(prefix="snn_recon_plugin_")
        try:
            # Writing to a page for which the disk has no room would kill the process: reserve them all.
            reserve = getattr(os, "posix_fallocate", lambda handle, start, length: os.ftruncate(handle, length))
            reserve(handle, 0, size)
            return torch.from_file(path, shared=True, size=math.prod(shape), dtype=dtype, device=_CPU).view(tuple(shape))
        finally:
            os.close(handle)
            os.unlink(path)
    except (OSError, RuntimeError) as error:
        raise DataError(f"a temporary file that can't be made in {folder}: {error}", needed, fix) from error
