"""Writes what benchmarks/paper.py and its two companions found into docs/evidence/, beside the published figures, and draws it."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import RESULTS
from benchmarks.paper_settings import METHODS, Setting, settings
from benchmarks.render_docs import EVIDENCE, replace
from benchmarks.store import Store

DOC, STUDIES, AUTOMATA = (EVIDENCE / name for name in ("paper_tables.md", "paper_studies.md", "paper_automata.md"))
SUMMARY, SCRIPT = EVIDENCE / "paper.md", "render_paper.py"
_PALETTE = ("#999999", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#666666", "#333333", "#D55E00", "#0072B2")
COLOURS = dict(zip(METHODS, _PALETTE, strict=True))
SHOWN = ("CVX", "SG")  # methods of the summary, beside ours
TASKS = {"xor": "first-last XOR", "mnist": "sequential MNIST", "addition": "addition"}
Cells = dict[tuple[str, str, str], list[dict[str, Any]]]


def cells() -> Cells:
    """All results of one row and method, a list over the seeds."""
    found: Cells = defaultdict(list)
    for cell in Store(RESULTS / "paper.jsonl").cells():
        found[cell["table"], cell["setting"], cell["method"]].append(cell)
    return found


def rows_of(table: str) -> list[Setting]:
    """The settings of one table, those on MNIST included."""
    return [setting for setting in settings("unused") if setting.table == table]


def accuracies(results: list[dict[str, Any]], test: str) -> list[float]:
    """Test accuracies over the seeds, in percent."""
    return [100 * cell["tests"][test] for cell in results]


def figure_of(values: list[float]) -> str:
    """Mean, least and most in brackets where they differ."""
    mean = f"{statistics.mean(values):.1f}"
    return mean if max(values) - min(values) < 0.05 else f"{mean} ({min(values):.1f} to {max(values):.1f})"


def table(name: str, found: Cells) -> str:
    """A row a method, a column a setting: ours, and the published figure behind it."""
    rows, columns = rows_of(name), [(setting, test) for setting in rows_of(name) for test in setting.tests]
    heads = [setting.name if len(setting.tests) == 1 else f"{setting.name}, {test}" for setting, test in columns]
    lines = [f"| | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
    for method in METHODS:
        if not any(method in setting.methods for setting in rows):
            continue
        line = []
        for setting, test in columns:
            results = found.get((name, setting.name, method))
            ours = figure_of(accuracies(results, test)) if results else "not run" if method in setting.methods else ""
            published = setting.published.get(method)
            theirs = "" if published is None else f" / {published[setting.tests.index(test)]:g}"
            line.append(ours + theirs)
        lines.append(f"| {method} | {' | '.join(line)} |")
    best, goals = [], []
    for setting, test in columns:
        place = setting.tests.index(test)
        best.append(f"{max(figures[place] for figures in setting.published.values()):g}" if setting.published else "")
        goals.append(f"{setting.target[place]:g}" if setting.target else "")
    lines += [f"| *best published* | {' | '.join(best)} |", f"| *goal of ours* | {' | '.join(goals)} |"]
    return "\n".join(lines)


def summary(found: Cells) -> str:
    """One row a setting of XOR and MNIST, and of the first test of addition: a few methods, mean test accuracies in percent."""
    heads = ("task", *(f"{method}, here / published" for method in SHOWN), "ours", "best published")
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for setting in (row for name in TASKS for row in rows_of(name) if row.published):
        values = []
        for method in (*SHOWN, "ours"):
            here = statistics.mean(accuracies(found[setting.table, setting.name, method], setting.tests[0]))
            published = setting.published.get(method)
            values.append(f"{here:.1f}" + (f" / {published[0]:g}" if published else ""))
        best = f"{max(figures[0] for figures in setting.published.values()):g}"
        lines.append(f"| {TASKS[setting.table]}, {setting.name} | {' | '.join(values)} | {best} |")
    return "\n".join(lines)


def certificates(found: Cells) -> str:
    """For each table and method: the largest relative gap of all its cells, and their seconds."""
    heads = ("table", "method", "loss, penalty", "cells", "largest relative gap", "seconds of a cell, median", "most")
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name in ("xor", "mnist", "addition", "carry"):
        for method in METHODS:
            results = [cell for (table, _, other), some in found.items() if (table, other) == (name, method) for cell in some]
            if not results:
                continue
            certified = [cell["certificate"] for cell in results if "certificate" in cell]
            gap = f"{max(each['relative_gap'] for each in certified):.1e}" if certified else "no convex program"
            what = ", ".join(sorted({f"{each['loss']}, {each['penalty']}" for each in certified}))
            seconds = [cell["seconds"] for cell in results]
            numbers = f"{statistics.median(seconds):.0f} | {max(seconds):.0f}"
            lines.append(f"| {name} | {method} | {what} | {len(results)} | {gap} | {numbers} |")
    return "\n".join(lines)


def setting_line(found: Cells) -> str:
    """Machine, versions, seeds and dates of the cells."""
    every = [cell for results in found.values() for cell in results]
    machine = every[0]["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    dates = sorted({cell["machine"]["date"] for cell in every})
    threads = sorted({cell["machine"]["threads"] for cell in every})
    counts = sorted({len(results) for results in found.values()})
    seeds = f"each with {' or '.join(map(str, counts))} seed{'s' if counts[-1] > 1 else ''}"
    wanted = sum(len(setting.methods) for setting in settings("unused"))
    days = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return (
        f"Of {wanted} methods in all rows {len(found)} have run, {seeds}; "
        f"{machine['cores']} cores of {machine['processor']}, "
        f"{' or '.join(map(str, threads))} threads a cell, Python {machine['python']}, {versions}; {days}."
    )


def automata(content: dict[str, Any]) -> str:
    """A row an automaton and kind of layer."""
    short, long = (str(content["length"]), "100")
    lines = [
        f"| automaton | layer | neurons | spikes missed | test at T={short}, % | at T={long}, % | relative gap | seconds |",
        "|" + "---|" * 8,
    ]
    for key, case in content["cases"].items():
        name, layer = key.rsplit(", ", maxsplit=1)
        tests = " | ".join(f"{100 * case['tests'][steps]:.1f}" for steps in (short, long))
        gap = f"{case['relative_gap']:.0e}"
        lines.append(f"| {name} | {layer} | {case['neurons']} | {case['mismatch']:.1%} | {tests} | {gap} | {case['seconds']:.1f} |")
    return "\n".join(lines)


def draw_accuracy(found: Cells) -> None:
    """Bars of the methods for each setting of XOR and MNIST; a dash where the paper's figure is."""
    figure = Figure(figsize=(9.0, 6.0), layout="constrained")
    for axes, name in zip(figure.subplots(2, 1), ("xor", "mnist"), strict=True):
        rows = rows_of(name)
        methods = [method for method in METHODS if any(method in setting.methods for setting in rows)]
        width = 0.85 / len(methods)
        for k, method in enumerate(methods):
            places = [number + (k - (len(methods) - 1) / 2) * width for number in range(len(rows))]
            values = [found.get((name, setting.name, method)) for setting in rows]
            heights = [statistics.mean(accuracies(results, "test")) if results else 0.0 for results in values]
            axes.bar(places, heights, width, color=COLOURS[method], label=method)
            marked = [number for number, setting in enumerate(rows) if method in setting.published]
            marks = [rows[number].published[method][0] for number in marked]
            label = "published" if k == 0 else None
            axes.plot([places[number] for number in marked], marks, "_", color="black", markersize=9, label=label)
        axes.set_xticks(range(len(rows)), [setting.name.replace(", permuted", "\npermuted") for setting in rows])
        axes.set_ylabel("test accuracy, %")
        axes.set_ylim(0, 104)
        axes.set_title({"xor": "first-last XOR", "mnist": "sequential MNIST, 6000 images"}[name], fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7, ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(EVIDENCE / "paper_accuracy.png", dpi=150)


def draw_gap(study: dict[str, Any]) -> None:
    """The optimum on K neurons of a pool against K / n, and the pool's own, which no more neurons can lower."""
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, curve), colour in zip(study["curves"].items(), ("#0072B2", "#C77700"), strict=True):
        counts, means = [int(count) / study["n"] for count in curve], [statistics.mean(values) for values in curve.values()]
        axes.plot(counts, means, "o-", color=colour, markersize=4)
        axes.fill_between(counts, [min(v) for v in curve.values()], [max(v) for v in curve.values()], color=colour, alpha=0.2)
        place = {"xytext": (8, 6), "textcoords": "offset points"}
        axes.annotate(name, (counts[3], means[3]), color=colour, **place)
    axes.axhline(study["dual"], color="#777777", linestyle="--")
    bound = {"xytext": (0, -14), "textcoords": "offset points", "ha": "right"}
    axes.annotate(f"dual bound for all {study['pool']}", (max(counts), study["dual"]), color="#777777", **bound)
    axes.margins(y=0.14)
    axes.set_xlabel("neurons over samples, K / n")
    axes.set_ylabel("objective at its optimum")
    axes.set_title(f"first-last XOR, all {study['n']} strings: {study['used']} neurons carry the optimum", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(EVIDENCE / "paper_gap.png", dpi=150)


def draw_studies(cases: list[dict[str, Any]]) -> None:
    """Test accuracy against one setting at a time, and against the number of samples."""
    labels = {"width": "neurons of the last hidden layer", "beta": "strength times the root of the width"}
    labels |= {"samples": "training images"}
    figure = Figure(figsize=(11.0, 3.4), layout="constrained")
    for axes, (what, label) in zip(figure.subplots(1, 3, sharey=True), labels.items(), strict=True):
        for method in METHODS:
            points = sorted((case["value"], case["test"]) for case in cases if (case["what"], case["method"]) == (what, method))
            if points:
                values, tests = [x for x, _ in points], [100 * y for _, y in points]
                axes.plot(values, tests, "o-", color=COLOURS[method], markersize=4)
                place = {"xytext": (0, -14 if method == "SG" else 6), "textcoords": "offset points", "ha": "center"}
                axes.annotate(method, (values[1], tests[1]), color=COLOURS[method], **place)
        axes.set_xscale("log")
        shown = sorted({case["value"] for case in cases if case["what"] == what})
        axes.set_xticks(shown, [f"{value:g}" for value in shown])
        axes.minorticks_off()
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("test accuracy, %")
    figure.suptitle("sequential MNIST, T=4, L=3, one setting changed at a time", fontsize=10)
    figure.savefig(EVIDENCE / "paper_studies.png", dpi=150)


def unstated(studies: dict[str, dict[str, Any]]) -> str:
    """Accuracy on XOR by two settings that are not on record: a row each value, a column each row of the table."""

    def share(value: float | None) -> str:
        return "as drawn" if value is None else f"{value:g} of those at ratio 1"

    lengths = by_value(studies, "first", "SG, Gaussian weights of length", str)
    return f"{lengths}\n\n{by_value(studies, 'recurrent', 'LSM ridge, recurrent weights', share)}"


def by_value(studies: dict[str, dict[str, Any]], key: str, head: str, name: Callable[[Any], str]) -> str:
    """A table of the studies that have ``key``."""
    cases = [case for case in studies.values() if key in case]
    rows = list(dict.fromkeys(case["row"] for case in cases))
    tests: dict[Any, list[str]] = defaultdict(list)
    for case in cases:
        tests[case[key]].append(f"{100 * case['test']:.1f}")
    published = {case["row"]: f"{case['published']:g}" for case in cases}
    lines = [f"| {head} | {' | '.join(rows)} |", "|" + "---|" * (len(rows) + 1)]
    lines += [f"| {name(value)} | {' | '.join(line)} |" for value, line in tests.items()]
    return "\n".join([*lines, f"| *published* | {' | '.join(published.values())} |"])


def render() -> None:
    """All blocks of which there are results."""
    found = cells()
    replace(DOC, "paper setting", setting_line(found), script=SCRIPT)
    for name in ("xor", "mnist", "addition", "carry"):
        replace(DOC, f"paper {name}", table(name, found), script=SCRIPT)
    replace(STUDIES, "paper certificates", certificates(found), script=SCRIPT)
    replace(SUMMARY, "paper summary", summary(found), script=SCRIPT)
    draw_accuracy(found)
    content = json.loads((RESULTS / "paper_automata.json").read_text(encoding="utf-8"))
    replace(AUTOMATA, "paper automata", automata(content), script=SCRIPT)
    studies = json.loads((RESULTS / "paper_studies.json").read_text(encoding="utf-8"))["cases"]
    draw_gap(next(case for name, case in studies.items() if name.startswith("zero gap")))
    draw_studies([case for case in studies.values() if "what" in case])
    replace(STUDIES, "paper unstated", unstated(studies), script=SCRIPT)


if __name__ == "__main__":
    render()
