"""The convex solver against its peers: seconds to certified gaps.

Each solve is a process of its own.  The sparse programs have two threads; of the default program the larger sizes have one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.render import machines_line
from benchmarks.solvers.measure import Task, outcome_of, solve_task
from benchmarks.solvers.peers import PEERS, takes
from benchmarks.solvers.problems import SEED, default_tasks, sparse_tasks, strengths_of
from benchmarks.solvers.program import GOAL
from benchmarks.solvers.tables import SPARSE, Cells, fastest_table, headline, load, problem_table, ratio_table
from benchmarks.store import Store
from benchmarks.study import Bench, Study, machine
from benchmarks.study import Cells as Work
from snn_recon_plugin.report.figures import BLUE, GREEN, GREY, ORANGE

LIMIT = 300.0  # seconds of a solve
PACKAGES = ("scipy", "scikit-learn", "cvxpy", "clarabel", "scs")
PANELS = (("A", "l1"), ("B", "group_l1"), ("E", "l1"))
# Okabe and Ito's palette; kindred peers share a colour and differ in the line.
STYLES: dict[str, tuple[str, str]] = {
    "ours": (BLUE, "-"),
    "fista": (ORANGE, ":"),
    "fista_restart": (ORANGE, "-"),
    "adelie": (GREEN, "-"),
    "saga": ("#56B4E9", "-"),
    "skglm": ("#CC79A7", "-"),
    "celer": ("#E69F00", "-"),
    "clarabel": ("#000000", "-"),
    "scs": (GREY, "-"),
}
# The gap at which a peer's name is written beside its line, and the side of the name that touches it.
NAMES = {"ours": (1e-2, "right"), "fista_restart": (1e-5, "right"), "celer": (2e-2, "left"), "skglm": (3e-5, "left")}


def threads_of(problem: str) -> int:
    """Return 1 for problems that take long: they run beside other work, and their CPU seconds count."""
    return 1 if "60k" in problem or "counts" in problem else 2


def measure(task: Task, penalty: str, strength: float, peer: str) -> dict[str, Any]:
    """Run a peer on a program, and return its points with what the tables need."""
    threads = threads_of(task.name)
    found = solve_task(task, penalty, strength, peer, threads=threads, limit=LIMIT)
    peak = max((point.pop("added_bytes") for point in found["trajectory"]), default=None)
    return {
        **{"problem": task.name, "loss": task.loss, "n": task.rows, "P": task.columns, "C": task.outputs},
        **{"penalty": penalty, "strength": strength, "peer": peer, "threads": threads, "limit": LIMIT, "seed": SEED},
        **{"outcome": outcome_of(found["trajectory"], found["reason"], LIMIT), **found},
        **{"peak_mib": None if peak is None else peak / 2**20, "machine": {**machine(*PACKAGES), "threads": threads}},
    }


def cells(bench: Bench) -> Work:
    """Every peer on every program that it takes."""
    root = bench.places.need("mnist")
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for task, peer in itertools.product(sparse_tasks(root) + default_tasks(root), PEERS):
        for penalty in (each for each in task.penalties if takes(peer, task.loss, each, task.outputs)):
            for strength in strengths_of(penalty):
                name = f"{task.name}-{penalty}-{strength:g}-{peer}{'-1t' * (threads_of(task.name) == 1)}"
                if PEERS[peer].run is not None or name in bench.store:
                    found[name] = partial(measure, task, penalty, strength, peer)
    return found


def default_tables(by_threads: dict[int, Cells], about: dict[str, str], small: bool) -> str:
    """Return the tables of the default program of 5,000 samples, or of larger ones, by threads and clock."""
    parts = []
    for threads, found in by_threads.items():
        names = sorted({key[0] for key in found if key[0].startswith("G") and ("-5k-" in key[0]) == small})
        for clock, title in (("seconds_to", "Wall-clock"), ("cpu_to", "CPU")):
            if names:
                tables = "\n\n".join(problem_table(found, name, "ridge", about[name], clock) for name in names)
                parts.append(f"### {title} seconds, {threads} thread{'' if threads == 1 else 's'}\n\n{tables}")
    return "\n\n".join(parts)


def pages(store: Store) -> dict[str, dict[str, str]]:
    """The summary, and each kind of program."""
    by_threads = {threads: load(store, threads) for threads in (2, 1)}
    about = {task.name: task.about for task in sparse_tasks("") + default_tasks("")}
    sparse = [problem_table(by_threads[2], *pair, about[pair[0]]) for pair in itertools.product(SPARSE, ("l1", "group_l1"))]
    setting = f"{LIMIT:.0f} s a solve; seed {SEED}. {machines_line(store.cells())}"
    summary = {"headline": headline(by_threads), "ratios": ratio_table(by_threads), "fastest": fastest_table(by_threads[2])}
    tables = {
        "solver small": default_tables(by_threads, about, small=True),
        "solver large": default_tables(by_threads, about, small=False),
        "solver sparse": "\n\n".join(filter(None, sparse)),
    }
    return {"evidence/solver.md": {**{f"solver {name}": text for name, text in {**summary, "setting": setting}.items()}, **tables}}


def figures(store: Store) -> dict[str, Figure]:
    """The gap against seconds for the middle strength, a panel for each of three programs, with a name on each line."""
    cells = load(store, 2)
    figure = Figure(figsize=(4.2 * len(PANELS), 3.4), layout="constrained")
    for (problem, penalty), axes in zip(PANELS, figure.subplots(1, len(PANELS)), strict=True):
        for peer, (colour, line) in STYLES.items():
            cell = cells.get((problem, penalty, 1e-3, peer), {"trajectory": []})
            # Exact points lie on the lower edge.
            points = [(p["seconds"], max(p["relative_gap"], 1.3e-7)) for p in cell["trajectory"] if p["relative_gap"] < math.inf]
            if points:
                mark, width = "" if PEERS[peer].one_run else "o", 2.2 if peer == "ours" else 1.2
                axes.loglog(*zip(*points, strict=True), color=colour, ls=line, marker=mark, ms=3, lw=width)
                height, side = NAMES.get(peer, (3e-4, "left"))
                near = min(points, key=lambda point: abs(math.log10(point[1] / height)))
                place = {"xytext": (6 if side == "left" else -6, 0), "textcoords": "offset points", "ha": side}
                axes.annotate(peer, near, color=colour, **place)
        axes.set_title(f"problem {problem}, {penalty}")
        axes.set_ylim(1e-7, 1.5)
        axes.axhline(GOAL, color=GREY, linewidth=0.6)
        axes.margins(x=0.15)
        axes.set(xlabel="seconds", ylabel="relative gap")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    return {"evidence/solver_gap.png": figure}


STUDY = Study(
    title="the convex solver against its peers",
    minutes=300,
    cells=cells,
    pages=pages,
    figures=figures,
    fields=(
        *("problem", "loss", "n", "P", "C", "penalty", "strength", "peer", "threads", "limit", "seed"),
        *("outcome", "reason", "zero_loss", "trajectory", "peak_mib"),
    ),
    packages=PACKAGES,
    needs=("mnist",),
)
