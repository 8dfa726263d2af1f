"""What a path of 20 strengths costs against the single hardest of its solves, with safe screening and without it.

Run: python benchmarks/solver_paths.py --root DIR --cache DIR [--problems A,B]      writes benchmarks/results/solvers/paths.json
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, machine, run_all
from solver_problems import PENALTIES, make_task

from snn_recon_plugin.convex import Design, Problem, screening, solve, solve_path, strengths_below

STRENGTHS, HARDEST, TOL = 20, 3, 1e-4  # the hardest solves are the last ones; the tolerance is that of solve_path
SHORT, TIMES = 30.0, 3  # what takes fewer seconds is run so often, and the fastest counts: seconds vary by half from run to run


def measure(problem: Problem) -> dict[str, Any]:
    """Seconds of the path, of the last of its solves from zero, and of the path without screening."""
    strengths = strengths_below(problem, STRENGTHS)
    features, labels = problem.design.features[:500], problem.targets[:500]

    def path() -> tuple[float, Any]:
        began = time.perf_counter()
        found = solve_path(problem, features, labels, strengths=strengths, tol=TOL, patience=math.inf)
        return time.perf_counter() - began, found

    solve(problem.with_strength(strengths[0]), tol=TOL)  # threads and memory are there

    def unscreened() -> tuple[float, Any]:
        kept = screening.survivors
        screening.survivors = lambda *_: None
        try:
            return path()
        finally:
            screening.survivors = kept

    def singles() -> list[Any]:
        return [solve(problem.with_strength(strength), tol=TOL) for strength in strengths[-HARDEST:]]

    (seconds, found), (plain_seconds, plain), single = path(), unscreened(), singles()
    times = TIMES if seconds < SHORT else 1
    for _ in range(1, times):
        seconds, plain_seconds = min(seconds, path()[0]), min(plain_seconds, unscreened()[0])
        single = [min(pair, key=lambda solution: solution.seconds) for pair in zip(single, singles(), strict=True)]
    solutions = [point.solution for point in (*found.points, *plain.points)] + single
    return {
        "seconds": seconds,
        "times": times,
        "without_screening": plain_seconds,
        "hardest": max(solution.seconds for solution in single),
        "reached": all(solution.certificate.reached for solution in solutions),
        "strengths": [strengths[0], strengths[-1]],
        "solves": [point.solution.seconds for point in found.points],
    }


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    parser.add_argument("--cache", required=True, type=Path, help="a folder outside the repository for the features")
    parser.add_argument("--problems", default="A,B")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = {}
    for name, penalty in itertools.product(options.problems.split(","), PENALTIES):

        def case(name: str = name, penalty: str = penalty) -> dict[str, Any]:
            task = make_task(name, options.root, options.cache, options.seed)
            stored = np.load(task.features_file, mmap_mode="r")[: task.rows, : task.columns]
            labels = torch.from_numpy(np.load(task.labels_file)[: task.rows])
            design = Design(torch.from_numpy(np.array(stored, order="C")))
            return measure(Problem(design, labels, loss=task.loss, penalty=penalty, num_outputs=task.outputs))

        cases[f"{name}-{penalty}"] = case
    head = {"machine": machine(), "seed": options.seed, "tol": TOL, "count": STRENGTHS}
    run_all(RESULTS / "solvers" / "paths.json", head, cases)


if __name__ == "__main__":
    main()
