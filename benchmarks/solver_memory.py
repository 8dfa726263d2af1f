"""Seconds and peak memory of the largest program that is promised: n=60,000, P=4,096, C=10, spikes as uint8 and as float32.

Run: python benchmarks/solver_memory.py --root DIR       writes benchmarks/results/solvers/memory.json; about ten minutes
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, run_all
from solver_problems import large_spikes

from snn_recon_plugin.convex import Design, Problem, memory_bound, solve

TOL, STRENGTH, FEATURES = 1e-4, 1e-3, 4096


def resident(name: str) -> int:
    """Bytes of this process's memory, as Linux tells: VmRSS now, VmHWM at most so far."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def measure(root: str, dtype: str, penalty: str, threads: int, seed: int) -> dict[str, Any]:
    """One solve in this process, whose memory is looked at from when the features are there."""
    torch.set_num_threads(threads)
    features, labels = large_spikes(root, FEATURES, seed)
    features = features.to(getattr(torch, dtype))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, began = resident("VmRSS"), time.perf_counter()
    problem = Problem(Design(features), labels, penalty=penalty, strength=STRENGTH, num_outputs=10)
    found = solve(problem, tol=TOL)
    n, columns = features.shape
    return {
        **{"n": n, "P": columns, "C": 10, "dtype": dtype, "penalty": penalty, "strength": STRENGTH},
        "seconds": time.perf_counter() - began,
        "relative_gap": found.certificate.relative_gap,
        "active": found.trace[-1].active,
        "features_bytes": features.numel() * features.element_size(),
        "process_bytes": resident("VmHWM"),
        "taken_bytes": resident("VmHWM") - before,
        "bound_bytes": memory_bound(n, columns, 10, features.dtype),
    }


def main() -> None:
    """Runs every case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", nargs=2, metavar=("DTYPE", "PENALTY"), help="this case alone, its json to the standard output")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.root, *options.one, options.threads, options.seed)))
        return

    def case(dtype: str, penalty: str) -> dict[str, Any]:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", dtype, penalty]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    cases = {f"{dtype}-{penalty}": (dtype, penalty) for dtype in ("uint8", "float32") for penalty in ("group_l1", "l1")}
    head = {"machine": machine(), "seed": options.seed, "tol": TOL}
    run_all(RESULTS / "solvers" / "memory.json", head, {name: lambda pair=pair: case(*pair) for name, pair in cases.items()})


if __name__ == "__main__":
    main()
