"""Writes what start_cost.py measured into docs/evidence/training.md, and refit_samples.py into docs/evidence/decisions.md."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.render_docs import EVIDENCE, replace
from benchmarks.render_networks import machine_line
from benchmarks.start_cost import DATA, METHODS

NAMES = {"callback": "callback", "reconstruct": 'one line, hidden="reconstruct"', "rescale": 'one line, hidden="rescale"'}
HEAD = (
    "images",
    "method",
    "code",
    "start, epochs",
    "refit, epochs",
    "test after an epoch, plain",
    "after the start",
    "after the refit",
    "gap",
)


def cells(case: dict[str, Any]) -> list[str]:
    """One row: costs as multiples of the plain epoch that was timed beside them, accuracies in percent."""
    tests, epoch = case["tests"], case["epoch"]
    refit = f"{case['refit'] / epoch:.2f}" if case.get("refit") else ""
    shown = [f"{100 * tests[name]:.2f}" if name in tests else "" for name in ("plain epoch", "start", "refit")]
    return [
        case["data"],
        NAMES[case["method"]],
        case["code"],
        f"{case['start'] / epoch:.2f}",
        refit,
        *shown,
        f"{case['relative_gap']:.0e}",
    ]


def table(content: dict[str, Any]) -> str:
    """All cases, by images and method, the code as it is first."""
    order = {name: number for number, name in enumerate((*DATA, *METHODS))}
    cases = sorted(content["cases"].values(), key=lambda c: (order[c["data"]], order[c["method"]], c["code"] != "now"))
    rows = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    rows += [f"| {' | '.join(cells(case))} |" for case in cases]
    setting = f"{content['samples']:,} training images, seed {content['seed']}, CPU seconds of one thread"
    return "\n".join([*rows, "", f"{setting}; {machine_line(content['machine'])}"])


def render() -> None:
    """Write the table."""
    content = json.loads((RESULTS / "start_cost.json").read_text(encoding="utf-8"))
    replace(EVIDENCE / "training.md", "start cost", table(content), script="render_start.py")


if __name__ == "__main__":
    render()
