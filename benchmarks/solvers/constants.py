"""CPU seconds of solves with each tuned constant halved and doubled; a program that has its result is not solved again.

    cd benchmarks && python -m solvers.constants --cache DIR [--programs BEGINNING]

Writes results/solvers/constants.json and a table in docs/evidence/decisions_speed.md.  The cache must hold the features, as
`python -m solvers cells` leaves them.  All settings of a program run one after another, in one thread.  Products and steps are the
same on every machine; CPU seconds differ by a tenth from run to run, and by a third next to other work.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, run_all
from render_docs import EVIDENCE
from render_docs import replace as replace_block

from . import api
from .problems import Data, Task, default_tasks, sparse_tasks
from .tables import table

__all__ = ["CONSTANTS", "ratios"]

CONSTANTS = {
    "_FEW_ROWS": "solvers.preconditioner",
    "_ENOUGH_ROWS": "solvers.preconditioner",
    "_FAVOUR": "solvers.preconditioner",
    "_PART": "solve",
    "_WHOLE": "solve",
    "_LBFGS_STEPS": "solvers.newton",
}
_FACTORS = (0.5, 2.0)
_BASE = "as it is"
# Problem, rows, penalty, strength.  Rows fewer than features, a few times as many, and 20 and 60 times as many.
_PROGRAMS = (
    ("G-filtered-5k-squared_hinge", 700, "ridge", 1e-2),
    ("G-filtered-5k-cross_entropy", 5_000, "ridge", 1e-2),
    ("G-filtered-5k-squared_hinge", 5_000, "ridge", 1e-3),
    ("G-spikes-5k-squared_hinge", 5_000, "ridge", 1e-3),
    ("A", 6_000, "l1", 1e-3),
    ("G-spikes-60k-cross_entropy", 20_000, "ridge", 1e-2),
    ("G-filtered-60k-squared_hinge", 20_000, "ridge", 1e-2),
    ("G-filtered-60k-cross_entropy", 60_000, "ridge", 1e-2),
)


def settings() -> list[tuple[str, float]]:
    """Return the constants with their factors; the first changes nothing."""
    return [(_BASE, 1.0), *itertools.product(CONSTANTS, _FACTORS)]


def label(constant: str, factor: float) -> str:
    """Return the name of a setting in the json."""
    return constant if factor == 1 else f"{constant} * {factor:g}"


def measure(task: Task, penalty: str, strength: float) -> dict[str, Any]:
    """Return CPU seconds, products, steps and gap of every setting."""
    features, labels = task.load()
    options = {"loss": task.loss, "penalty": penalty, "strength": strength, "num_outputs": task.outputs}
    found: dict[str, Any] = {}
    _solve(features, labels, _BASE, 1.0, options)  # the first solve of a process is slower
    for constant, factor in settings():
        cpu, solution = _solve(features, labels, constant, factor, options)
        found[label(constant, factor)] = {
            "cpu": cpu,
            "products": solution.statistics.products,
            "steps": solution.statistics.iterations,
            "relative_gap": solution.certificate.relative_gap,
        }
    return {"n": task.rows, "P": task.columns, "C": task.outputs, "settings": found}


def _solve(features: Any, labels: Any, constant: str, factor: float, options: dict[str, Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a solve with a constant changed, and its solution."""
    module = importlib.import_module(f"snn_recon_plugin.convex.{CONSTANTS.get(constant, 'solve')}")
    value = getattr(module, constant, None)
    if value is not None:
        setattr(module, constant, type(value)(factor * value))
    try:
        began = time.process_time()
        solution = api.solve(api.make_problem(features, labels, **options))
        return time.process_time() - began, solution
    finally:
        if value is not None:
            setattr(module, constant, value)


def ratios(cases: dict[str, Any], key: str = "cpu") -> dict[str, float]:
    """Return for each setting the geometric mean over the programs of its seconds, over those of the constants as they are."""

    def mean(values: Iterable[float]) -> float:
        logs = [math.log(value) for value in values]
        return math.exp(sum(logs) / len(logs))

    names = [label(*setting) for setting in settings()]
    measured = [case["settings"] for case in cases.values()]
    return {name: mean(found[name][key] / found[_BASE][key] for found in measured) for name in names}


def constant_table(content: dict[str, Any]) -> str:
    """Return a row a constant: CPU seconds and products over those of the constants as they are."""
    rows = []
    for constant in CONSTANTS:
        names = [label(constant, factor) for factor in _FACTORS]
        rows.append((f"`{constant}`", *(f"{content['ratios'][key][name]:.2f}" for key in ("cpu", "products") for name in names)))
    head = ("constant", "CPU, halved", "CPU, doubled", "products, halved", "products, doubled")
    about = f"Geometric means of {len(content['cases'])} programs, one run each, in one thread; {content['machine']['date']}."
    return f"{table(head, rows)}\n\n{about}"


def main() -> None:
    """Solve what is missing, and write the table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", required=True, type=Path, help="folder of the features")
    parser.add_argument("--root", default="", help="where torchvision finds MNIST, if features are missing")
    parser.add_argument("--programs", default="", help="beginning of the names of those to solve")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = Data(options.root, options.cache, 0)
    tasks = {task.name: task for task in sparse_tasks(data) + default_tasks(data)}
    cases = {}
    for name, rows, penalty, strength in _PROGRAMS:
        task = replace(tasks[name], rows=rows)
        title = f"{name}/{rows}/{penalty}/{strength:g}"
        if title.startswith(options.programs):
            cases[title] = lambda task=task, penalty=penalty, strength=strength: measure(task, penalty, strength)
    path = RESULTS / "solvers" / "constants.json"
    content = run_all(path, {"machine": machine(), "seed": 0, "threads": 1}, cases)
    content["ratios"] = {key: ratios(content["cases"], key) for key in ("cpu", "products")}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    replace_block(EVIDENCE / "decisions_speed.md", "constants", constant_table(content), script="solvers/constants.py")


if __name__ == "__main__":
    main()
