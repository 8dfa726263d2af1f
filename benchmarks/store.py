"""Results of a study: one line of json a cell, appended when the cell is measured."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
COMMON = ("machine", "version")  # fields of every cell; the version is that of older ones, and always 1


class Store:
    """Cells of one study by name, in a jsonl file.

    A line is ``{"name": ..., **content}``.  The last line of a name counts, so a repeated cell is appended too.  A line is written
    in one piece; half a line, which a machine that stopped may leave, is refused with its number.

    Args:
        path: the file; it may be missing.
        fields: names that a cell may have, beside ``machine`` and ``version``; None allows any.

    Raises:
        ValueError: a line that is no cell, or an unknown field.
    """

    def __init__(self, path: Path, fields: Collection[str] | None = None) -> None:
        self.path, self.fields = path, fields
        self._cells: dict[str, dict[str, Any]] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for number, line in enumerate(lines, start=1):
            name, content = self._parsed(line, f"line {number} of {path}")
            self._cells[name] = content

    def __contains__(self, name: str) -> bool:
        return name in self._cells

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self._cells[name]

    def named(self, pattern: str = "*") -> dict[str, dict[str, Any]]:
        """Return the cells whose names match, in the order in which they were first measured."""
        return {name: content for name, content in self._cells.items() if fnmatch.fnmatchcase(name, pattern)}

    def cells(self, pattern: str = "*") -> list[dict[str, Any]]:
        """Return the contents of all cells whose names match, in the order of their names."""
        return [content for _, content in sorted(self.named(pattern).items())]

    def add(self, name: str, content: dict[str, Any]) -> dict[str, Any]:
        """Append a cell, and return its content as it will be read."""
        line = json.dumps({"name": name, **content})
        read = self._parsed(line, f"cell {name!r}")[1]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._cells[name] = read
        return read

    def _parsed(self, line: str, where: str) -> tuple[str, dict[str, Any]]:
        """Return name and content of a line."""
        try:
            content = json.loads(line)
            name = content.pop("name")
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f'{where}: found {line[:60]!r}, needed {{"name": ..., ...}}: delete it') from error
        unknown = sorted(content.keys() - {*self.fields, *COMMON}) if self.fields is not None else []
        if unknown:
            what = f"cell {name!r} has the unknown fields {', '.join(unknown)}"
            raise ValueError(f"{where}: {what}: delete it, or add them to the study's fields")
        return name, content
