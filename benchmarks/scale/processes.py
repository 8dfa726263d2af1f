"""Processes of one thread that run a module of this study together, each on a core of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist


def run_together(module: str, words: Sequence[str], world: int) -> None:
    """Run a module in so many processes, whose last words are its rank and their number; an error if one fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", module, *words, str(rank), str(world)],
            env=environment,
            cwd=Path(__file__).parents[1],
        )
        for rank in range(world)
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        raise RuntimeError(f"processes of {module} that ended with {codes}")


def join_group(rank: int, world: int, folder: Path) -> None:
    """Take one thread and one core, and join the other processes, if there are any, by gloo."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world)
