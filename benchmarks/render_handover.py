"""Tables of what training makes of a start, in docs/evidence/training.md.

    python benchmarks/render_handover.py

Reads own_loops.json, tutorial5.json, tutorial6.json and damping.json of benchmarks/results/.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

from benchmarks import own_loops, tutorial5
from benchmarks.common import RESULTS
from benchmarks.render_docs import EVIDENCE, markdown_table, replace
from benchmarks.render_networks import machine_line

PAGE = EVIDENCE / "training.md"


def load(name: str) -> dict[str, Any]:
    """Return a study's results."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def own_loops_table(cases: dict[str, Any]) -> str:
    """Return medians and falls over the user nets, one row an optimizer."""
    rows = []
    for optimizer in own_loops.OPTIMIZERS:
        found = [row for name, row in cases.items() if name.endswith(f" | {optimizer}")]
        for title, nets in (
            (f"{optimizer}, all", found),
            (f"{optimizer}, training alone learns", [row for row in found if row["fresh_epoch"] > own_loops.LEARNS]),
        ):
            falls = [100 * (row["line"] - row["line_epoch"]) for row in nets]
            medians = [f"{100 * statistics.median(row[key] for row in nets):.1f}" for key in ("fresh_epoch", "line", "line_epoch")]
            behind = sum(row["fresh_epoch"] > row["line_epoch"] for row in nets)
            counts = [str(sum(fall > bound for fall in falls)) for bound in (5, 10)]
            rows.append((title, str(len(nets)), *medians, f"{statistics.median(falls):.1f}", *counts, str(behind)))
    head = ("optimizer", "nets", "alone", "line", "line, then an epoch", "median fall", "fall above 5", "above 10", "behind alone")
    return markdown_table(head, rows)


def tutorial_table(cases: dict[str, Any]) -> str:
    """Return means over the seeds, one row a rate."""
    rows = []
    for rate in tutorial5.RATES:
        means = tutorial5.means(cases, rate)
        rows.append((f"{rate:g}", *(f"{100 * value:.1f}" for value in means.values())))
    return markdown_table(("rate", *tutorial5.means(cases, tutorial5.RATES[0])), rows)


def factor_table(cases: dict[str, Any]) -> str:
    """Return means over the seeds, one row a factor of the solved readout."""
    rows = []
    for factor in tutorial5.FACTORS:
        loss, *accuracies = tutorial5.by_factor(cases, factor)
        rows.append((f"{factor:g}", f"{loss:.1f}", *(f"{100 * value:.1f}" for value in accuracies)))
    after = (f"3 epochs at {rate:g}" for rate in tutorial5.RATES)
    return markdown_table(("factor", "trained loss at the start", "start", *after), rows)


def convolutions_table(cases: dict[str, Any]) -> str:
    """Return seconds and accuracy after each epoch, alone and with the guard."""
    rows = []
    for name, points in cases.items():
        accuracies = (f"{100 * point['test']:.1f}" for point in points)
        rows.append((name.partition(" |")[0], *accuracies, f"{points[0]['seconds']:.0f}", f"{points[-1]['seconds']:.0f}"))
    epochs = (f"epoch {number}" for number in range(len(next(iter(cases.values())))))
    return markdown_table(("training", *epochs, "seconds before it", "in all"), rows)


def damping_table(cases: dict[str, Any]) -> str:
    """Return growth, choice and test accuracy by factor, means over the seeds."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for name, case in cases.items():
        grouped.setdefault(name.rpartition(", seed")[0], []).append(case)
    factors = ("1.0", "0.5", "0.25")
    rows = []
    for name, found in grouped.items():
        growth = ", ".join(f"{case['growth']['1.0']:.3g}" for case in found)
        chosen = ", ".join(f"{case['chosen']:g}" for case in found)
        tests = (f"{100 * statistics.fmean(case['trained'][factor]['test'] for case in found):.1f}" for factor in factors)
        rows.append((name, growth, chosen, f"{100 * statistics.fmean(case['before'] for case in found):.1f}", *tests))
    return markdown_table(("case", "growth", "chosen", "before", *(f"factor {float(factor):g}" for factor in factors)), rows)


def main() -> None:
    """Write all tables."""
    tables = {
        "own loops": ("own_loops", own_loops_table),
        "tutorial 5": ("tutorial5", tutorial_table),
        "tutorial 5, factors": ("tutorial5", factor_table),
        "tutorial 6": ("tutorial6", convolutions_table),
        "damping": ("damping", damping_table),
    }
    for section, (name, table) in tables.items():
        content = load(name)
        replace(PAGE, section, f"{table(content['cases'])}\n\n{machine_line(content['machine'])}", script="render_handover.py")


if __name__ == "__main__":
    main()
