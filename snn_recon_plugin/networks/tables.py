"""A tensor that grows by rows without ever being held twice where its final size could be foreseen."""

from __future__ import annotations

from torch import Tensor

from ..errors import DataError

__all__ = ["Table"]


class Table:
    """Rows gathered batch by batch."""

    def __init__(self) -> None:
        self._store: Tensor | None = None
        self._filled = 0

    def append(self, rows: Tensor, *, expected: int) -> None:
        """Add rows.

        Args:
            rows: ``[n, *]``, of one shape and dtype throughout, but for ``n``.
            expected: how many rows there will probably be in all.

        Raises:
            DataError: if the rows have another shape than the first ones.
        """
        if self._store is None:
            self._store = rows.new_empty((max(expected, len(rows)), *rows.shape[1:]))
        if rows.shape[1:] != self._store.shape[1:]:
            raise DataError(
                f"samples of shape {list(rows.shape[1:])} after samples of shape {list(self._store.shape[1:])}",
                "samples of one shape in all batches",
                "check the loader's batches",
            )
        needed = self._filled + len(rows)
        if needed > len(self._store):
            grown = self._store.new_empty((max(needed, 2 * len(self._store)), *self._store.shape[1:]))
            grown[: self._filled] = self._store[: self._filled]
            self._store = grown
        self._store[self._filled : needed] = rows
        self._filled = needed

    def rows(self) -> Tensor:
        """Give all rows so far, ``[n, *]``."""
        assert self._store is not None
        return self._store[: self._filled]
