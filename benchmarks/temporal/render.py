"""Writes the tables of docs/evidence/temporal.md, and docs/temporal.md's summary and figure, from the results of the study.

cd benchmarks && python -m temporal.render
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.render_docs import EVIDENCE, ROOT, replace
from snn_recon_plugin.plots import BLUE, GREEN, GREY

from .cells import load_cells
from .methods import STARTS, TRAININGS
from .tables import Results, Run, by_run, count_table, kind_table, setting, start_table, summary_table, training_table

DOC, SUMMARY, FIGURE = EVIDENCE / "temporal.md", ROOT / "docs" / "temporal.md", ROOT / "docs" / "temporal.png"
SCRIPT = "temporal/render.py"
PANELS: dict[Run, str] = {
    ("rows", "snntorch-recurrent", 256): "MNIST by row, recurrent",
    ("speech", "snntorch-recurrent", 256): "spoken digits, recurrent",
    ("timing", "snntorch-feedforward", 256): "spike timing, feed-forward",
}
# Starts that are shown: colour, label, where the label lies in points from the dot, and its side.
DOTS = {
    "keep": (GREY, "keep", (0, -18), "center"),
    "auto": (BLUE, "the one line", (-9, -8), "right"),
    "heterogeneous": (BLUE, "heterogeneous=True", (0, 9), "center"),
}

Line = tuple[str, list[float], list[float]]  # method, seconds, test accuracy in percent


def lines_of(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Line]:
    """Means over the seeds: a point a start, points at the epochs of ``LOOKS`` a training; refused starts are left out."""
    lines: list[Line] = []
    for method, results in found.items():
        if any("refused" in result for result in results):
            continue
        if method == "train" and "train-long" in found:  # the same run, continued
            continue
        series = [list(result["epochs"].values()) if method in TRAININGS else [result] for result in results]
        points = list(zip(*series, strict=True))
        seconds, accuracies = (
            [statistics.mean(each[key] for each in point) for point in points] for key in ("cpu_seconds", "test")
        )
        lines.append((method, seconds, [100 * value for value in accuracies]))
    return lines


def draw(cells: Results, path: Path) -> None:
    """Draw test accuracy against CPU seconds, a panel a task; lines are trainings, dots are starts."""
    runs = by_run(cells, (*STARTS, *TRAININGS))
    shown = [(title, lines_of(runs[run])) for run, title in PANELS.items() if run in runs]
    figure = Figure(figsize=(4.0 * max(len(shown), 1), 3.4), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, max(len(shown), 1), squeeze=False)[0], shown, strict=False):
        draw_lines(axes, [line for line in lines if line[0] in TRAININGS])
        for method, seconds, accuracies in lines:
            if method in DOTS:
                colour, label, offset, side = DOTS[method]
                axes.plot(seconds, accuracies, color=colour, marker="o", ms=8)
                place = {"xytext": offset, "textcoords": "offset points", "ha": side}
                axes.annotate(label, (seconds[0], accuracies[0]), color=colour, **place)
        axes.set_xscale("log")
        axes.margins(x=0.2, y=0.14)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(title)
        axes.set_xlabel("CPU seconds, one thread")
        axes.spines[["top", "right"]].set_visible(False)
    if shown:
        figure.axes[0].set_ylabel("test accuracy, %")
        figure.savefig(path, dpi=130)


def draw_lines(axes: Axes, lines: Sequence[Line]) -> None:
    """Draw the trainings; the label is at the first stretch of the one that ends highest."""
    for _, seconds, accuracies in lines:
        axes.plot(seconds, accuracies, color=GREEN, marker="o", ms=4, lw=1.2)
    if lines:
        _, seconds, accuracies = max(lines, key=lambda line: line[2][-1])
        middle = (statistics.geometric_mean(seconds[:2]), statistics.mean(accuracies[:2]))
        axes.annotate("training", middle, xytext=(-6, 3), textcoords="offset points", ha="right", color=GREEN)


def main() -> None:
    """Write the blocks of the page, and its figure."""
    cells = load_cells()
    replace(DOC, "temporal setting", setting(cells), script=SCRIPT)
    replace(DOC, "temporal starts", start_table(cells), script=SCRIPT)
    replace(DOC, "temporal kinds", kind_table(cells), script=SCRIPT)
    replace(DOC, "temporal counts", count_table(cells), script=SCRIPT)
    replace(DOC, "temporal trainings", training_table(cells), script=SCRIPT)
    replace(SUMMARY, "temporal summary", summary_table(cells), script=SCRIPT)
    draw(cells, FIGURE)


if __name__ == "__main__":
    main()
