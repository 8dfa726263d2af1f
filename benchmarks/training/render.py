"""Writes the tables of docs/training.md and docs/evidence/training.md, and docs/training.png, from the results of the study.

cd benchmarks && python -m training.render
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import RESULTS
from benchmarks.render_docs import ROOT, markdown_table, replace
from benchmarks.render_networks import machine_line
from benchmarks.store import Store
from snn_recon_plugin.plots import BLUE, ORANGE

from .cases import CASES

DOC, FIGURE, SCRIPT = ROOT / "docs" / "training.md", ROOT / "docs" / "training.png", "training/render.py"
EVIDENCE = ROOT / "docs" / "evidence" / "training.md"
BASELINES = (
    "fixed rate",
    "fixed rate, EMA",
    "one cycle",
    "one cycle, EMA",
    "fluctuation-driven, one cycle, EMA",
    "S-SWIM, one cycle, EMA",
)
PLUGIN = ("line, one cycle, EMA", "refits, one cycle", "callback, fixed rate", "callback, one cycle")
PANELS = {
    "MNIST": "MNIST, 784-1000-10",
    "spoken digits": "spoken digits, feed-forward",
    "delayed match, recurrent": "delayed match, recurrent",
}
# Label, colour, and its offset in points from the end of the line.
LINES = {"one cycle, EMA": ("without", ORANGE, (7, -3)), "callback, one cycle": ("with the callback", BLUE, (0, 7))}

Runs = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]


def load_runs(path: Path = RESULTS / "training.jsonl") -> Runs:
    """Return all runs of a case by a method, a seed each; tunings are left out."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for content in Store(path).cells():
        if "final" in content:
            found.setdefault((content["case"], content["method"]), []).append(content)
    return found


def mean(runs: Sequence[Mapping[str, Any]], *keys: str) -> float:
    """Return the mean of a value over the seeds."""
    values = []
    for run in runs:
        value: Any = run
        for key in keys:
            value = value[key]
        values.append(float(value))
    return statistics.mean(values)


def seconds_to(runs: Sequence[Mapping[str, Any]], accuracy: float) -> float | None:
    """Return the CPU seconds until the evaluated weights have an accuracy, the mean over seeds; None if one does not reach it."""
    found = [next((e["seconds"] for e in [*run["epochs"], run["final"]] if e["test"] >= accuracy), None) for run in runs]
    reached = [seconds for seconds in found if seconds is not None]
    return statistics.mean(reached) if len(reached) == len(runs) else None


def least_step(runs: Sequence[Mapping[str, Any]]) -> float:
    """Return the largest fall of the evaluated test accuracy from one epoch to the next, the mean over the seeds."""
    tests = [[epoch["test"] for epoch in run["epochs"]] for run in runs]
    steps = [[later - earlier for earlier, later in itertools.pairwise(run)] for run in tests]
    return min((statistics.mean(some) for some in zip(*steps, strict=True)), default=0.0)


def best_baseline(case: str, runs: Runs) -> Sequence[Mapping[str, Any]] | None:
    """Return the runs of the best baseline; None without one, or without the callback to compare."""
    bases = [runs[case, name] for name in BASELINES if (case, name) in runs]
    if not bases or (case, "callback, one cycle") not in runs:
        return None
    return max(bases, key=lambda base: mean(base, "final", "test"))


def summary(runs: Runs) -> str:
    """Return the short table: the best baseline, the callback, and the seconds of both to the baseline's accuracy."""
    head = [
        "task",
        "training alone, tuned",
        "with the callback",
        "seconds alone",
        "with the callback, to the same accuracy",
        "in all",
    ]
    rows = []
    for case in CASES:
        base = best_baseline(case, runs)
        if base is None:
            continue
        callback, goal = runs[case, "callback, one cycle"], mean(base, "final", "test")
        reached = seconds_to(callback, goal)
        tests = [f"{100 * value:.1f}" for value in (goal, mean(callback, "final", "test"))]
        seconds = [f"{mean(some, 'final', 'seconds'):.0f}" for some in (base, callback)]
        rows.append([case, *tests, seconds[0], "not reached" if reached is None else f"{reached:.0f}", seconds[1]])
    return f"{markdown_table(head, rows)}\n\n{summary_line(runs)}"


def summary_line(runs: Runs) -> str:
    """Return the medians and extremes of the table."""
    gains, shares = [], []
    for case in CASES:
        base = best_baseline(case, runs)
        if base is not None:
            callback, goal = runs[case, "callback, one cycle"], mean(base, "final", "test")
            gains.append(100 * (mean(callback, "final", "test") - goal))
            shares.append((seconds_to(callback, goal) or math.inf) / mean(base, "final", "seconds"))
    if not gains:
        return ""
    faster = sum(share <= 1 for share in shares)
    accuracy = f"{min(gains):+.1f} to {max(gains):+.1f} points from tuned training's, {statistics.median(gains):+.1f} at the median"
    sooner = f"{statistics.median(shares):.2f} of its seconds at the median, and sooner in {faster} of {len(shares)} tasks"
    return f"The callback's accuracy is {accuracy}. It has tuned training's accuracy after {sooner}."


def row(case: str, runs: Runs) -> list[str] | None:
    """Return a case's row: final accuracies, and the seconds to the best baseline's; None without a baseline and the callback."""
    base = best_baseline(case, runs)
    if base is None:
        return None
    goal, seconds = mean(base, "final", "test"), mean(base, "final", "seconds")
    callback = runs[case, "callback, one cycle"]
    reached = seconds_to(callback, goal)
    finals = [
        f"{100 * mean(runs[case, name], 'final', 'test'):.1f}" if (case, name) in runs else "" for name in (*BASELINES, *PLUGIN)
    ]
    lead = 100 * (mean(callback, "final", "test") - goal)
    return [
        case,
        str(CASES[case].epochs),
        *finals,
        f"{lead:+.1f}",
        f"{seconds:.0f}",
        "not reached" if reached is None else f"{reached:.0f}",
        f"{mean(callback, 'final', 'seconds'):.0f}",
        f"{100 * least_step(callback):+.1f}",
        str(len(callback)),
    ]


def table(runs: Runs) -> str:
    """Return the main table."""
    head = [
        "case",
        "epochs",
        *BASELINES,
        *PLUGIN,
        "callback, one cycle, against the best baseline",
        "its seconds",
        "until the callback has as much",
        "callback, all",
        "largest fall",
        "seeds",
    ]
    rows = [cells for case in CASES if (cells := row(case, runs)) is not None]
    return markdown_table(head, rows)


def sgd_table(runs: Runs) -> str:
    """Return the table of a rate that is far too high for a solved net."""
    head = ["case", "SGD 0.05", "callback, SGD 0.05", "step length at the end"]
    rows = []
    for case in CASES:
        if (case, "callback, SGD 0.05") not in runs or (case, "SGD 0.05") not in runs:
            continue
        shares = [run["metrics"].get("recon/step_share", 1.0) for run in runs[case, "callback, SGD 0.05"]]
        tests = [f"{100 * mean(runs[case, name], 'final', 'test'):.1f}" for name in ("SGD 0.05", "callback, SGD 0.05")]
        rows.append([case, *tests, f"{min(shares):g}"])
    return markdown_table(head, rows)


def loops_table(cases: Mapping[str, Any]) -> str:
    """Return the table of one epoch in a plain loop after the line."""
    head = ["case", "optimizer", "line", "an epoch, free", "trained under protect", "left by protect", "with validation data"]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for name, found in cases.items():
        case, optimizer, kind = name.split(" | ")
        rows.setdefault((case, optimizer), {})[kind] = found
    lines = []
    for (case, optimizer), kinds in rows.items():
        values = [kinds["free"]["line"], kinds["free"]["trained"], kinds["protected"]["trained"], kinds["protected"]["left"]]
        values.append(kinds["protected, validation"]["left"])
        lines.append([case, optimizer, *(f"{100 * value:.1f}" for value in values)])
    return markdown_table(head, lines)


def draw(runs: Runs, path: Path) -> None:
    """Draw test accuracy against CPU seconds, a panel a case, the first seed."""
    figure = Figure(figsize=(4.2 * len(PANELS), 3.4), layout="constrained")
    for axes, (case, title) in zip(figure.subplots(1, len(PANELS), squeeze=False)[0], PANELS.items(), strict=True):
        for method, (label, colour, offset) in LINES.items():
            if (case, method) not in runs:
                continue
            run = runs[case, method][0]
            seconds, tests = ([epoch[key] for epoch in run["epochs"]] for key in ("seconds", "test"))
            axes.plot(seconds, [100 * test for test in tests], color=colour, marker="o", ms=3)
            place = {"xytext": offset, "textcoords": "offset points", "ha": "left" if offset[0] else "right", "fontsize": 9}
            height = tests[-1] if offset[0] else max(tests[len(tests) // 2 :])  # a label above its line touches no part of it
            axes.annotate(label, (seconds[-1], 100 * height), color=colour, **place)
        axes.set_title(title, fontsize=10)
        axes.margins(y=0.12)
        axes.set_xlabel("CPU seconds, one thread")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("test accuracy, %")
    figure.savefig(path, dpi=130)


def setting(runs: Runs) -> str:
    """Return the number of all runs, their dates, and the machine of the last."""
    every = sorted((run for cell in runs.values() for run in cell), key=lambda run: str(run["machine"]["date"]))
    return f"{len(every)} runs from {every[0]['machine']['date']} on, the last on {machine_line(every[-1]['machine'])}"


def main() -> None:
    """Write the blocks of the page, and its figure."""
    runs = load_runs()
    replace(DOC, "training summary", summary(runs), script=SCRIPT)
    replace(EVIDENCE, "training setting", setting(runs), script=SCRIPT)
    replace(EVIDENCE, "training table", table(runs), script=SCRIPT)
    replace(EVIDENCE, "high rate", sgd_table(runs), script=SCRIPT)
    loops = json.loads((RESULTS / "training_loops.json").read_text(encoding="utf-8"))
    replace(EVIDENCE, "plain loops", loops_table(loops["cases"]), script=SCRIPT)
    draw(runs, FIGURE)


if __name__ == "__main__":
    main()
