"""Chaotic series continued by spiking nets: results of November 2026.  The script that measured them is in commit 222320f."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NoReturn

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from snn_recon_plugin.report.figures import BLUE, GREEN, GREY, ORANGE

CLEAN, DIRTY = {"Mackey-Glass": 1, "Lorenz": 55}, "Mackey-Glass, outliers"  # steps of a valid time's unit
NETS, RIVALS = ("feed-forward", "recurrent", "Norse"), ("echo state", "autoregression", "persistence")
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
LOSSES = {
    **{("feed-forward", "keep"): "MSE", ("feed-forward", "keep, Huber"): "Huber"},
    **{("feed-forward", "auto"): "MSE", ("feed-forward", "auto, Huber"): "Huber"},
    **{("", "echo state"): "MSE", ("", "autoregression"): "MSE"},
}
BARS = {"leaks": BLUE, "keep": GREY, "sampled": GREEN, "training": ORANGE, "callback": BLUE, "echo state": GREY}
SHORT = {"leaks": "heterogeneous", "sampled": "rows of S-SWIM"}
Results = Sequence[Mapping[str, Any]]


def cells(bench: Bench) -> Cells:
    """Return the kept results."""

    def refuse() -> NoReturn:
        raise SystemExit("measured once: python -m benchmarks.run forecasting of commit 222320f repeats it")

    return dict.fromkeys(bench.store.named(), refuse)


def results(store: Store, task: str, net: str, method: str) -> Results:
    """Return the results of the seeds."""
    return [cell for cell in store.cells() if (cell["task"], cell["net"], cell["method"]) == (task, net, method)]


def main_table(store: Store) -> str:
    """Return a row a method and net: error one step ahead and valid time of both series."""
    head = ["fitted by", "net", *(f"{task}: {what}" for task in CLEAN for what in ("error", "valid time")), "CPU seconds", "seeds"]
    rows = []
    for net, method in [*product(NETS, LABELS), *(("", method) for method in RIVALS)]:
        found = {task: results(store, task, net, method) for task in CLEAN}
        if any(found.values()):
            values = [
                text
                for task, some in found.items()
                for text in (_spread(some, "one_step", 4), _spread(some, "valid", 1 if CLEAN[task] == 1 else 2))
            ]
            seconds = statistics.mean(result["cpu_seconds"] for some in found.values() for result in some)
            rows.append([LABELS[method], net, *values, f"{seconds:.1f}", str(len(found["Lorenz"]))])
    return markdown_table(head, rows)


def loss_table(store: Store) -> str:
    """Return the errors of both losses on a series with outliers."""
    rows = []
    for (net, method), loss in LOSSES.items():
        found = results(store, DIRTY, net, method)
        values = _spread(found, "one_step", 4), _spread(found, "valid", 1)
        rows.append([LABELS[method.removesuffix(", Huber")], loss, *values, str(len(found))])
    return markdown_table(["fitted by", "loss", "error", "valid time", "seeds"], rows)


def _spread(found: Results, key: str, digits: int) -> str:
    """Return the mean over the seeds, and the least and largest value where there are several."""
    values = [float(result[key]) for result in found]
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def pages(store: Store) -> dict[str, dict[str, str]]:
    """Return the tables of the page."""
    tables = {"forecasting table": main_table(store), "forecasting losses": loss_table(store)}
    return {"evidence/temporal.md": {**tables, "forecasting setting": machines_line(store.cells())}}


def figures(store: Store) -> dict[str, Figure]:
    """Return a continuation of each series, and the valid times of the methods."""
    figure = Figure(figsize=(13.5, 3.7), layout="constrained")
    *panels, bars = figure.subplots(1, 3, width_ratios=[1.2, 1.2, 1])
    for axes, task in zip(panels, CLEAN, strict=True):
        truth, predicted = results(store, task, "feed-forward", "leaks")[0]["example"]
        above = truth[-1] > predicted[-1]
        for values, label, colour, up in ((truth, "true", GREY, above), (predicted, "net", BLUE, not above)):
            axes.plot(values, color=colour, linewidth=1.5)
            place = {"xytext": (5, 4 if up else -4), "textcoords": "offset points", "va": "center", "fontsize": 9}
            axes.annotate(label, (len(values) - 1, values[-1]), color=colour, **place)
        axes.set_title(f"{task}, continued by the net", fontsize=10)
        axes.set_xlabel("steps without the series")
        axes.set_ylabel("standard deviations")
        axes.margins(y=0.1)
    _draw_bars(bars, store)
    return {"forecasting.png": figure}


def _draw_bars(axes: Axes, store: Store) -> None:
    rows = []
    for net, (method, colour) in product(("", *NETS[:2]), reversed(BARS.items())):
        found = {task: results(store, task, net, method) for task in CLEAN}
        if all(found.values()):
            steps = {task: CLEAN[task] * statistics.mean(cell["valid"] for cell in some) for task, some in found.items()}
            rows.append((", ".join(filter(None, (SHORT.get(method, method), net))), steps, colour))
    for number, (_, steps, colour) in enumerate(rows):
        for offset, (task, value) in zip((0.2, -0.2), steps.items(), strict=True):
            axes.barh(number + offset, value, 0.36, color=colour, alpha=1.0 if CLEAN[task] == 1 else 0.5)
            if number == len(rows) - 1:
                axes.annotate(task, (value, number + offset), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(left=1)
    axes.set_title("valid time", fontsize=10)
    axes.set_xlabel("steps until the error is above 0.4")


STUDY = Study(
    title="chaotic series continued by spiking nets (kept results alone)",
    minutes=0,
    cells=cells,
    pages=pages,
    figures=figures,
    fields=(
        *("task", "net", "method", "seed", "one_step", "valid", "cpu_seconds", "example", "rate", "validation"),
        *("heldout", "gap", "leak", "radius", "ridge"),
    ),
    packages=("snntorch", "norse", "lightning"),
)
