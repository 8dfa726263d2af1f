"""Writes docs/forecasting.md's tables and docs/forecasting.png from the results of the study; no figure there is typed by hand.

cd benchmarks && python -m forecasting.render
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common import RESULTS
from benchmarks.render_docs import ROOT, markdown_table, replace
from benchmarks.render_networks import machine_line
from benchmarks.store import Store
from snn_recon_plugin.plots import BLUE, GREEN, GREY, ORANGE

from .measure import STARTS
from .methods import METHODS
from .nets import NETS
from .series import SERIES

DOC, FIGURE, SCRIPT = ROOT / "docs" / "forecasting.md", ROOT / "docs" / "forecasting.png", "forecasting/render.py"
LABELS = {
    "auto": "the one line",
    "leaks": "the one line, `heterogeneous=True`",
    "keep": '`hidden="keep"`',
    "sampled": "rows sampled as in S-SWIM, our readout",
    "training": "surrogate training",
    "callback": "surrogate training with the callback",
    "echo state": "echo state network",
    "autoregression": "linear autoregression, 20 values",
    "persistence": "the value before",
}
CLEAN, DIRTY = ("Mackey-Glass", "Lorenz"), "Mackey-Glass, outliers"
LOSSES = {  # net and method: loss, label
    ("feed-forward", "keep"): ("MSE", '`hidden="keep"`'),
    ("feed-forward", "keep, Huber"): ("Huber", '`hidden="keep"`'),
    ("feed-forward", "auto"): ("MSE", "the one line"),
    ("feed-forward", "auto, Huber"): ("Huber", "the one line"),
    ("", "echo state"): ("MSE", "echo state network"),
    ("", "autoregression"): ("MSE", "linear autoregression, 20 values"),
}
PANELS = tuple((task, "feed-forward", "leaks") for task in CLEAN)  # series, net, method
BARS = {
    "leaks": BLUE,
    "keep": GREY,
    "sampled": GREEN,
    "training": ORANGE,
    "callback": BLUE,
    "echo state": GREY,
}
SHORT = {"leaks": "heterogeneous", "sampled": "rows of S-SWIM"}

Cells = Mapping[tuple[str, str, str], Sequence[Mapping[str, Any]]]


def load_cells(path: Path = RESULTS / "forecasting.jsonl") -> Cells:
    """Return the results of a series, a net and a method, a seed each; tunings are left out."""
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for content in Store(path).cells():
        if "one_step" in content:
            found.setdefault((content["task"], content["net"], content["method"]), []).append(content)
    return found


def main_table(cells: Cells) -> str:
    """Return a row a method and net: error one step ahead and valid time of both series."""
    head = ["fitted by", "net", *(f"{task}: {what}" for task in CLEAN for what in ("error", "valid time")), "CPU seconds", "seeds"]
    rows = []
    for net in ("feed-forward", "recurrent", "Norse", ""):
        for method in METHODS:
            found = [cells.get((task, net, method), ()) for task in CLEAN]
            if not any(found):
                continue
            values = [
                text
                for task, results in zip(CLEAN, found, strict=True)
                for text in (_spread(results, "one_step", 4), _spread(results, "valid", 1 if SERIES[task].unit == 1 else 2))
            ]
            seconds = statistics.mean(result["cpu_seconds"] for results in found for result in results)
            seeds = sorted({len(results) for results in found if results})
            rows.append([LABELS[method], net, *values, f"{seconds:.1f}", " or ".join(map(str, seeds))])
    return markdown_table(head, rows)


def loss_table(cells: Cells) -> str:
    """Return the errors of both losses on a series with outliers."""
    rows = []
    for (net, method), (loss, label) in LOSSES.items():
        results = cells.get((DIRTY, net, method), ())
        if results:
            rows.append([label, loss, _spread(results, "one_step", 4), _spread(results, "valid", 1), str(len(results))])
    return markdown_table(["fitted by", "loss", "error", "valid time", "seeds"], rows)


def setting(cells: Cells) -> str:
    """Return what the figures depend on."""
    first = next(iter(cells.values()))[0]
    width = first["width"]
    return f"{width} hidden neurons, {STARTS} starting points. {machine_line(first['machine'])}"


def draw(cells: Cells, path: Path) -> None:
    """Draw a continuation of each series, and the valid times of the methods."""
    figure = Figure(figsize=(13.5, 3.7), layout="constrained")
    *panels, bars = figure.subplots(1, 3, width_ratios=[1.2, 1.2, 1])
    for axes, (task, net, method) in zip(panels, PANELS, strict=True):
        results = cells.get((task, net, method), ())
        if results:
            _draw_continuation(axes, results[0], f"{task}, continued by the net")
    _draw_bars(bars, cells)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def _draw_continuation(axes: Axes, result: Mapping[str, Any], title: str) -> None:
    truth, predicted = result["example"]
    axes.plot(truth, color=GREY, linewidth=1.5)
    axes.plot(predicted, color=BLUE, linewidth=1.5)
    above = truth[-1] > predicted[-1]
    for values, label, colour, up in ((truth, "true", GREY, above), (predicted, "net", BLUE, not above)):
        place = {"xytext": (5, 4 if up else -4), "textcoords": "offset points", "va": "center", "fontsize": 9}
        axes.annotate(label, (len(values) - 1, values[-1]), color=colour, **place)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("steps without the series")
    axes.set_ylabel("standard deviations")
    axes.margins(y=0.1)


def _draw_bars(axes: Axes, cells: Cells) -> None:
    rows: list[tuple[str, list[float], str]] = []
    for net in ("", "feed-forward", "recurrent"):
        for method, colour in reversed(BARS.items()):
            found = [cells.get((task, net, method), ()) for task in CLEAN]
            if all(found):
                steps = [
                    SERIES[task].unit * statistics.mean(result["valid"] for result in results)
                    for task, results in zip(CLEAN, found, strict=True)
                ]
                rows.append((", ".join(filter(None, (SHORT.get(method, method), net))), steps, colour))
    for number, (_, steps, colour) in enumerate(rows):
        for offset, value, task in zip((0.2, -0.2), steps, CLEAN, strict=True):
            axes.barh(number + offset, value, 0.36, color=colour, alpha=1.0 if task == CLEAN[0] else 0.5)
    if rows:
        top = len(rows) - 1
        for offset, value, task in zip((0.2, -0.2), rows[top][1], CLEAN, strict=True):
            axes.annotate(task, (value, top + offset), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(left=1)
    axes.set_title("valid time", fontsize=10)
    axes.set_xlabel("steps until the error is above 0.4")


def _spread(results: Sequence[Mapping[str, Any]], key: str, digits: int) -> str:
    """Return the mean over the seeds, and the least and largest value where there are several."""
    if not results:
        return ""
    values = [float(result[key]) for result in results]
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Write the blocks of the page, and its figure."""
    cells = load_cells()
    assert set(NETS) >= {net for _, net, _ in cells if net}
    replace(DOC, "forecasting table", main_table(cells), script=SCRIPT)
    replace(DOC, "losses", loss_table(cells), script=SCRIPT)
    replace(DOC, "forecasting setting", setting(cells), script=SCRIPT)
    draw(cells, FIGURE)


if __name__ == "__main__":
    main()
