"""Seconds of a sum over two processes: sent by each to the other, as `Shards` does with short messages, and reduced by gloo.

    cd benchmarks && python -m scale.messages

writes benchmarks/results/scale/messages.json and a table in docs/evidence/decisions_speed.md.  Each process has one thread and a
core of its own, which must be free.  Before every sum both multiply matrices, as in a solve.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from common import RESULTS, machine, run_all
from render_docs import EVIDENCE, markdown_table, replace
from torch import Tensor

from snn_recon_plugin.convex import Shards

from .processes import join_group, run_together

NUMBERS = (10, 10_000, 100_000)
REPEATS, ROWS, COLUMNS = 200, 4000, 1000  # sums, and the matrix that is multiplied before each
WAYS = {"direct": "sent to each other", "reduced": "reduced"}
DOC = EVIDENCE / "decisions_speed.md"


def measure_rank(way: str, count: int, folder: Path, rank: int, world: int) -> None:
    """Save the median seconds of a sum, without the product before it."""
    join_group(rank, world, folder)
    add: Callable[[Tensor], object] = Shards().sum if way == "direct" else dist.all_reduce
    matrix, weight, values = torch.randn(ROWS, COLUMNS), torch.randn(COLUMNS, 10), torch.ones(count)
    seconds = []
    for _ in range(REPEATS):
        matrix @ weight
        began = time.perf_counter()
        add(values.clone())
        seconds.append(time.perf_counter() - began)
    torch.save(median(seconds), folder / f"{rank}.pt")
    dist.destroy_process_group()


def run_case(way: str, count: int) -> dict[str, Any]:
    """Return the seconds of a sum, the mean of both processes."""
    with tempfile.TemporaryDirectory() as folder:
        run_together("scale.messages", ["--cell", way, str(count), folder], 2)
        found = [float(torch.load(Path(folder) / f"{rank}.pt")) for rank in range(2)]
    return {"way": way, "count": count, "seconds": sum(found) / 2}


def make_table(cases: dict[str, dict[str, Any]]) -> str:
    """Return milliseconds of a sum, a row a number of values."""
    rows = [(f"{count:,}", *(f"{1000 * cases[f'{way}, {count}']['seconds']:.2f}" for way in WAYS)) for count in NUMBERS]
    return markdown_table(("float32 numbers", *(f"{name}, ms" for name in WAYS.values())), rows)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", nargs=5, metavar="WORD", help="one process of a case; the script passes this to itself")
    options = parser.parse_args()
    if options.cell:
        way, count, folder, rank, world = options.cell
        measure_rank(way, int(count), Path(folder), int(rank), int(world))
        return
    cases = {f"{way}, {count}": partial(run_case, way, count) for count in NUMBERS for way in WAYS}
    content = run_all(RESULTS / "scale" / "messages.json", {"machine": machine(), "seed": 0, "repeats": REPEATS}, cases)
    replace(DOC, "messages", make_table(content["cases"]), script="scale/messages.py")


if __name__ == "__main__":
    main()
