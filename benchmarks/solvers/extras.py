"""Studies of the package's solver without peers: paths of strengths, memory of the largest programs, floor of its products."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import run_all

from . import api
from .problems import Task, large_spikes

__all__ = ["measure_floor", "measure_memory", "measure_paths"]

_TOL = 1e-4  # the tolerance of solve_path
_STRENGTHS, _HARDEST = 20, 3  # the hardest solves are the last ones
_SHORT, _TIMES = 30.0, 3  # runs below so many seconds are repeated, and the fastest counts: seconds vary by half
_COLUMNS, _STRENGTH = 4096, 1e-3  # of the largest programs


def measure_paths(path: Path, head: dict[str, Any], tasks: list[Task]) -> None:
    """Compare a path with the hardest of its solves, on A and B."""
    pairs = [(task, penalty) for task in tasks if task.name in ("A", "B") for penalty in task.penalties]
    cases = {f"{task.name}-{penalty}": lambda task=task, penalty=penalty: _one_path(task, penalty) for task, penalty in pairs}
    run_all(path, {**head, "tol": _TOL, "count": _STRENGTHS}, cases)


def _one_path(task: Task, penalty: str) -> dict[str, Any]:
    features, labels = task.load()
    problem = api.make_problem(features, labels, loss=task.loss, penalty=penalty, num_outputs=task.outputs)
    strengths = api.strengths_below(problem, _STRENGTHS)
    settings = api.PathSettings(strengths, _TOL, patience=float("inf"))
    heldout = torch.from_numpy(features[:500]), torch.from_numpy(labels[:500])
    api.solve(problem.with_strength(strengths[0]), tol=_TOL)  # warm-up: threads and memory are there

    def timed(action: Callable[[], Any]) -> tuple[float, Any]:
        began = time.perf_counter()
        found = action()
        return time.perf_counter() - began, found

    def follow() -> tuple[float, Any]:
        return timed(lambda: api.solve_path(problem, api.HeldOutRows(*heldout), settings))

    def single(strength: float) -> tuple[float, Any]:
        return timed(lambda: api.solve(problem.with_strength(strength), tol=_TOL))

    seconds, found = follow()
    times = _TIMES if seconds < _SHORT else 1
    paths = [seconds, *(follow()[0] for _ in range(1, times))]
    runs = [[single(strength) for _ in range(times)] for strength in strengths[-_HARDEST:]]
    solutions = [point.solution for point in found.points] + [solution for each in runs for _, solution in each]
    return {
        "seconds": min(paths),
        "times": times,
        "hardest": max(min(spent for spent, _ in each) for each in runs),
        "reached": all(solution.certificate.reached for solution in solutions),
        "strengths": [strengths[0], strengths[-1]],
    }


def measure_memory(path: Path, head: dict[str, Any], root: str, columns: int = _COLUMNS) -> None:
    """Solve the largest programs, each in a process of its own, and record its resident memory."""
    kinds = itertools.product(("uint8", "float32"), ("group_l1", "l1"))
    cases = {
        f"{dtype}-{penalty}": lambda pair=(dtype, penalty): _in_process(root, columns, head, *pair) for dtype, penalty in kinds
    }
    run_all(path, {**head, "tol": _TOL}, cases)


def _in_process(root: str, columns: int, head: dict[str, Any], dtype: str, penalty: str) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_largest, (root, columns, dtype, penalty, head["threads"], head["seed"]))


def _largest(root: str, columns: int, dtype: str, penalty: str, threads: int, seed: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    features, labels = large_spikes(root, columns, seed)
    array = features.to(getattr(torch, dtype)).numpy()
    del features
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # starts the high-water mark anew
    before, began = _resident("VmRSS"), time.perf_counter()
    problem = api.make_problem(array, labels.numpy(), penalty=penalty, strength=_STRENGTH, num_outputs=10)
    found = api.solve(problem, tol=_TOL)
    return {
        **{"n": len(array), "P": array.shape[1], "C": 10, "dtype": dtype, "penalty": penalty, "strength": _STRENGTH},
        "seconds": time.perf_counter() - began,
        "relative_gap": found.certificate.relative_gap,
        "features_bytes": array.nbytes,
        "process_bytes": _resident("VmHWM"),
        "taken_bytes": _resident("VmHWM") - before,
    }


def _resident(name: str) -> int:
    """Bytes of this process's memory on Linux: VmRSS now, VmHWM at most so far."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def measure_floor(path: Path, head: dict[str, Any], tasks: list[Task]) -> None:
    """Time a product with the features and one with their transpose in float32, a copy of them, and a large square product."""
    square = torch.randn(2048, 2048)
    gemm = 2 * 2048**3 / _fastest(lambda: square @ square)
    shapes = []
    for task in tasks:
        matrix = torch.from_numpy(task.load()[0]).float()
        weight, dual = torch.randn(task.outputs, task.columns), torch.randn(task.rows, task.outputs)
        target = torch.empty_like(matrix)
        pair = _fastest(lambda matrix=matrix, weight=weight, dual=dual: (matrix @ weight.T, dual.T @ matrix))
        copy = _fastest(lambda target=target, matrix=matrix: target.copy_(matrix))
        size = {"problem": task.name, "n": task.rows, "P": task.columns, "C": task.outputs}
        shapes.append({**size, "pair_seconds": pair, "copy_bytes_per_second": 8 * matrix.numel() / copy, "gemm_flops": gemm})
    path.write_text(json.dumps({**head, "shapes": shapes}, indent=1) + "\n", encoding="utf-8")


def _fastest(action: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
