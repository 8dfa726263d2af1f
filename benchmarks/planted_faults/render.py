"""Write the table of planted faults into docs/evidence/tests.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.render_docs import EVIDENCE, markdown_table, replace
from benchmarks.render_networks import machine_line

from .__main__ import RESULT
from .catalogue import FAULTS

FIRST = "79cd86d"  # the commit whose larger suite others are compared with


def cell(result: Mapping[str, Any] | None) -> str:
    """Return the file of the test that found a fault; empty without a result."""
    if result is None or result["found"] is None:
        return ""
    return f"`{result['by'].partition('::')[0].rpartition('/')[2]}`" if result["found"] else "not found"


def table(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one row a fault, and one column for each commit."""
    commits = list(dict.fromkeys([FIRST, *(name.partition(" | ")[0] for name in cases)]))
    rows = [[fault.name, fault.room, *(cell(cases.get(f"{commit} | {fault.name}")) for commit in commits)] for fault in FAULTS]
    counts = [sum(bool(cases.get(f"{commit} | {fault.name}", {}).get("found")) for fault in FAULTS) for commit in commits]
    return markdown_table(
        ["fault", "room", *(f"found at {commit}" for commit in commits)], [*rows, ["found", "", *map(str, counts)]]
    )


def main() -> None:
    """Write the page's table."""
    content = json.loads(RESULT.read_text(encoding="utf-8"))
    text = f"{table(content['cases'])}\n\n{machine_line(content['machine'])}"
    replace(EVIDENCE / "tests.md", "planted faults", text, "planted_faults/render.py")


if __name__ == "__main__":
    main()
