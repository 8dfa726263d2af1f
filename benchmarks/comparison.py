"""What people use instead of this package, and what it gets there, from the kept results of several studies."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.render import markdown_table
from benchmarks.store import Store
from benchmarks.studies.training import CALLBACK, CASES, SHARES, SHORTER, compare, mean, runs_of
from benchmarks.study import load_study

GOAL = 0.97  # test accuracy of a row of the table


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
