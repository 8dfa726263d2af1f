"""The paper's tables (arXiv 2605.08022): each method of it and the plugin's own recipe, in snnTorch, by the plugin's public calls.

A cell is one family of methods on one row with one seed: methods of a family go on from each other's weights.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.paper.methods import Splits, accuracy, convex, gaussian_, solve_remembering, surrogate, tune_branching_
from benchmarks.paper.nets import SequenceNet, forgetful
from benchmarks.paper.settings import METHODS, Setting, settings
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from snn_recon_plugin import ReconstructionError, Report

RATE, FINE_RATE = 1e-3, 3e-4
STRENGTHS = (0.01, 0.1, 1.0)  # the paper's beta; the program's strength is beta / sqrt(P_last)
SEEDS = 3
PALETTE = ("#999999", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#666666", "#333333", "#D55E00", "#0072B2")
COST = 1000.0  # epochs that a solve may cost: the paper's nets have short epochs, and its programs many solutions nearly as good
SHOWN = ("CVX", "SG")  # methods of the summary, beside ours
TASKS = {"xor": "first-last XOR", "mnist": "sequential MNIST", "addition": "addition"}
Result = dict[str, Any]
Found = dict[tuple[str, str, str], list[Result]]  # results of the seeds by table, row and method


def result(net: SequenceNet, data: Splits, began: float, report: Report | None = None, **more: Any) -> Result:
    """Return accuracies of the net as it is, and the certificate of the readout that was written last."""
    found = {"tests": data.tested(net), "validation": accuracy(net, data.validation), "train": accuracy(net, data.train)}
    if report is not None:
        about = {"loss": report.loss, "penalty": report.program.penalty, "strength": report.program.strength}
        more["certificate"] = {"relative_gap": report.certificate.relative_gap, **about}
    return {**found, "seconds": time.perf_counter() - began, **more}


def paper_net(setting: Setting, seed: int, **options: Any) -> SequenceNet:
    """The paper's network on Gaussian weights: two branches, leak 0.99, no biases in hidden layers, signs of membranes."""
    net = SequenceNet(setting.inputs, setting.widths, setting.outputs, each=setting.each, **options)
    gaussian_(net, seed)
    return net


def solve_readout(net: SequenceNet, data: Splits, setting: Setting, seed: int, **options: Any) -> Report:
    """Solve the readout as the paper does: hinge with l1, or cross-entropy with the path norm of p = 2."""
    usual = {"loss": "hinge", "penalty": "l1"}
    if setting.outputs > 1:
        usual = {"loss": "cross_entropy", "penalty": "group_l1", "readout": "linear_per_step" if setting.each else "auto"}
    strengths = [beta / setting.widths[-1] ** 0.5 for beta in STRENGTHS]
    return convex(net, data, strengths, hidden="keep", seed=seed, **{**usual, "max_cost": COST, **options})


def surrogate_family(setting: Setting, data: Splits, seed: int) -> Iterator[tuple[str, Result]]:
    """Surrogate gradients from Gaussian weights; the convex readout on what they found; as many epochs again."""
    began, net = time.perf_counter(), paper_net(setting, seed)
    surrogate(net, data, epochs=setting.epochs, rate=RATE, seed=seed)
    yield "SG", result(net, data, began)
    other, before = copy.deepcopy(net), time.perf_counter() - began
    try:
        report = solve_readout(other, data, setting, seed)
    except ReconstructionError as error:  # nothing is written then: the result is SG's net
        yield "SG-CVX", result(other, data, began, refused=error.found)
    else:
        yield "SG-CVX", result(other, data, began, report)
    if "STE from STE" in setting.methods:
        began = time.perf_counter() - before
        surrogate(net, data, epochs=setting.epochs, rate=RATE, seed=seed + 1)
        yield "STE from STE", result(net, data, began)


def convex_family(setting: Setting, data: Splits, seed: int) -> Iterator[tuple[str, Result]]:
    """The convex readout on Gaussian witnesses; and surrogate gradients from there."""
    began, net = time.perf_counter(), paper_net(setting, seed)
    yield "CVX", result(net, data, began, solve_readout(net, data, setting, seed))
    if "STE from CVX" in setting.methods:
        surrogate(net, data, epochs=setting.epochs, rate=RATE, seed=seed)
        yield "STE from CVX", result(net, data, began)


def reservoir_family(setting: Setting, data: Splits, seed: int) -> Iterator[tuple[str, Result]]:
    """Reservoirs at a branching ratio of 1: the convex readout on signs of membranes and on membranes, and ridge regression."""
    for method in (method for method in ("R-CVX", "R-CVX analog", "LSM ridge") if method in setting.methods):
        ridge, sees = method == "LSM ridge", "membrane" if method == "R-CVX" else "analog"
        # A score for each class: ridge regression has 0 and 1 as targets.
        row = replace(setting, outputs=max(2, setting.outputs)) if ridge else setting
        began, net = time.perf_counter(), paper_net(row, seed, sees=sees)
        tune_branching_(net, data.train.inputs)
        options = {"max_cost": math.inf} if sees == "analog" else {}  # on membranes a solve takes more work than an epoch
        try:
            if ridge:
                report = convex(net, data, ["auto"], hidden="keep", seed=seed, loss="squared", penalty="ridge", **options)
            else:
                report = solve_readout(net, data, setting, seed, **options)
        except ReconstructionError as error:
            yield method, result(net, data, began, refused=error.found)
        else:
            yield method, result(net, data, began, report)


def our_family(setting: Setting, data: Splits, seed: int) -> Iterator[tuple[str, Result]]:
    """Hidden layers and readout by ``hidden="reconstruct"``, no gradient step; on MNIST surrogate gradients from there, too."""
    began, outputs = time.perf_counter(), max(2, setting.outputs)
    if setting.each:
        torch.manual_seed(seed)
        net = forgetful(setting.inputs, setting.widths, outputs)
        options = {"hidden": "reconstruct", "readout": "linear_per_step", "max_samples": 2000}
        report = convex(net, data, ["auto"], seed=seed, **options)
    else:
        # A pair of strings of different classes differs in the first symbol or the last, so that no boundary half-way between two
        # looks at both; random directions do.
        witnesses = "gaussian" if setting.table == "xor" else "pairs"
        net, report = solve_remembering(data, setting.widths, outputs, seed, witnesses=witnesses)
    yield "ours", result(net, data, began, report)
    if "ours + SG" in setting.methods:
        surrogate(net, data, epochs=setting.epochs, rate=FINE_RATE, seed=seed)
        report = convex(net, data, ["auto"], seed=seed, hidden="keep")
        yield "ours + SG", result(net, data, began, report)


FAMILIES: dict[str, tuple[Callable[[Setting, Splits, int], Iterator[tuple[str, Result]]], tuple[str, ...]]] = {
    "ours": (our_family, ("ours", "ours + SG")),
    "convex": (convex_family, ("CVX", "STE from CVX")),
    "reservoir": (reservoir_family, ("R-CVX", "R-CVX analog", "LSM ridge")),
    "surrogate": (surrogate_family, ("SG", "SG-CVX", "STE from STE")),
}


def measure(setting: Setting, family: str, seed: int) -> dict[str, Any]:
    """Run a family."""
    torch.manual_seed(seed)
    found = FAMILIES[family][0](setting, setting.make(seed), seed)
    methods = {method: one for method, one in found if method in setting.methods}
    return {"table": setting.table, "setting": setting.name, "seed": seed, "methods": methods}


def cells(bench: Bench) -> Cells:
    """Every family on every row with every seed."""
    rows = settings(bench.places.need("mnist"))
    wanted = [
        (row, family, seed)
        for seed, row, (family, (_, methods)) in product(range(SEEDS), rows, FAMILIES.items())
        if set(methods) & set(row.methods)
    ]
    return {f"{row.stem}-{family}-s{seed}": partial(measure, row, family, seed) for row, family, seed in wanted}


def load(store: Store) -> Found:
    """Return all results of one row and method, a list over the seeds."""
    found: Found = defaultdict(list)
    for cell in store.cells():
        for method, one in cell["methods"].items():
            found[cell["table"], cell["setting"], method].append(one)
    return found


def rows_of(table: str) -> list[Setting]:
    """Return the rows of one table."""
    return [setting for setting in settings("") if setting.table == table]


def accuracies(results: list[Result], test: str) -> list[float]:
    """Return test accuracies over the seeds, in percent."""
    return [100 * one["tests"][test] for one in results]


def results_table(name: str, found: Found) -> str:
    """A row a method, a column a setting: ours, with least and most where they differ, and the published figure behind it."""
    columns = [(setting, place, test) for setting in rows_of(name) for place, test in enumerate(setting.tests)]
    heads = [setting.name if len(setting.tests) == 1 else f"{setting.name}, {test}" for setting, _, test in columns]
    lines: dict[str, list[str]] = {method: [] for method in METHODS if any(method in row.methods for row in rows_of(name))}
    best, goals = [], []
    for setting, place, test in columns:
        for method, line in lines.items():
            values = accuracies(found[name, setting.name, method], test)
            text = f"{statistics.mean(values):.1f}" if values else ""
            if values and max(values) - min(values) >= 0.05:
                text += f" ({min(values):.1f} to {max(values):.1f})"
            line.append(text + (f" / {setting.published[method][place]:g}" if method in setting.published else ""))
        best.append(f"{max(figures[place] for figures in setting.published.values()):g}" if setting.published else "")
        goals.append(f"{setting.target[place]:g}" if setting.target else "")
    rows = [(method, *line) for method, line in lines.items()]
    return markdown_table(("", *heads), [*rows, ("*best published*", *best), ("*goal of ours*", *goals)])


def summary(found: Found) -> str:
    """One row a setting of XOR and MNIST, and of the first test of addition: a few methods, mean test accuracies in percent."""
    rows = []
    for setting in (row for name in TASKS for row in rows_of(name) if row.published):
        values = []
        for method in (*SHOWN, "ours"):
            here = statistics.mean(accuracies(found[setting.table, setting.name, method], setting.tests[0]))
            published = setting.published.get(method)
            values.append(f"{here:.1f}" + (f" / {published[0]:g}" if published else ""))
        best = f"{max(figures[0] for figures in setting.published.values()):g}"
        rows.append((f"{TASKS[setting.table]}, {setting.name}", *values, best))
    return markdown_table(("task", *(f"{method}, here / published" for method in SHOWN), "ours", "best published"), rows)


def certificates(found: Found) -> str:
    """For each table and method: the largest relative gap of all its results, and their seconds."""
    rows = []
    for name, method in product((*TASKS, "carry"), METHODS):
        results = [one for (table, _, other), some in found.items() if (table, other) == (name, method) for one in some]
        if results:
            certified = [one["certificate"] for one in results if "certificate" in one]
            gap = f"{max(each['relative_gap'] for each in certified):.1e}" if certified else "no convex program"
            what = ", ".join(sorted({f"{each['loss']}, {each['penalty']}" for each in certified}))
            seconds = [one["seconds"] for one in results]
            times = f"{statistics.median(seconds):.0f}", f"{max(seconds):.0f}"
            rows.append((name, method, what, str(len(results)), gap, *times))
    heads = ("table", "method", "loss, penalty", "cells", "largest relative gap", "seconds of a cell, median", "most")
    return markdown_table(heads, rows)


def pages(store: Store) -> dict[str, dict[str, str]]:
    """The summary, the tables, and certificates."""
    found = load(store)
    wanted = sum(len(setting.methods) for setting in settings(""))
    setting = f"Of {wanted} methods in all rows {len(found)} have run, each with {SEEDS} seeds. {machines_line(store.cells())}"
    tables = {f"paper {name}": results_table(name, found) for name in (*TASKS, "carry")}
    summaries = {"paper summary": summary(found), "paper setting": setting, "paper certificates": certificates(found)}
    return {"evidence/paper.md": {**summaries, **tables}}


def figures(store: Store) -> dict[str, Figure]:
    """Bars of the methods for each setting of XOR and MNIST; a dash where the paper's figure is."""
    found, figure = load(store), Figure(figsize=(6.4, 8.4), layout="constrained")
    for axes, name in zip(figure.subplots(2, 1), ("xor", "mnist"), strict=True):
        rows = rows_of(name)
        methods = [method for method in METHODS if any(method in setting.methods for setting in rows)]
        width = 0.85 / len(methods)
        for k, method in enumerate(methods):
            places = [number + (k - (len(methods) - 1) / 2) * width for number in range(len(rows))]
            values = [accuracies(found[name, setting.name, method], "test") for setting in rows]
            heights = [statistics.mean(results) if results else 0.0 for results in values]
            axes.bar(places, heights, width, color=PALETTE[METHODS.index(method)], label=method)
            marks = {number: setting.published[method][0] for number, setting in enumerate(rows) if method in setting.published}
            label = "published" if k == 0 else None
            axes.plot([places[number] for number in marks], list(marks.values()), "_", color="black", markersize=7, label=label)
        axes.set_xticks(range(len(rows)), [setting.name.replace(", permuted", "\npermuted") for setting in rows])
        axes.set_ylabel("test accuracy, %")
        axes.set_ylim(0, 104)
        axes.set_title({"xor": "first-last XOR", "mnist": "sequential MNIST, 6000 images"}[name], fontsize=10)
        axes.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    return {"evidence/paper_accuracy.png": figure}


STUDY = Study(
    title="the paper's tables, each method of it and ours",
    minutes=480,
    cells=cells,
    pages=pages,
    figures=figures,
    fields=("table", "setting", "seed", "methods"),
    needs=("mnist",),
)
