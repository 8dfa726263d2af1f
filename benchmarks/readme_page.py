"""The README's figure and its comparison with other methods, from the kept results of several studies."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.render import WHOLE, markdown_table
from benchmarks.store import Store
from benchmarks.studies.training import CALLBACK, CASES, SHARES, SHORTER, compare, mean, runs_of
from benchmarks.study import load_study
from snn_recon_plugin.report.figures import BLUE, GREEN, ORANGE


class Line(NamedTuple):
    """A way to train, in the figure."""

    label: str
    name: str  # in the study of the README
    cell: str  # in that of steps
    colour: str


LINES = (
    Line("training alone", "training alone", "one cycle, EMA", ORANGE),
    Line("with fast_steps", "training with fast steps", "one cycle, EMA, fast steps", GREEN),
    Line("with fast_steps and a start", "the one line, then training", "callback, fast steps", BLUE),
)
GOAL = 0.97  # test accuracy of a row of the table
ROWS = "MNIST by row"  # case of the study of steps
# Nets of the study of steps.
STEPS = {
    "tutorial 5, 784-1000-10, 25 steps": "tutorial 5",
    "Norse layers": "Norse layers",
    "Synaptic": "Synaptic",
    "tutorial 6, the loop outside": "convolutions",
    "rows, RLeaky 256": "recurrent",
    "rate code, 784-500-10": "rate code",
}
Points = list[list[tuple[float, float]]]  # CPU seconds and test accuracy at each test, a list a seed


def tutorial_points(store: Store, line: Line) -> Points:
    """Return the tests of tutorial 5, without the untrained net's."""
    cells = store.cells(f"{line.name} | *")
    return [[(point["seconds"], point["test"]) for point in cell["points"][1:]] for cell in cells]


def row_points(line: Line) -> Points:
    """Return the tests of MNIST shown a row a step."""
    return [
        [(seconds, test) for seconds, test in cell["points"]] for cell in load_study("steps")[1].cells(f"{ROWS} | {line.cell} | *")
    ]


def draw_curves(axes: Axes, title: str, curves: Mapping[Line, Points]) -> None:
    """Test accuracy against seconds, a labelled line a method: the mean of the seeds, and a band from the lowest to the highest."""
    for line, runs in curves.items():
        tests = np.array([[100 * test for _, test in points] for points in runs])
        seconds = np.array([[second for second, _ in points] for points in runs]).mean(0)
        axes.plot(seconds, tests.mean(0), color=line.colour, marker="o", ms=2.5, label=line.label)
        axes.fill_between(seconds, tests.min(0), tests.max(0), color=line.colour, alpha=0.25, lw=0)
    axes.set(xlabel="CPU seconds", ylabel="test accuracy, %", title=title)
    axes.legend(loc="lower right", frameon=False, fontsize=9)


def draw_tutorial(axes: Axes, store: Store) -> None:
    """snnTorch's tutorial 5."""
    draw_curves(axes, "Tutorial 5 on MNIST", {line: tutorial_points(store, line) for line in LINES})
    axes.set_ylim(bottom=86)


def draw_rows(axes: Axes, store: Store) -> None:
    """A recurrent net on MNIST, a row of pixels a step."""
    draw_curves(axes, "MNIST a row a step, recurrent", {line: row_points(line) for line in LINES})
    axes.set_ylim(bottom=70)


def gains() -> dict[str, float]:
    """How many times faster a training step is, by the label of each net, the least gain first."""
    cells = {label: load_study("steps")[1][f"net | {name}"] for name, label in STEPS.items()}
    return dict(sorted(((label, cell["plain"] / cell["fast"]) for label, cell in cells.items()), key=lambda pair: pair[1]))


def draw_steps(axes: Axes, store: Store) -> None:
    """Times faster of a training step, a bar a net."""
    bars = axes.barh(*zip(*gains().items(), strict=True), color=GREEN, height=0.6)
    axes.bar_label(bars, fmt="{:.1f}", padding=3)
    axes.set(xlabel="times faster", title="Training steps with fast_steps", xlim=(0, 1.2 * max(gains().values())))


# One panel a result; another one is a function and an entry.
PANELS: tuple[Callable[[Axes, Store], None], ...] = (draw_tutorial, draw_rows, draw_steps)


def draw(store: Store) -> Figure:
    """Return the figure of the README."""
    figure = Figure(figsize=(10.8, 3.2), dpi=150, layout="constrained")
    figure.set_label(WHOLE)
    for axes, panel in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        panel(axes, store)
    return figure


def alternative(store: Store) -> str:
    """Return the figure's content in a sentence, for readers who can't see it."""
    both = {"on MNIST": lambda line: tutorial_points(store, line), "on MNIST a row a step": row_points}
    parts = []
    for where, points_of in both.items():
        first = max(points[0][0] for points in points_of(LINES[-1]))
        tests = [100 * statistics.fmean(at(points, first) for points in points_of(line)) for line in LINES]
        shown = f"it is {tests[-1]:.0f} %, where training alone has {tests[0]:.0f} and with fast steps {tests[1]:.0f}"
        parts.append(f"{where} after {first:.0f} s {shown}")
    return f"Test accuracy with a start: {'; '.join(parts)}. Training steps are up to {max(gains().values()):.1f} times faster"


def at(points: list[tuple[float, float]], seconds: float) -> float:
    """Return the accuracy of the last test that was over by then, 0 before the first one."""
    return max(((when, test) for when, test in points if when <= seconds), default=(0.0, 0.0))[1]


def comparison(store: Store) -> str:
    """Return the table of what people use instead, what it gets, and what this package gets there.

    Training alone has faster steps too.
    """
    rows = [
        _tutorial(store),
        _fast_training(),
        _tuned_training("MNIST by row, recurrent", "MNIST, a row a step, recurrent"),
        _tuned_training("spoken digits", "spoken digits"),
        _silent(),
        _fluctuation_driven(),
        _reservoir(),
        _echo_state(),
        ("converting a trained network", "any task", "needs that network first", "needs no other network"),
    ]
    return markdown_table(("instead", "measured on", "it gets", "with this package"), rows)


Row = tuple[str, str, str, str]


def _tutorial(store: Store) -> Row:
    alone, line = (store.cells(f"{name} | *") for name in ("training with fast steps", "the one line, then training"))
    ends = ([cell["points"][place] for cell in cells] for cells, place in ((alone, -1), (line, 1)))
    found = [f"{100 * _mean(points, 'test'):.1f} % in {_mean(points, 'seconds'):.0f} s" for points in ends]
    return ("the default initialisation and two epochs", "tutorial 5 on MNIST", *_better(found, 1))


def _tuned_training(case: str, shown: str) -> Row:
    """The best baseline, and the callback in a quarter of the epochs and in all."""
    runs = runs_of(load_study("training")[1])
    found, short, epochs = compare(runs)[case], runs[case, SHORTER[CALLBACK, "a quarter"]], CASES[case].epochs
    test, seconds = (mean(short, "final", what) for what in ("test", "seconds"))
    few = f"{100 * test:.1f} % in {round(SHARES['a quarter'] * epochs)} epochs, {seconds:.0f} s"
    whole = f"{100 * found.test:.1f} % in {epochs} epochs, {found.seconds:.0f} s"
    ends = f"{100 * found.goal:.1f} % in {found.alone:.0f} s", f"{few}; {whole}"
    return (f"tuned training, {epochs} epochs", shown, *_better(ends, int(found.test > found.goal)))


def _fast_training() -> Row:
    steps, methods = load_study("steps")[1], ("one cycle, EMA, fast steps", "callback, fast steps")
    runs = ([cell["points"] for cell in steps.cells(f"MNIST | {method} | *")] for method in methods)
    firsts = ([next(seconds for seconds, test in points if test >= GOAL) for points in cells] for cells in runs)
    found = (f"{100 * GOAL:.0f} % after {statistics.mean(seconds):.0f} s" for seconds in firsts)
    return ("tuned training", "784-300-10, MNIST, 60,000 images", *_better(found, 0))


def _silent() -> Row:
    cells = load_study("hidden")[1].cells("10 layers, seed ?")
    return ("training a net that never spikes", "ten layers, MNIST", "no gradient", f"**{100 * _mean(cells, 'test'):.1f} %**")


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


def _echo_state() -> Row:
    series = load_study("forecasting")[1]
    runs = (series.cells(f"Mackey-Glass-{name}-?") for name in ("echo_state", "feed-forward-leaks"))
    found = (f"holds for {_mean(cells, 'valid'):.0f} steps" for cells in runs)
    return ("an echo state network", "a smooth series, continued", *_better(found, 0))


def _mean(cells: Iterable[Mapping[str, Any]], key: str) -> float:
    return statistics.mean(float(cell[key]) for cell in cells)


def _better(found: Iterable[str], best: int) -> tuple[str, str]:
    """Set the better one of two results in bold."""
    one, two = (f"**{text}**" if place == best else text for place, text in enumerate(found))
    return one, two
