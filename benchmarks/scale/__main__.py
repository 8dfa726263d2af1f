"""Runs the cells of the scale study, each in a process of its own, into benchmarks/results/scale/; a cell with a json is left out.

    cd benchmarks && python -m scale                      # all but the largest
    cd benchmarks && python -m scale --part largest       # those alone, two threads: 12 GiB of memory, up to an hour
    cd benchmarks && python -m scale --only solver-squared_hinge   # cells whose names hold this
    benchmarks/scale/gpu.sh                               # --part gpu --device cuda, after the tests of a GPU

memory: a training step, a start and a refit of the same net.  solver: n, P and C, with peers.  floor: rates of the machine.
ranks.py measures several processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from benchmarks.common import RESULTS, machine
from benchmarks.store import Store

from .memory import ACTIONS
from .nets import NETS

PATH = RESULTS / "scale.jsonl"
STEPS, IMAGES, BATCH = (25, 100, 250, 1000), (2_000, 10_000), 128
BY_ROWS = tuple((n, 1_000, 10) for n in (1_000, 10_000, 100_000))
BY_COLUMNS = tuple((20_000, P, 10) for P in (250, 1_000, 4_000, 16_000))
BY_OUTPUTS = tuple((20_000, 1_000, C) for C in (10, 100, 1_000))
LARGEST = ((1_000_000, 1_000, 10), (200_000, 4_096, 1_000))
LOSSES = {"squared_hinge": "linear_svc", "cross_entropy": "logistic"}  # and scikit-learn's solver of each
ON_GPU = ((60_000, 1_000, 10), (200_000, 4_096, 1_000))
PARTS = ("usual", "largest", "gpu")
_SETUP = 600.0  # seconds to make the data, which don't count

Cell = dict[str, Any]


def list_cells(part: str, device: str = "cpu", limit: float = 300.0, shrink: int = 1) -> Iterator[Cell]:
    """Yield the cells of a part, small ones first; ``shrink`` divides samples and widths, to try the study out."""
    common = {"device": device, "threads": 2 if part == "largest" else 1, "seed": 0, "limit": limit, "shrink": shrink}
    yield {"kind": "floor", **common}
    if part == "usual":
        yield from _memory_cells(common)
    if part == "gpu":
        yield from (_memory_cell("dense", action, steps, IMAGES[1], common) for steps in STEPS[:2] for action in ACTIONS)
    sizes = {"usual": dict.fromkeys((*BY_ROWS, *BY_COLUMNS, *BY_OUTPUTS)), "largest": LARGEST, "gpu": ON_GPU}[part]
    for (n, P, C), loss in product(sizes, LOSSES):
        small = {"n": max(100, n // shrink), "P": max(20, P // shrink), "C": max(3, C // shrink)}
        for peer in ("ours", "lbfgs", *([LOSSES[loss]] if part == "usual" else [])):
            yield {"kind": "solver", "loss": loss, **small, "peer": peer, **common}


def _memory_cells(common: Cell) -> Iterator[Cell]:
    for steps, net in product(STEPS, NETS):
        yield _memory_cell(net, "step", steps, BATCH, common)
        for images, action in product(IMAGES, ("start", "refit")):
            # Of the nets that take longest, few images show how memory grows with the steps.
            if images == IMAGES[0] or (net != "conv" and steps <= 250):
                yield _memory_cell(net, action, steps, images, common)


def _memory_cell(net: str, action: str, steps: int, images: int, common: Cell) -> Cell:
    shrink = common["shrink"]
    small = {"n": max(100, images // shrink), "width": None if shrink == 1 else NETS[net].small}
    return {"kind": "memory", "net": net, "action": action, "T": max(3, steps // shrink), **small, "batch": BATCH, **common}


def name_of(cell: Cell) -> str:
    """Return the name of a cell's json, without its end."""
    keys = {"memory": ("net", "action", "T", "n"), "solver": ("loss", "n", "P", "C", "peer"), "floor": ()}[cell["kind"]]
    parts = [f"{key}{cell[key]}" if isinstance(cell[key], int) else str(cell[key]) for key in keys]
    return "-".join([cell["kind"], *parts, f"{cell['threads']}t", *([] if cell["device"] == "cpu" else [cell["device"]])])


def run_cell(cell: Cell) -> Cell:
    """Run a cell in a process of its own, and return its record."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    here = Path(__file__).resolve().parents[1]
    paths = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **dict.fromkeys(names, str(cell["threads"])), "PYTHONPATH": paths}
    command = [sys.executable, "-m", f"{__package__}.cell", json.dumps(cell)]
    # A cell of another kind than a solve has no limit of its own; twenty limits end one that hangs.
    most = _SETUP + cell["limit"] * (1.2 if cell["kind"] == "solver" else 20)
    try:
        done = subprocess.run(command, env=environment, cwd=here, capture_output=True, text=True, timeout=most, check=False)
        printed, failure = done.stdout, _failure(done.returncode, done.stderr)
    except subprocess.TimeoutExpired as error:
        printed, failure = (error.stdout or b"").decode(), "killed at the time limit"
    lines = printed.splitlines()
    found = json.loads(lines[-1]) if lines else {}
    if failure and found.get("outcome") != "reached":
        found["outcome"] = failure
    about = {
        **machine("snntorch", "norse", "scikit-learn"),
        "threads": cell["threads"],
        "accelerator": _accelerator(cell["device"]),
    }
    return {**cell, "outcome": "done", **found, "machine": about}


def _failure(status: int, errors: str) -> str:
    """Return why a process ended without a result; empty if it had one."""
    if status == 0:
        return ""
    last = (errors.strip().splitlines() or [""])[-1]
    return "killed, mostly for lack of memory" if status < 0 else f"failed: {last[:200]}"


def _accelerator(device: str) -> str | None:
    if device == "cpu":
        return None
    import torch

    return torch.cuda.get_device_name()


def main(arguments: list[str] | None = None) -> None:
    """Run the cells of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=[""], nargs="+", metavar="TEXT", help="cells whose names hold one of these")
    parser.add_argument("--part", default="usual", choices=PARTS, help="largest: a million rows, and a thousand classes")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shrink", type=int, default=1, metavar="K", help="divide sizes by K, to try the study out")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of a solve (default: 300)")
    parser.add_argument("--results", type=Path, default=PATH)
    parser.add_argument("--again", action="store_true", help="repeat cells that have a result")
    parser.add_argument("--list", action="store_true", help="print the names of the cells, and end")
    options = parser.parse_args(arguments)
    cells = {name_of(cell): cell for cell in list_cells(options.part, options.device, options.limit, options.shrink)}
    chosen = {name: cell for name, cell in cells.items() if any(text in name for text in options.only)}
    if options.list:
        print("\n".join(chosen))
        return
    store = Store(options.results)
    for name, cell in tqdm(chosen.items(), disable=None):
        if name in store and not options.again:
            continue
        found = store.add(name, run_cell(cell))
        size = f"{found['added_bytes'] / 2**20:.0f} MiB" if "added_bytes" in found else ""
        print(f"{name:<60} {found['outcome']:<12} {found.get('seconds', 0.0):8.1f} s {size}", flush=True)


if __name__ == "__main__":
    main()
