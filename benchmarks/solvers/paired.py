"""Seconds of this solver against those of another checkout: the same programs, solved in turns by processes of their own.

    cd benchmarks && python -m solvers.paired --before CHECKOUT --root DIR --cache DIR [--problems A,B,C,E,G-spikes-5k]

A problem is named by its beginning: G takes every program of the default kind.

Both sides get the same features, the same tolerance and one thread.  The fastest of the rounds counts, in CPU seconds.  The
objectives are compared too: two solvers that disagree are not worth timing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, machine, run_all

from .problems import Data, Task, default_tasks, sparse_tasks, strengths_of

TOL = 1e-6
# The class of features was called Design before it was called Features.
_CHILD = """
import json, sys, time
import numpy as np, torch
import snn_recon_plugin.convex as convex
spec = json.loads(sys.argv[1])
features = torch.from_numpy(np.array(np.load(spec["stem"] + "-features.npy", mmap_mode="r")[: spec["rows"], : spec["columns"]]))
labels = torch.from_numpy(np.load(spec["stem"] + "-labels.npy")[: spec["rows"]])
torch.set_num_threads(1)
began = time.process_time()
kind = getattr(convex, "Features", None) or convex.Design
problem = convex.Problem(kind(features), labels, **spec["options"])
found = convex.solve(problem, tol=spec["tol"], time_limit=spec["limit"])
cpu = time.process_time() - began
certificate = found.certificate
print(json.dumps({"cpu": cpu, "primal": certificate.primal, "relative_gap": certificate.relative_gap}))
"""


def solve_at(checkout: Path, task: Task, options: dict[str, Any], limit: float) -> dict[str, float]:
    """Return CPU seconds, objective and relative gap of a solve by a checkout's package."""
    spec = {"stem": task.stem, "rows": task.rows, "columns": task.columns, "options": options, "tol": TOL, "limit": limit}
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _CHILD, json.dumps(spec)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=checkout, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(sides: dict[str, Path], task: Task, penalty: str, strength: float, rounds: int, limit: float) -> dict[str, Any]:
    """Solve a program in turns, and return the fastest run of each side with the ratio now / before."""
    options = {"loss": task.loss, "penalty": penalty, "strength": strength, "num_outputs": task.outputs}
    runs = [{side: solve_at(path, task, options, limit) for side, path in sides.items()} for _ in range(rounds)]
    best = {side: min((run[side] for run in runs), key=lambda found: found["cpu"]) for side in sides}
    return {**best, "ratio": best["now"]["cpu"] / best["before"]["cpu"]}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m solvers.paired", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", required=True, type=Path, help="root of the other checkout")
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    parser.add_argument("--cache", required=True, type=Path, help="a folder outside the repository for the features")
    parser.add_argument("--problems", default="A,B,C,E")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of a solve")
    parser.add_argument("--results", default=RESULTS / "solvers" / "paired.json", type=Path)
    options = parser.parse_args()
    sides = {"before": options.before.resolve(), "now": Path(__file__).resolve().parents[2]}
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=options.before, capture_output=True, text=True, check=True
    )
    head = {"machine": machine("numpy"), "seed": 0, "tol": TOL, "before": revision.stdout.strip()}
    data, wanted = Data(options.root, options.cache, 0), tuple(options.problems.split(","))
    tasks = [task for task in [*sparse_tasks(data), *default_tasks(data)] if task.name.startswith(wanted)]
    cases = {
        f"{task.name}/{penalty}/{strength:g}": lambda task=task, penalty=penalty, strength=strength: compare(
            sides, task, penalty, strength, options.rounds, options.limit
        )
        for task in tasks
        for penalty in task.penalties
        for strength in strengths_of(penalty)
    }
    run_all(options.results, head, cases)
    ratios = [case["ratio"] for case in json.loads(options.results.read_text(encoding="utf-8"))["cases"].values()]
    print(f"geometric mean of {len(ratios)} ratios now / before: {np.exp(np.mean(np.log(ratios))):.2f}")


if __name__ == "__main__":
    main()
