"""Writes what benchmarks/time_to_accuracy.py found into docs/training.md, and draws error against wall-clock."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from typing import Any

from common import RESULTS
from matplotlib.figure import Figure
from render_docs import ROOT, replace
from render_hidden import setting
from time_to_accuracy import EPOCHS, METHODS

DOC, SCRIPT = ROOT / "docs" / "training.md", "render_time.py"
COLOURS = dict(zip(METHODS, ("#777777", "#CC79A7", "#56B4E9", "#0072B2", "#009E73", "#E69F00", "#D55E00"), strict=True))
SHOWN = (1, 2, 4, 8, 12, 15)
Runs = dict[tuple[str, str], list[dict[str, Any]]]


def contents() -> list[dict[str, Any]]:
    """The studies that were run, fewest images first."""
    paths = [path for path in RESULTS.glob("time_to_accuracy*.json") if "_rates" not in path.stem]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return sorted(found, key=lambda content: content["samples"])


def grouped(content: dict[str, Any]) -> Runs:
    """Results of all seeds by network and method, in the order of the script."""
    found: Runs = {(network, method): [] for network in networks(content) for method in METHODS}
    for name, result in content["cases"].items():
        found[result["network"], result["method"]].append({**result, "seed": name.rsplit("seed ", 1)[1]})
    return {key: results for key, results in found.items() if results}


def networks(content: dict[str, Any]) -> list[str]:
    """In the order of the script, each before its longer runs."""
    order = {network: number for number, network in enumerate(EPOCHS)}
    return sorted({result["network"] for result in content["cases"].values()}, key=lambda name: (order[name.split(", ")[0]], name))


def mean(results: list[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> float:
    """Over the seeds."""
    return statistics.mean(map(value, results))


def test_at(epoch: int) -> Callable[[dict[str, Any]], float]:
    """Test accuracy after an epoch."""
    return lambda result: float(result["epochs"][epoch - 1]["test"])


def epochs_of(results: list[dict[str, Any]]) -> int:
    """How many there are of all seeds."""
    return min(len(result["epochs"]) for result in results)


def best(result: dict[str, Any]) -> float:
    """Test accuracy of the best epoch, or of the start."""
    return max(point["test"] for point in [result["first"], *result["epochs"]])


def share(result: dict[str, Any]) -> float:
    """Of the wall-clock, the callback's."""
    seconds = result.get("callback", sum(solve["seconds"] for solve in result["solves"]))
    return float(seconds / result["epochs"][-1]["seconds"])


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(content: dict[str, Any]) -> str:
    """Test accuracy by epoch, seconds of the run, and what the callback took of them."""
    groups = grouped(content)
    shown = [epoch for epoch in SHOWN if epoch <= max(epochs_of(results) for results in groups.values())]
    names = ["net", "method", "seeds", "start", *(f"epoch {epoch}" for epoch in shown)]
    names += ["best", "seconds", "callback's share", "least in 200 steps"]
    rows = [line(names), "|" + "---|" * len(names)]
    for (network, method), results in groups.items():
        started = "start" in method
        least = min(min(result["steps"].values()) - result["steps"]["0"] for result in results)
        cells = [network, method, str(len(results)), f"{100 * mean(results, lambda r: r['first']['test']):.2f}" if started else ""]
        cells += [f"{100 * mean(results, test_at(epoch)):.2f}" if epoch <= epochs_of(results) else "" for epoch in shown]
        cells += [f"{100 * mean(results, best):.2f}", f"{mean(results, lambda r: r['epochs'][-1]['seconds']):.0f}"]
        cells += [f"{100 * mean(results, share):.0f} %" if "solves" in results[0] else ""]
        rows.append(line([*cells, f"{100 * least:+.2f}" if started else ""]))
    return "\n".join(rows)


def reached(results: list[dict[str, Any]], goal: float) -> float | None:
    """Seconds until the mean test accuracy of the seeds is as high; None where it never is."""
    for number in range(1 + len(results[0]["epochs"])):
        points = [[result["first"], *result["epochs"]][number] for result in results]
        if statistics.mean(point["test"] for point in points) >= goal:
            return statistics.mean(point["seconds"] for point in points)
    return None


def against_plain(content: dict[str, Any]) -> str:
    """How soon the others are where plain training gets, in its epochs by the clock, and how errors compare; by seeds of both."""
    names = ["net", "images", "method", "error after epoch 1 / plain's", "least lead at an epoch's end", "lead at the end"]
    names += ["plain's epoch 4 after", "plain's best after"]
    rows = [line(names), "|" + "---|" * len(names)]
    groups = grouped(content)
    for (network, method), found in groups.items():
        compared = groups.get((network, "plain"))
        if method == "plain" or compared is None:
            continue
        seeds = {run["seed"] for run in found} & {run["seed"] for run in compared}
        results, plain = ([run for run in runs if run["seed"] in seeds] for runs in (found, compared))
        count = epochs_of(plain)
        tests = [[mean(runs, test_at(epoch)) for epoch in range(1, count + 1)] for runs in (results, plain)]
        leads = [100 * (ours - theirs) for ours, theirs in zip(*tests, strict=True)]
        second = mean(plain, lambda result: result["epochs"][-1]["seconds"]) / count
        goals = [reached(results, goal) for goal in (tests[1][min(4, count) - 1], max(tests[1]))]
        cells = [network, f"{content['samples']:,}", method, f"{(1 - tests[0][0]) / (1 - tests[1][0]):.2f}"]
        cells += [f"{min(leads):+.2f}", f"{leads[-1]:+.2f}"]
        rows.append(line([*cells, *("never" if goal is None else f"{goal / second:.1f} epochs" for goal in goals)]))
    return "\n".join(rows)


def rates() -> str:
    """Test accuracy by learning rate, plain and with the callback."""
    cases = json.loads((RESULTS / "time_to_accuracy_rates.json").read_text(encoding="utf-8"))["cases"].values()
    length = min(len(case["epochs"]) for case in cases)
    shown = [epoch for epoch in SHOWN if epoch <= length]
    names = ["net", "method", "learning rate", *(f"epoch {epoch}" for epoch in shown), "best"]
    rows = [line(names), "|" + "---|" * len(names)]
    for case in cases:
        cells = [case["network"], case["method"], f"{case['rate']:g}"]
        cells += [f"{100 * value:.2f}" for value in (*(test_at(epoch)(case) for epoch in shown), best(case))]
        rows.append(line(cells))
    return "\n".join(rows)


def draw(content: dict[str, Any], name: str) -> None:
    """Test error against seconds, a panel a net."""
    groups = grouped(content)
    shown = networks(content)
    columns = math.ceil(math.sqrt(len(shown)))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(4.8 * columns, 3.8 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for axes in panels[len(shown) :]:
        axes.remove()
    for axes, network in zip(panels, shown, strict=False):
        errors: list[float] = []
        for (other, method), results in groups.items():
            if other != network:
                continue
            runs = [[*([result["first"]] if "start" in method else []), *result["epochs"]] for result in results]
            points = list(zip(*runs, strict=True))
            seconds = [statistics.mean(point["seconds"] for point in group) for group in points]
            errors = [100 * (1 - statistics.mean(point["test"] for point in group)) for group in points]
            axes.plot(seconds, errors, "o-", color=COLOURS[method], label=method, markersize=3)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="minor", labelsize=7)
        axes.set_xlabel("seconds, the callback's included")
        axes.set_ylabel("test error, %")
        axes.set_title(f"{network}, MNIST, {content['samples']:,} images", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(ROOT / "docs" / name, dpi=150)


def refit_samples() -> str:
    """Test accuracy and time of readouts solved on spikes of training's own forwards, and on those of a pass."""
    cases = list(json.loads((RESULTS / "refit_samples.json").read_text(encoding="utf-8"))["cases"].values())
    trained = f"{100 * statistics.mean(case['trained'] for case in cases):.2f}"
    rows = [
        line(["samples", "training's own spikes, test accuracy", "epochs", "a pass, test accuracy", "epochs"]),
        "|" + "---|" * 5,
    ]
    shares = sorted({refit["share"] for refit in cases[0]["refits"]})
    for share in shares:
        cells = [f"{100 * share:.0f} %"]
        for source in ("training", "a pass"):
            found = [
                (r, case["epoch_seconds"]) for case in cases for r in case["refits"] if (r["from"], r["share"]) == (source, share)
            ]
            cells += [f"{100 * statistics.mean(refit['test'] for refit, _ in found):.2f}"]
            cells += [f"{statistics.mean(refit['seconds'] / epoch for refit, epoch in found):.2f}"]
        rows.append(line(cells))
    return "\n".join([*rows, "", f"784-1000-10 after an epoch, {len(cases)} seeds; the trained readout itself has {trained}."])


def handover() -> str:
    """How far accuracy falls in the first 200 steps after a start."""
    cases = json.loads((RESULTS / "handover_steps.json").read_text(encoding="utf-8"))["cases"].values()
    names = ["optimizer", "schedule", "protection", "written", "least in 200 steps", *(f"epoch {k}" for k in (1, 2, 3))]
    rows = [line(names), "|" + "---|" * len(names)]
    for case in cases:
        first, least = case["steps"]["0"], min(case["steps"].values())
        cells = [case["optimizer"], case["schedule"], case["protection"], f"{100 * first:.2f}", f"{100 * (least - first):+.2f}"]
        rows.append(line([*cells, *(f"{100 * point['test']:.2f}" for point in case["epochs"])]))
    return "\n".join(rows)


def render() -> None:
    """All blocks and the figures."""
    replace(ROOT / "docs" / "decisions.md", "refit samples", refit_samples(), script=SCRIPT)
    page = DOC.read_text(encoding="utf-8")
    if "<!-- hand-over: " in page:
        replace(DOC, "hand-over", handover(), script=SCRIPT)
        replace(DOC, "learning rates", rates(), script=SCRIPT)
    for content in contents():
        suffix = "" if content["samples"] == 10_000 else f" {content['samples']}"
        if f"<!-- training setting{suffix}: " not in page:
            continue
        replace(DOC, f"training setting{suffix}", setting(content), script=SCRIPT)
        replace(DOC, f"training table{suffix}", table(content), script=SCRIPT)
        replace(DOC, f"against plain{suffix}", against_plain(content), script=SCRIPT)
        draw(content, f"training{suffix.replace(' ', '_')}.png")


if __name__ == "__main__":
    render()
