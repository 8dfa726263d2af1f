"""The README's figure and its comparison with other methods, from the kept results of several studies."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.render import WHOLE, markdown_table
from benchmarks.store import RESULTS, Store
from benchmarks.study import load_study
from snn_recon_plugin.report.figures import BLUE, GREEN, ORANGE

# What trains: colour, point of the label, its offset in points, and its side.
LINES: dict[str, tuple[str, int, tuple[int, int], str]] = {
    "training alone": (ORANGE, -1, (8, -4), "left"),
    "the one line, then training": (BLUE, 0, (-8, 17), "left"),
    "the callback": (GREEN, -1, (0, -19), "right"),
}
# Nets of the study of steps, from the largest gain to none.
STEPS = {
    "tutorial 5, 784-1000-10, 25 steps": "tutorial 5",
    "Norse layers": "Norse layers",
    "Synaptic": "Synaptic",
    "tutorial 6, the loop outside": "convolutions",
    "rows, RLeaky 256": "recurrent",
    "rate code, 784-500-10": "rate code",
}
# Nets of the study of hidden layers that are silent before.
SILENT = {
    "silent net, 3000 candidates": "dense",
    "10 layers": "ten layers",
    "conv, gain and offsets": "convolutions",
}


def draw_hand_over(axes: Axes, store: Store) -> None:
    """Test accuracy against seconds, a labelled line a method."""
    for name, (colour, point, offset, side) in LINES.items():
        points = store[name]["points"][1:]  # without the untrained net
        seconds, tests = [each["seconds"] for each in points], [100 * each["test"] for each in points]
        axes.plot(seconds, tests, color=colour, marker="o", ms=3.5)
        axes.annotate(name, (seconds[point], tests[point]), color=colour, xytext=offset, textcoords="offset points", ha=side)
    axes.set(xlabel="CPU seconds", ylabel="test accuracy, %", title="Tutorial 5 on MNIST")
    axes.margins(x=0.06, y=0.15)


def draw_steps(axes: Axes, store: Store) -> None:
    """Times faster of a training step, a bar a net."""
    steps = load_study("steps")[1]
    cells = {label: steps[f"net | {name}"] for name, label in reversed(STEPS.items())}
    bars = axes.barh(list(cells), [cell["plain"] / cell["fast"] for cell in cells.values()], color=GREEN, height=0.6)
    axes.bar_label(bars, fmt="{:.1f}", padding=3)
    axes.set(xlabel="times faster", title="Training steps with fast_steps", xlim=(0, 7.5))


def draw_silent(axes: Axes, store: Store) -> None:
    """Test accuracy after the line of nets that are silent before, a bar a net."""
    hidden = load_study("hidden")[1]
    tests = {label: 100 * _mean(hidden.cells(f"{name}, seed ?"), "test") for name, label in reversed(SILENT.items())}
    bars = axes.barh(list(tests), list(tests.values()), color=BLUE, height=0.6)
    axes.bar_label(bars, fmt="{:.1f}", padding=3)
    axes.set(xlabel="test accuracy, %; chance is 10", title="Silent nets after the line", xlim=(0, 120))


# One panel a result; another one is a function and an entry.
PANELS: tuple[Callable[[Axes, Store], None], ...] = (draw_hand_over, draw_steps, draw_silent)


def draw(store: Store) -> Figure:
    """Return the figure of the README."""
    figure = Figure(figsize=(10.8, 3.2), dpi=150, layout="constrained")
    figure.set_label(WHOLE)
    for axes, panel in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        panel(axes, store)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def comparison(store: Store) -> str:
    """Return the table of what people use instead, what it gets, and what this package gets there."""
    rows = [
        _training(store),
        _fluctuation_driven(),
        _reservoir(),
        _tuned_training(),
        _fast_training(),
        _echo_state(),
        ("converting a trained network", "any task", "needs that network first", "needs no other network"),
    ]
    return markdown_table(("instead", "measured on", "it gets", "with this package"), rows)


Row = tuple[str, str, str, str]


def _training(store: Store) -> Row:
    alone, line = store["training alone"]["points"][-1], store["the one line, then training"]["points"][1]
    found = (f"{100 * each['test']:.1f} % in {each['seconds']:.0f} s" for each in (alone, line))
    return ("the default initialisation and two epochs", "tutorial 5 on MNIST", *_better(found, 1))


def _fluctuation_driven() -> Row:
    hidden = load_study("hidden")[1]
    starts = (hidden.cells(f"from {start}, seed ?") for start in ("fluctuation-driven", "rebuilt, readout solved"))
    means = ([100 * statistics.mean(cell["tests"][epoch] for cell in cells) for epoch in ("0", "10")] for cells in starts)
    found = (f"{first:.1f} %, after ten epochs {last:.1f} %" for first, last in means)
    return ("fluctuation-driven initialisation", "MNIST, 10,000 images", *_better(found, 1))


def _reservoir() -> Row:
    starts = (load_study("temporal")[1].cells(f"rows-snntorch-recurrent-256-{method}-?") for method in ("keep", "auto"))
    found = (f"{100 * _mean(cells, 'test'):.1f} % in {_mean(cells, 'cpu_seconds'):.0f} s" for cells in starts)
    return ("a random reservoir, readout solved", "MNIST, a row a step", *_better(found, 1))


def _tuned_training() -> Row:
    training = load_study("training")[1]
    runs = (training.cells(f"MNIST_60000_images-{method}-?") for method in ("one_cycle_EMA", "callback_one_cycle"))
    ends = ([each["final"] for each in cells] for cells in runs)
    found = (f"{100 * _mean(cells, 'test'):.1f} % in {_mean(cells, 'seconds'):.0f} s" for cells in ends)
    return ("tuned training, four epochs", "MNIST, 60,000 images", *_better(found, 0))


def _fast_training() -> Row:
    steps, methods = load_study("steps")[1], ("one cycle, EMA, fast steps", "callback, fast steps")
    runs = ([cell["points"] for cell in steps.cells(f"MNIST | {method} | *")] for method in methods)
    firsts = ([next(seconds for seconds, test in points if test >= 0.97) for points in cells] for cells in runs)
    found = (f"97 % after {statistics.mean(seconds):.0f} s" for seconds in firsts)
    return ("tuned training with `fast_steps` alone", "784-300-10, MNIST", *_better(found, 0))


def _echo_state() -> Row:
    series = Store(RESULTS / "forecasting.jsonl")  # of commit 222320f, whose study is no longer here
    runs = (series.cells(f"Mackey-Glass-{name}-?") for name in ("echo_state", "feed-forward-leaks"))
    found = (f"holds for {_mean(cells, 'valid'):.0f} steps" for cells in runs)
    return ("an echo state network", "a smooth series, continued", *_better(found, 0))


def _mean(cells: Iterable[Mapping[str, Any]], key: str) -> float:
    return statistics.mean(float(cell[key]) for cell in cells)


def _better(found: Iterable[str], best: int) -> tuple[str, str]:
    """Set the better one of two results in bold."""
    one, two = (f"**{text}**" if place == best else text for place, text in enumerate(found))
    return one, two
