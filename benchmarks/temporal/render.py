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
from render_docs import EVIDENCE, ROOT, replace

from snn_recon_plugin.plots import BLUE, GREEN, GREY, ORANGE

from .cells import load_cells
from .methods import STARTS, TRAININGS
from .tables import Results, Run, by_run, kind_table, setting, start_table, summary_table, training_table

DOC, SUMMARY, FIGURE = EVIDENCE / "temporal.md", ROOT / "docs" / "temporal.md", ROOT / "docs" / "temporal.png"
SCRIPT = "temporal/render.py"
PANELS: dict[Run, str] = {
    ("rows", "snntorch-recurrent", 256): "MNIST by row, recurrent",
    ("speech", "snntorch-recurrent", 256): "spoken digits, recurrent",
    ("timing", "snntorch-feedforward", 256): "spike timing, feed-forward",
}
COLOURS = {"keep": GREY, "rescale": GREY, "draws": ORANGE, "auto": BLUE, "heterogeneous": BLUE}
COLOURS |= dict.fromkeys(TRAININGS, GREEN)
LABELS = {"train": "fixed rate", "train-cycle": "one cycle", "train-long": "fixed rate, 100", "train-cycle-long": "one cycle, 100"}
LABELS |= {"train-sharp": "sharp", "train-sharp-long": "sharp, 100"}

Line = tuple[str, list[float], list[float]]  # method, seconds, test accuracy in percent


def lines_of(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Line]:
    """Means over the seeds: a point a start, points at the epochs of ``LOOKS`` a training; refused starts are left out."""
    lines: list[Line] = []
    for method, results in found.items():
        if any("refused" in result for result in results) or method not in COLOURS:
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
    figure = Figure(figsize=(4.4 * max(len(shown), 1), 3.4), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, max(len(shown), 1), squeeze=False)[0], shown, strict=False):
        for method, seconds, accuracies in lines:
            dashed = "--" if method in TRAININGS and TRAININGS[method].cycle else "-"
            axes.semilogx(seconds, accuracies, color=COLOURS[method], ls=dashed, marker="o", ms=4 if method in TRAININGS else 7)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        label_lines(axes, lines)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("CPU seconds, one thread")
        axes.spines[["top", "right"]].set_visible(False)
    if shown:
        figure.axes[0].set_ylabel("test accuracy, %")
        figure.savefig(path, dpi=130)


def label_lines(axes: Axes, lines: Sequence[Line]) -> None:
    """Write each line's name to the right of the panel at the height of its end, moved up where names would overlap."""
    low, high = axes.get_ylim()
    gap, last = 0.065 * (high - low), -float("inf")
    right = max((seconds[-1] for _, seconds, _ in lines), default=1.0)
    for method, seconds, accuracies in sorted(lines, key=lambda line: line[2][-1]):
        last = max(accuracies[-1], last + gap)
        place = {"xy": (seconds[-1], accuracies[-1]), "xytext": (1.6 * right, last), "va": "center", "fontsize": 8}
        arrow = {"arrowstyle": "-", "color": COLOURS[method], "lw": 0.4}
        axes.annotate(LABELS.get(method, method), **place, color=COLOURS[method], arrowprops=arrow)


def main() -> None:
    """Write the blocks of the page, and its figure."""
    cells = load_cells()
    replace(DOC, "temporal setting", setting(cells), script=SCRIPT)
    replace(DOC, "temporal starts", start_table(cells), script=SCRIPT)
    replace(DOC, "temporal kinds", kind_table(cells), script=SCRIPT)
    replace(DOC, "temporal trainings", training_table(cells), script=SCRIPT)
    replace(SUMMARY, "temporal summary", summary_table(cells), script=SCRIPT)
    draw(cells, FIGURE)


if __name__ == "__main__":
    main()
