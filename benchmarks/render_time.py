"""Writes what benchmarks/time_to_accuracy.py found into docs/training.md, and draws error against wall-clock."""

from __future__ import annotations

import statistics
from typing import Any

from matplotlib.figure import Figure
from render_docs import ROOT, replace
from render_hidden import load, setting
from time_to_accuracy import METHODS, NETS

DOC, SCRIPT = ROOT / "docs" / "training.md", "render_time.py"
COLOURS = dict(zip(METHODS, ("#777777", "#56B4E9", "#0072B2", "#009E73", "#E69F00", "#D55E00"), strict=True))
SHOWN = (1, 2, 4, 8)


def grouped(content: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Results of all seeds by network and method."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in content["cases"].values():
        found.setdefault((result["network"], result["method"]), []).append(result)
    return found


def mean(results: list[dict[str, Any]], epoch: int, key: str) -> float:
    """Over the seeds, after an epoch."""
    return statistics.mean(result["epochs"][epoch - 1][key] for result in results)


def table(content: dict[str, Any]) -> str:
    """Test accuracy by epoch, seconds of the run, and what the callback took of them."""
    shown = [epoch for epoch in SHOWN if epoch <= content["epochs"]]
    names = ["net", "method", "seeds", *(f"epoch {epoch}" for epoch in shown)]
    names += ["best", "seconds", "callback's share", "least in 200 steps"]
    rows = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for (network, method), results in grouped(content).items():
        best = statistics.mean(max(point["test"] for point in result["epochs"]) for result in results)
        started = "start" in method
        least = min(min(result["steps"].values()) - result["steps"]["0"] for result in results)
        cells = [network, method, str(len(results)), *(f"{100 * mean(results, epoch, 'test'):.2f}" for epoch in shown)]
        cells += [f"{100 * best:.2f}", f"{mean(results, content['epochs'], 'seconds'):.0f}"]
        shares = [sum(solve["seconds"] for solve in r["solves"]) / r["epochs"][-1]["seconds"] for r in results if "solves" in r]
        cells += [f"{100 * statistics.mean(shares):.0f} %" if shares else ""]
        cells += [f"{100 * least:+.2f}" if started else ""]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def draw(content: dict[str, Any]) -> None:
    """Test error against seconds, a panel a net."""
    networks = [name for name in NETS if any(key[0] == name for key in grouped(content))]
    figure = Figure(figsize=(6.4 * len(networks), 4.2), layout="constrained")
    panels = figure.subplots(1, len(networks), squeeze=False)[0]
    for axes, network in zip(panels, networks, strict=True):
        for (name, method), results in grouped(content).items():
            if name == network:
                epochs = range(1, content["epochs"] + 1)
                seconds = [mean(results, epoch, "seconds") for epoch in epochs]
                errors = [100 * (1 - mean(results, epoch, "test")) for epoch in epochs]
                axes.plot(seconds, errors, "o-", color=COLOURS[method], label=method, markersize=3)
        axes.set_xlabel("seconds, the callback's included")
        axes.set_ylabel("test error, %")
        axes.set_title(f"{network}, MNIST, {content['samples']:,} images", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(ROOT / "docs" / "training.png", dpi=150)


def render() -> None:
    """All blocks and the figure."""
    content = load("time_to_accuracy.json")
    if content["cases"]:
        replace(DOC, "training setting", setting(content), script=SCRIPT)
        replace(DOC, "training table", table(content), script=SCRIPT)
        draw(content)


if __name__ == "__main__":
    render()
