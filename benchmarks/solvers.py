"""Seconds to a certified gap on readout programs: the native solver and its peers, every cell in a process of its own.

    python benchmarks/solvers.py --root DIR --cache DIR [--peer-python FILE] [--problems A,B] [--peers native,fista]
    python benchmarks/solvers.py --root DIR --cache DIR --growth        native alone, growing n and P
    python benchmarks/solvers.py --root DIR --cache DIR --floor         products with the features against copies and large products

A cell that has its json is not run again.  adelie, skglm and celer run under --peer-python, the interpreter of an environment of
their own (adelie needs numpy < 2):  python -m venv DIR && DIR/bin/pip install "numpy<2" adelie skglm celer scikit-learn.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from common import RESULTS, machine
from solver_peers import MAPPINGS, PEERS, TARGETS, refusal
from solver_problems import PENALTIES, PROBLEMS, STRENGTHS, Task, growth_tasks, make_task
from tqdm.auto import tqdm

from snn_recon_plugin.convex import Design, Problem

HERE = Path(__file__).resolve().parent
_SETUP = 300.0  # seconds for imports and compilation, which don't count
_SLACK = 1.02  # a solver that stops itself at the time limit is not killed for the last step
_ROUNDING = 1 + 1e-4  # a solver stops on the gap of its own point; ours, of the point it wrote, differs in the last digits
_NO_LARGER = {"B": "A", "C": "BA"}  # programs of the same loss with no more rows and, but for 24 of 1024, no more columns
_FASTER = {"fista_dual": ("fista_restart",), "fista": ("fista_restart", "fista_dual")}  # the same steps, restarted or with a dual
_FROM_SCRATCH = ("adelie", "skglm", "celer", "highs", "saga", "clarabel", "scs")


class Judge:
    """Certifies every peer's points of one program by one routine: Problem.certify, in float64."""

    def __init__(self, task: Task, penalty: str, strength: float) -> None:
        features = np.array(np.load(task.features_file, mmap_mode="r")[: task.rows, : task.columns], order="C")
        labels = torch.from_numpy(np.load(task.labels_file)[: task.rows])
        design = Design(torch.from_numpy(features))
        self.problem = Problem(design, labels, loss=task.loss, penalty=penalty, strength=strength, num_outputs=task.outputs)

    def __call__(self, path: Path, known: float) -> dict[str, float]:
        """Gap, objective and lower bound of a point; ``known`` is a bound by the same routines from a solver's own dual point."""
        with np.load(path) as point:
            weight, bias = torch.from_numpy(point["weight"]), torch.from_numpy(point["bias"])
        if not bool(torch.isfinite(weight).all() & torch.isfinite(bias).all()):
            return {"relative_gap": math.inf, "objective": math.inf, "dual": -math.inf}
        found = self.problem.certify(weight, bias, TARGETS[-1], known)
        return {"relative_gap": found.relative_gap, "objective": found.primal, "dual": found.dual}


def run_cell(judge: Judge, task: Task, penalty: str, strength: float, peer: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs a peer in its own process, answers its questions, and ends it when its time is over."""
    with tempfile.TemporaryDirectory() as folder:
        spec = {
            **{"peer": peer, "loss": task.loss, "penalty": penalty, "strength": strength, "outputs": task.outputs},
            **{"features": str(task.features_file), "labels": str(task.labels_file), "rows": task.rows, "columns": task.columns},
            **{"limit": options.limit, "threads": options.threads, "seed": options.seed, "folder": folder},
            "memory_gib": options.memory,
        }
        path = Path(folder) / "spec.json"
        path.write_text(json.dumps(spec), encoding="utf-8")
        python = options.peer_python if PEERS[peer][1] else sys.executable
        errors = Path(folder) / "errors.txt"
        with errors.open("wb") as sink:
            child = subprocess.Popen(
                [python, str(HERE / "solver_peers.py"), str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
                env=_environment(options.threads),
            )
            try:
                result = _converse(child, judge, Path(folder), options.limit, peer in _FROM_SCRATCH)
            finally:
                child.kill()
                child.wait()
        if result["reason"].startswith(("failed", "died")):
            said = errors.read_text(encoding="utf-8", errors="replace")
            result["errors"] = re.sub(r"(/[^\s\"':/]+)+/", "", said)[-1000:]  # no folders of this machine
    return result


def _environment(threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    # A kernel chosen for an old OpenBLAS would slow down the peers that bring a current one.
    rest = {key: value for key, value in os.environ.items() if key not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    return {**rest, **dict.fromkeys(names, str(threads))}


def _converse(child: subprocess.Popen[str], judge: Judge, folder: Path, limit: float, from_scratch: bool) -> dict[str, Any]:
    """Reads what the peer says until it ends, dies or runs out of time."""
    lines: queue.Queue[str] = queue.Queue()
    stream, sink = child.stdout, child.stdin
    assert stream is not None
    assert sink is not None
    threading.Thread(target=lambda: [lines.put(line) for line in itertools.chain(stream, [""])], daemon=True).start()
    trajectory: list[dict[str, Any]] = []
    result: dict[str, Any] = {"reason": "died", "peak_mib": None, "versions": {}, "products": None}
    baseline, end, working = 0.0, time.perf_counter() + _SETUP, False
    while True:
        try:
            line = lines.get(timeout=max(end - time.perf_counter(), 0.0))
        except queue.Empty:
            result["reason"] = "killed at the time limit" if working else "killed during setup"
            result["peak_mib"] = max(_high_water(child.pid) - baseline, result["peak_mib"] or 0.0)
            break
        if not line:
            break
        said, answer = json.loads(line), {}
        result["peak_mib"] = said.get("peak_mib", result["peak_mib"])
        if said["event"] == "end":
            result["reason"] = said["reason"]
            break
        if said["event"] == "ready":
            result["versions"], baseline = said["versions"], _high_water(child.pid)
        elif said["event"] == "point":
            verdict = judge(folder / said["file"], said.get("known", -math.inf))
            result["products"] = said.get("products")
            for seconds, gap, objective in said.get("trace", ())[:-1]:
                dual = objective - gap * judge.problem.zero_loss
                trajectory.append({"seconds": seconds, "relative_gap": gap, "objective": objective, "dual": dual, "setting": "own"})
            trajectory.append({"seconds": said["seconds"], **verdict, "setting": said["setting"]})
            answer = {"gap": verdict["relative_gap"]}
        working = True
        used = said["seconds"] if said["event"] == "point" and not from_scratch else 0.0
        end = time.perf_counter() + _SLACK * limit - used + 5
        print(json.dumps(answer), file=sink, flush=True)
    times = _times(trajectory, limit)
    return {"outcome": _outcome(times, result["reason"]), **result, **times, "trajectory": trajectory}


def _high_water(pid: int) -> float:
    """MiB of resident memory at most so far, as Linux tells; zero elsewhere."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    found = [line.split()[1] for line in text.splitlines() if line.startswith("VmHWM")]
    return int(found[0]) / 1024 if found else 0.0


_FAILED = ("not reached", "failed", "died", "out of memory", "killed during setup")


def _outcome(times: dict[str, Any], reason: str) -> str:
    if times["seconds_to"][f"{TARGETS[-1]:g}"] is not None:
        return "reached"
    if reason.startswith(("failed", "died", "out of memory", "killed during")):
        return reason.split(":", maxsplit=1)[0]
    return "not reached"


def _times(trajectory: list[dict[str, Any]], limit: float) -> dict[str, Any]:
    """Seconds of the fastest point within each gap, and the least that a finer choice of budgets could have shown.

    The latter interpolates the gap's logarithm in time between that point and the one before; ratios use it, in the peers' favour.
    """
    reached: dict[str, float | None] = {}
    least: dict[str, float | None] = {}
    for target in TARGETS:
        hits = [k for k, p in enumerate(trajectory) if p["relative_gap"] <= _ROUNDING * target and p["seconds"] <= _SLACK * limit]
        k = min(hits, key=lambda hit: trajectory[hit]["seconds"], default=None)
        reached[f"{target:g}"] = least[f"{target:g}"] = None if k is None else trajectory[k]["seconds"]
        if k:
            before, after = trajectory[k - 1], trajectory[k]
            gaps = [math.log(max(point["relative_gap"], 1e-16)) for point in (before, after)]
            if math.isfinite(gaps[0]) and gaps[0] > math.log(target) and before["seconds"] < after["seconds"]:
                share = min(1.0, (gaps[0] - math.log(target)) / max(gaps[0] - gaps[1], 1e-300))
                least[f"{target:g}"] = before["seconds"] + share * (after["seconds"] - before["seconds"])
    return {"seconds_to": reached, "seconds_to_least": least}


def measure_floor(tasks: list[Task], threads: int) -> list[dict[str, Any]]:
    """One product with the features and one with their transpose in float32, a copy of them, and a large square matrix product."""
    torch.set_num_threads(threads)
    square = torch.randn(2048, 2048)
    gemm = 2 * 2048**3 / _fastest(lambda: square @ square)
    results = []
    for task in tasks:
        stored = np.load(task.features_file, mmap_mode="r")[: task.rows, : task.columns]
        matrix = torch.from_numpy(np.array(stored, order="C"))
        weight, dual = torch.randn(task.outputs, task.columns), torch.randn(task.rows, task.outputs)
        target = torch.empty_like(matrix)
        pair = _fastest(lambda matrix=matrix, weight=weight, dual=dual: (matrix @ weight.T, dual.T @ matrix))
        copy = _fastest(lambda target=target, matrix=matrix: target.copy_(matrix))
        size = {"problem": task.name, "n": task.rows, "P": task.columns, "C": task.outputs}
        results.append({**size, "pair_seconds": pair, "copy_bytes_per_second": 8 * matrix.numel() / copy, "gemm_flops": gemm})
    return results


def _fastest(action: Any) -> float:
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def head(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "machine": {**machine("scipy"), "threads": options.threads},
        "seed": options.seed,
        "threads": options.threads,
        "limit": options.limit,
        "memory_gib": options.memory,
    }


def cells(options: argparse.Namespace) -> list[tuple[str, str, float, str]]:
    """Problem, penalty, strength and peer of every cell, peer by peer and the small problems first, or problem by problem."""
    names = [name for name in ("D", "F", "A", "B", "E", "C") if name in options.problems]
    peers = [peer for peer in PEERS if peer in options.peers]
    every = itertools.product(peers, names, options.penalties, sorted(options.strengths, reverse=True))
    listed = [(problem, penalty, strength, peer) for peer, problem, penalty, strength in every]
    return listed if options.order == "peers" else sorted(listed, key=lambda cell: names.index(cell[0]))


def hopeless(folder: Path, problem: str, penalty: str, strength: float, peer: str) -> str:
    """Why the peer can't be expected to get to the smallest gap in its time; empty where it can.

    It was run with a larger strength on the same program and did not; or with one as large or larger on a program of the same loss
    that is no larger; or a faster variant of it was run on the same program and did not.
    """

    def failed(problem: str, peer: str) -> list[float]:
        found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob(f"{problem}-{penalty}-*-{peer}.json")]
        return [cell["strength"] for cell in found if cell["outcome"] in _FAILED]

    if any(other > strength for other in failed(problem, peer)):
        return "a larger strength was not enough"
    for smaller in _NO_LARGER.get(problem, ""):
        if any(other >= strength for other in failed(smaller, peer)):
            return f"the same was not enough for problem {smaller}"
    for faster in _FASTER.get(peer, ()):
        if any(other >= strength for other in failed(problem, faster)):
            return f"{faster} did not reach it either"
    return ""


def run_all(options: argparse.Namespace) -> None:
    """Every cell without a json."""
    folder = Path(options.results)
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {name: make_task(name, options.root, options.cache, options.seed, options.tiny) for name in options.problems}
    listed = cells(options)
    if options.growth:
        tasks = {task.name: task for task in growth_tasks(options.root, options.cache, options.seed, options.tiny)}
        listed = [(name, "group_l1", 1e-3, "native") for name in tasks]
    shared = head(options)
    with tqdm(listed, disable=None) as bar:
        for problem, penalty, strength, peer in bar:
            path, task = folder / f"{problem}-{penalty}-{strength:g}-{peer}.json", tasks[problem]
            if path.exists() or (PEERS[peer][1] and not options.peer_python):
                continue
            bar.set_postfix_str(path.stem)
            about = {"problem": problem, "about": task.about, "loss": task.loss, "n": task.rows, "P": task.columns}
            about |= {"C": task.outputs, "penalty": penalty, "strength": strength, "peer": peer}
            why = refusal(peer, task.loss, penalty, task.outputs)
            result: dict[str, Any] = {"seconds_to": {}, "seconds_to_least": {}, "peak_mib": None, "trajectory": []}
            if why is not None:
                result = {"outcome": "does not apply", "reason": why, **result}
            elif options.presume and (doubt := hopeless(folder, problem, penalty, strength, peer)):
                result = {"outcome": "presumed not reached", "reason": f"not run: {doubt}", **result}
            else:
                judge = Judge(task, penalty, strength)
                result = {"zero_loss": judge.problem.zero_loss, **run_cell(judge, task, penalty, strength, peer, options)}
            mode = "each point solved from scratch" if peer in _FROM_SCRATCH else "one run"
            date = datetime.date.today().isoformat()
            content = {**about, "mapping": MAPPINGS[peer], "mode": mode, **shared, "date": date, **result}
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            tqdm.write(f"{path.stem:<36} {content['outcome']:<16} {content['seconds_to']}  {content['reason'][:60]}")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = {"problems": PROBLEMS, "peers": tuple(PEERS), "penalties": PENALTIES, "strengths": STRENGTHS}
    for name, values in listed.items():
        kind = float if name == "strengths" else str
        default = ",".join(map(str, values))
        parser.add_argument(f"--{name}", type=lambda text, kind=kind: [kind(part) for part in text.split(",")], default=default)
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    parser.add_argument("--cache", required=True, type=Path, help="a folder outside the repository for the features, 400 MB")
    parser.add_argument("--results", default=str(RESULTS / "solvers"))
    parser.add_argument("--peer-python", help="interpreter of the environment with numpy < 2; without it its peers are left out")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of a solve")
    parser.add_argument("--memory", type=float, default=18.0, help="GiB of address space of a peer; 0 for no bound")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--order", choices=("peers", "problems"), default="peers")
    parser.add_argument("--presume", action="store_true", help="no run that can't be expected to reach 1e-6, see hopeless()")
    parser.add_argument("--tiny", action="store_true", help="300 samples and 50 features, to try the machinery; give --results too")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--floor", action="store_true")
    options = parser.parse_args()
    if options.floor:
        tasks = [make_task(name, options.root, options.cache, options.seed, options.tiny) for name in options.problems]
        tasks += growth_tasks(options.root, options.cache, options.seed, options.tiny)
        content = cast(dict[str, Any], head(options)) | {"shapes": measure_floor(tasks, options.threads)}
        Path(options.results).mkdir(parents=True, exist_ok=True)
        (Path(options.results) / "floor.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return
    run_all(options)


if __name__ == "__main__":
    main()
