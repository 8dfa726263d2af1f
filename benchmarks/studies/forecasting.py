"""Chaotic series continued by spiking nets: starts without a gradient step, surrogate training, and rivals.

The learning rate of surrogate training is tuned once for each series and net, by validation data, on the net without the plugin.
Seconds are CPU seconds of one thread, without those of tuning and tests.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.predictors import EPOCHS, NETS, WIDTH, OfChanges, initializer, make, train
from benchmarks.render import machine_line, markdown_table
from benchmarks.rivals import RIVALS, sample_rows
from benchmarks.series import SERIES, STARTS, Predictor, Split, one_step_error, roll_out, split, valid_times, windows
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from snn_recon_plugin.report.figures import BLUE, GREEN, GREY, ORANGE

ROWS = 32  # windows of a start's batches
RATES, TUNING, TUNING_SEED = (1e-3, 4e-3, 1.6e-2), 0.4, 1000  # share of a run's epochs that each rate gets; a seed of no other run
SHOWN = 120  # steps of a continuation that are kept
SEEDS = 3
# Options of ConvexInitializer; "sampled" rows are written first.  Changes have a usual size of 1, as Huber's width.
OPTIONS: dict[str, Mapping[str, Any]] = {
    "auto": {},
    "leaks": {"heterogeneous": True},
    "keep": {"hidden": "keep"},
    "sampled": {"hidden": "keep"},
    "auto, Huber": {"loss": nn.HuberLoss()},
    "keep, Huber": {"hidden": "keep", "loss": nn.HuberLoss()},
}
TRAININGS = {"training": {}, "callback": {"feed-forward": OPTIONS["leaks"], "recurrent": OPTIONS["keep"]}}
CLEAN, DIRTY = ("Mackey-Glass", "Lorenz"), "Mackey-Glass, outliers"
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
LOSSES = {  # net and method: loss
    **{("feed-forward", "keep"): "MSE", ("feed-forward", "keep, Huber"): "Huber"},
    **{("feed-forward", "auto"): "MSE", ("feed-forward", "auto, Huber"): "Huber"},
    **{("", "echo state"): "MSE", ("", "autoregression"): "MSE"},
}
BARS = {"leaks": BLUE, "keep": GREY, "sampled": GREEN, "training": ORANGE, "callback": BLUE, "echo state": GREY}
SHORT = {"leaks": "heterogeneous", "sampled": "rows of S-SWIM"}
Results = Sequence[Mapping[str, Any]]


def tune(task: str, net: str) -> dict[str, Any]:
    """Try all rates in shorter runs; the one with the least validation loss."""
    data, short = split(SERIES[task], TUNING_SEED), max(1, round(TUNING * EPOCHS))
    losses = {rate: train(make(net, data, TUNING_SEED), data, rate, TUNING_SEED, None, short) for rate in RATES}
    best = min(losses, key=lambda rate: losses[rate] if math.isfinite(losses[rate]) else math.inf)
    about = {"task": task, "net": net, "method": "tuning", "seed": TUNING_SEED}
    return {**about, "rate": best, "validation": {str(rate): loss for rate, loss in losses.items()}}


def fit(bench: Bench, method: str, task: str, net: str, data: Split, seed: int) -> tuple[Predictor, dict[str, Any], float]:
    """Return a predictor, what is known of it, and when its fit began, in CPU seconds."""
    if method in RIVALS:
        began = time.process_time()
        return *RIVALS[method](data, WIDTH, seed), began
    if method in TRAININGS:
        rate = float(bench.cell(name_of(task, net, "tuning", TUNING_SEED), partial(tune, task, net))["rate"])
        began, made = time.process_time(), make(net, data, seed)
        about = {"rate": rate, "validation": train(made, data, rate, seed, TRAININGS[method].get(net))}
        return OfChanges(made, data.scale), about, began
    began, made = time.process_time(), make(net, data, seed)
    inputs, targets = windows(data.train, data.scale)
    if method == "sampled":
        sample_rows(made.hidden, made.neuron, inputs, targets, seed)
    report = initializer(seed, **OPTIONS[method]).initialize(made, DataLoader(TensorDataset(inputs, targets), ROWS))
    return OfChanges(made, data.scale), {"heldout": report.after.loss, "gap": report.certificate.relative_gap}, began


def measure(bench: Bench, task: str, net: str, method: str, seed: int) -> dict[str, Any]:
    """Fit by a method; its measures on test data, CPU seconds of the fit, and the first continuation of the test series."""
    series, data = SERIES[task], split(SERIES[task], seed)
    predictor, about, began = fit(bench, method, task, net, data, seed)
    seconds = time.process_time() - began
    predicted, truth = roll_out(predictor, data.test, series.horizon)
    first = [[round(value, 3) for value in values[0, :SHOWN, 0].tolist()] for values in (truth, predicted)]
    return {
        **{"task": task, "net": net, "method": method, "seed": seed, "cpu_seconds": seconds},
        "one_step": one_step_error(predictor, data.test),
        "valid": float((valid_times(predicted, truth) / series.unit).mean()),
        **({"example": first} if seed == 0 else {}),
        **about,
    }


def name_of(task: str, net: str, method: str, seed: int) -> str:
    """Return the name of a cell."""
    return "-".join(filter(None, (task, net, method, str(seed)))).replace(",", "").replace(" ", "_")


def applies(method: str, net: str, seed: int, dirty: bool) -> bool:
    """Return whether a method is run: Huber's loss is for outliers, S-SWIM's rows and leaks for Leaky neurons."""
    if method in TRAININGS:
        return net in TRAININGS["callback"] and seed == 0 and not dirty
    if dirty:
        return (net, method) in LOSSES or method in RIVALS
    return not method.endswith("Huber") and (method not in ("sampled", "leaks") or net == "feed-forward")


def cells(bench: Bench) -> Cells:
    """Every method on every series with every net; rivals have none."""
    nets = [("", method) for method in RIVALS] + list(product(NETS, (*OPTIONS, *TRAININGS)))
    wanted = [
        (task, net, method, seed)
        for seed, task, (net, method) in product(range(SEEDS), SERIES, nets)
        if applies(method, net, seed, task == DIRTY)
    ]
    tunings = {name_of(t, n, "tuning", TUNING_SEED): partial(tune, t, n) for t, n in product(CLEAN, TRAININGS["callback"])}
    return tunings | {name_of(*cell): partial(measure, bench, *cell) for cell in wanted}


def results(store: Store, task: str, net: str, method: str) -> Results:
    """Return the results of the seeds."""
    return [cell for cell in store.cells() if (cell["task"], cell["net"], cell["method"]) == (task, net, method)]


def main_table(store: Store) -> str:
    """Return a row a method and net: error one step ahead and valid time of both series."""
    head = ["fitted by", "net", *(f"{task}: {what}" for task in CLEAN for what in ("error", "valid time")), "CPU seconds", "seeds"]
    rows = []
    for net, method in [*product(NETS, LABELS), *(("", method) for method in RIVALS)]:
        found = [results(store, task, net, method) for task in CLEAN]
        if any(found):
            values = [
                text
                for task, some in zip(CLEAN, found, strict=True)
                for text in (_spread(some, "one_step", 4), _spread(some, "valid", 1 if SERIES[task].unit == 1 else 2))
            ]
            seconds = statistics.mean(result["cpu_seconds"] for some in found for result in some)
            rows.append([LABELS[method], net, *values, f"{seconds:.1f}", str(len(found[0]))])
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
    """The tables of the page."""
    setting = f"{WIDTH} hidden neurons, {STARTS} starting points. {machine_line(store.cells()[0]['machine'])}"
    tables = {"forecasting table": main_table(store), "losses": loss_table(store)}
    return {"evidence/temporal.md": {**tables, "forecasting setting": setting}}


def figures(store: Store) -> dict[str, Figure]:
    """A continuation of each series, and the valid times of the methods."""
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
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return {"forecasting.png": figure}


def _draw_bars(axes: Axes, store: Store) -> None:
    rows = []
    for net, (method, colour) in product(("", *NETS[:2]), reversed(BARS.items())):
        found = [results(store, task, net, method) for task in CLEAN]
        if all(found):
            valid = [statistics.mean(cell["valid"] for cell in some) for some in found]
            steps = [SERIES[task].unit * value for task, value in zip(CLEAN, valid, strict=True)]
            rows.append((", ".join(filter(None, (SHORT.get(method, method), net))), steps, colour))
    for number, (_, steps, colour) in enumerate(rows):
        for offset, value, task in zip((0.2, -0.2), steps, CLEAN, strict=True):
            axes.barh(number + offset, value, 0.36, color=colour, alpha=1.0 if task == CLEAN[0] else 0.5)
            if number == len(rows) - 1:
                axes.annotate(task, (value, number + offset), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(left=1)
    axes.set_title("valid time", fontsize=10)
    axes.set_xlabel("steps until the error is above 0.4")


STUDY = Study(
    title="chaotic series continued by spiking nets",
    minutes=30,
    cells=cells,
    pages=pages,
    figures=figures,
    fields=(
        *("task", "net", "method", "seed", "one_step", "valid", "cpu_seconds", "example", "rate", "validation"),
        *("heldout", "gap", "leak", "radius", "ridge"),
    ),
    packages=("snntorch", "norse", "lightning"),
)
