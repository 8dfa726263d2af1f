"""Results of a study with many cells: one line of json a cell, appended when the cell is measured."""

from __future__ import annotations

import fnmatch
import json
import os
from pathlib import Path
from typing import Any


class Store:
    """Cells of one study by name, in a jsonl file.

    A line is ``{"name": ..., **content}``.  The last line of a name counts, so a repeated cell is appended too.  A line is written
    in one piece; half a line, which a machine that stopped may leave, is refused with its number.

    Args:
        path: the file; it may be missing.

    Raises:
        ValueError: a line that is no cell.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cells: dict[str, dict[str, Any]] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for number, line in enumerate(lines, start=1):
            name, content = _parsed(line, f"line {number} of {path}")
            self._cells[name] = content

    def __contains__(self, name: str) -> bool:
        return name in self._cells

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self._cells[name]

    def cells(self, pattern: str = "*") -> list[dict[str, Any]]:
        """Return the contents of all cells whose names match, in the order of their names."""
        return [self._cells[name] for name in sorted(self._cells) if fnmatch.fnmatchcase(name, pattern)]

    def add(self, name: str, content: dict[str, Any]) -> dict[str, Any]:
        """Append a cell, and return its content as it will be read."""
        line = json.dumps({"name": name, **content})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._cells[name] = _parsed(line, name)[1]
        return self._cells[name]


def _parsed(line: str, where: str) -> tuple[str, dict[str, Any]]:
    """Return name and content of a line."""
    try:
        content = json.loads(line)
        return content.pop("name"), content
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f'{where}: found {line[:60]!r}, needed {{"name": ..., ...}}: delete it') from error
