"""Writes what benchmarks/witness_kinds.py and benchmarks/hidden_cost.py found into docs/evidence/ (hidden.md, witnesses.md)."""

from __future__ import annotations

import json
import statistics
from typing import Any

from common import RESULTS
from render_docs import EVIDENCE, replace

SCRIPT = "render_witnesses.py"
HIDDEN = ("keep", "rescale", "auto")


def load(name: str) -> list[dict[str, Any]]:
    """The cases of a study."""
    cases: dict[str, dict[str, Any]] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["cases"]
    return list(cases.values())


def kinds() -> str:
    """One row a task: the accuracy of each kind, with the number of seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for case in load("witness_kinds"):
        found.setdefault(case["task"], {}).setdefault(case["witnesses"], []).append(100 * case["test"])
    rows = ["| task | candidates | test accuracy, % | least | most | seeds |", "|---|---|---|---|---|---|"]
    for task, results in found.items():
        for kind, values in results.items():
            cells = [f"{number:.1f}" for number in (statistics.mean(values), min(values), max(values))]
            rows.append(f"| {task} | {kind} | {' | '.join(cells)} | {len(values)} |")
    return "\n".join(rows)


def costs() -> str:
    """One row a net and code: epochs and test accuracy of each choice of hidden layers."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for case in load("hidden_cost"):
        found.setdefault((case["task"], case["code"]), {})[case["hidden"]] = case
    heads = [f"{hidden}, {what}" for hidden in HIDDEN for what in ("epochs", "test, %")]
    rows = [f"| net and data | code | an epoch, s | {' | '.join(heads)} |", "|" + "---|" * (3 + len(heads))]
    for (task, code), results in found.items():
        cells = []
        for hidden in HIDDEN:
            case = results.get(hidden)
            cells += ["", ""] if case is None else [f"{case['seconds'] / case['epoch']:.1f}", f"{100 * case['test']:.2f}"]
        epoch = statistics.mean(case["epoch"] for case in results.values())
        rows.append(f"| {task} | {code} | {epoch:.2f} | {' | '.join(cells)} |")
    return "\n".join(rows)


def render() -> None:
    """Both blocks."""
    replace(EVIDENCE / "witnesses.md", "witness kinds", kinds(), script=SCRIPT)
    replace(EVIDENCE / "hidden.md", "hidden cost", costs(), script=SCRIPT)


if __name__ == "__main__":
    render()
