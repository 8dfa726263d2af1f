"""Runs the studies named, all by default, and writes benchmarks/results/solvers.jsonl and the small ones
in benchmarks/results/solvers/; a measurement that is kept is not run again.

    cd benchmarks && python -m solvers --root DIR --cache DIR [STUDY ...] [--problems A,B,G-spikes] [--peers ours,fista]

cells: every peer on every program.  growth: ours alone, growing n and P.  paths: 20 strengths against the hardest of them.
choice: a path with held-out choice against scikit-learn's.  memory: the largest programs.  floor: products with the features.
shares: what solves of the default program spend their time on.

adelie, skglm and celer run under --peer-python, the interpreter of an environment of their own (adelie needs numpy < 2):
python -m venv DIR && DIR/bin/pip install "numpy<2" adelie skglm celer scikit-learn
"""

from __future__ import annotations

import argparse
import datetime
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.common import RESULTS, machine
from benchmarks.store import Store

from .choice import measure_choices
from .extras import measure_floor, measure_memory, measure_paths
from .measure import run_cell
from .peers import PEERS, refusal
from .problems import Data, Task, default_tasks, growth_tasks, sparse_tasks, strengths_of
from .shares import measure_shares

STUDIES = ("memory", "paths", "floor", "growth", "choice", "shares", "cells")
_SMALLER = {"B": "A", "C": "BA"}  # programs of the same loss with no more rows and, but for 24 of 1024, no more columns
_FAILED = ("not reached", "failed", "died", "out of memory", "killed during setup")

Program = tuple[Task, str, float, str]


def programs(tasks: list[Task], peers: list[str], growth: bool) -> list[Program]:
    """Return task, penalty, strength and peer of every cell; the peers of a program follow each other."""
    if growth:
        return [(task, "group_l1", 1e-3, "ours") for task in tasks]
    listed = []
    for task, peer in itertools.product(tasks, peers):
        for penalty in task.penalties:
            if refusal(peer, task.loss, penalty, task.outputs) is None:
                listed += [(task, penalty, strength, peer) for strength in strengths_of(penalty)]
    return sorted(listed, key=lambda cell: (tasks.index(cell[0]), cell[1], -cell[2]))


def doubt(store: Store, program: Program) -> str:
    """Return why the peer can't be expected to reach the smallest gap in its time; empty if it can.

    It did not with a larger strength of the same program, or with one as large or larger of a program that is no larger.
    """
    task, penalty, strength, peer = program

    def failed(problem: str) -> Iterator[float]:
        for cell in store.cells(f"{problem}-{penalty}-*-{peer}*"):
            if cell["outcome"] in _FAILED and cell["peer"] == peer:
                yield cell["strength"]

    if any(other > strength for other in failed(task.name)):
        return "a larger strength was not enough"
    for smaller in _SMALLER.get(task.name, ""):
        if any(other >= strength for other in failed(smaller)):
            return f"the same was not enough for problem {smaller}"
    return ""


def run_cells(options: argparse.Namespace, tasks: list[Task], growth: bool) -> None:
    """Run every cell without a result, and repeat them all if asked."""
    store = Store(options.results)
    listed = programs(tasks, options.peers, growth)
    repeats = itertools.product(listed, range(1, options.repeats + 1))
    # Repeats of a program run before the next program, its peers alternating.
    ordered = sorted(repeats, key=lambda pair: [cell[:3] for cell in listed].index(pair[0][:3]) * 1000 + pair[1])
    with tqdm(ordered, disable=None) as bar:
        for program, repeat in bar:
            name = f"{_stem(program)}{_suffix(options.threads, repeat)}"
            if name in store or (PEERS[program[3]].elsewhere and not options.peer_python):
                continue
            bar.set_postfix_str(name)
            content = store.add(name, measure_cell(program, options, store))
            tqdm.write(f"{name:<44} {content['outcome']:<16} {content['seconds_to']}  {content['reason'][:60]}")


def measure_cell(program: Program, options: argparse.Namespace, store: Store) -> dict[str, Any]:
    """Return the result of one cell."""
    task, penalty, strength, peer = program
    about = {"problem": task.name, "about": task.about, "loss": task.loss, "n": task.rows, "P": task.columns, "C": task.outputs}
    about |= {"penalty": penalty, "strength": strength, "peer": peer, "mapping": PEERS[peer].mapping}
    about["mode"] = "one run" if PEERS[peer].one_run else "each point solved from scratch"
    about |= {**_head(options), "limit": options.limit, "memory_gib": options.memory, "date": datetime.date.today().isoformat()}
    if options.presume and (reason := doubt(store, program)):
        nothing = {"seconds_to": {}, "seconds_to_least": {}, "cpu_to": {}, "peak_mib": None, "trajectory": []}
        return {**about, "outcome": "presumed not reached", "reason": f"not run: {reason}", **nothing}
    return {**about, **run_cell(task, penalty, strength, peer, options)}


def _stem(program: Program) -> str:
    task, penalty, strength, peer = program
    return f"{task.name}-{penalty}-{strength:g}-{peer}"


def _suffix(threads: int, repeat: int) -> str:
    return "" if (threads, repeat) == (2, 1) else f"-{threads}t-{repeat}"


def _head(options: argparse.Namespace) -> dict[str, Any]:
    versions = {**machine("scipy", "scikit-learn"), "threads": options.threads}
    return {"machine": versions, "seed": options.seed, "threads": options.threads}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m solvers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(STUDIES)}")
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    parser.add_argument("--cache", required=True, type=Path, help="a folder outside the repository for the features, 700 MB")
    parser.add_argument("--results", default=RESULTS / "solvers.jsonl", type=Path)
    parser.add_argument("--problems", default="", help="beginnings of the problems' names, such as A,B,G-spikes; all by default")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--peer-python", help="interpreter of the environment with numpy < 2; without it its peers are left out")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of a solve")
    parser.add_argument("--memory", type=float, default=18.0, help="GiB of address space of a peer; 0 for no bound")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="runs of each cell; the fastest counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--presume", action="store_true", help="no run that can't be expected to reach 1e-6, see doubt()")
    parser.add_argument("--tiny", action="store_true", help="300 samples and 50 features, to try the machinery; give --results too")
    return parser


def main() -> None:
    """Run the studies of the command line."""
    parser = _parser()
    options = parser.parse_args()
    if unknown := set(options.studies) - set(STUDIES):
        parser.error(f"unknown studies {sorted(unknown)}: choose from {', '.join(STUDIES)}")
    options.peers = [peer for peer in PEERS if peer in options.peers.split(",")]
    torch.set_num_threads(options.threads)
    data = Data(options.root, options.cache, options.seed, options.tiny)
    tasks = [task for task in sparse_tasks(data) + default_tasks(data) if task.name.startswith(tuple(options.problems.split(",")))]
    extras = options.results.with_suffix("")  # folder of the smaller studies
    actions = {
        "memory": lambda: measure_memory(extras / "memory.json", _head(options), options.root),
        "paths": lambda: measure_paths(extras / "paths.json", _head(options), tasks),
        "floor": lambda: measure_floor(extras / "floor.json", _head(options), tasks),
        "growth": lambda: run_cells(options, growth_tasks(data), growth=True),
        "choice": lambda: measure_choices(extras / f"choice{_suffix(options.threads, 1)}.json", _head(options), tasks),
        "shares": lambda: measure_shares(extras / "shares.json", _head(options), tasks),
        "cells": lambda: run_cells(options, tasks, growth=False),
    }
    for study in options.studies or STUDIES:
        actions[study]()


if __name__ == "__main__":
    main()
