"""What a start costs: CPU seconds of the line, and of an epoch of training as it is written and with faster steps, on five nets."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.nets import accuracy, dense, recurrent, train_epochs
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from benchmarks.tasks import load_task
from snn_recon_plugin import convex_init_, fast_steps

SEEDS = range(3)


# Data, net and size of a batch.
CASES: dict[str, tuple[str, Callable[[], nn.Module], int]] = {
    "MNIST, 20,000, 784-500-10, 10 steps": ("20,000 images", partial(dense, 784, 500, 10, steps=10), 128),
    "digits, 64-128-10, 10 steps": ("whole digits", partial(dense, 64, 128, 10, steps=10), 64),
    "MNIST by row, 10,000, RLeaky 128": ("rows", partial(recurrent, 28, 128, axis=1), 128),
    "spike timing, 2,000, 20-200-200-10, 50 steps": ("timing", partial(dense, 20, 200, 200, 10, axis=1), 64),
    "points in a plane, 5,000, 5-120-3, 20 steps": ("points in a plane", partial(dense, 5, 120, 3, steps=20), 64),
}


def mean_membranes(net: nn.Module, inputs: Tensor) -> Tensor:
    return net(inputs).mean(0)


def epoch(net: nn.Module, loader: DataLoader[Any]) -> float:
    """Return the CPU seconds of an epoch of Adam."""
    began = time.process_time()
    train_epochs(net, loader)
    return time.process_time() - began


def measure(bench: Bench, case: str, seed: int) -> dict[str, Any]:
    """Start a net, and train two others for an epoch; the first pass of each warms up."""
    task, make, size = CASES[case]
    data = load_task(task, bench.places)
    loader = DataLoader(TensorDataset(data.train_inputs, data.train_labels), size, shuffle=True)
    torch.manual_seed(seed)
    net, few = make(), DataLoader(TensorDataset(data.train_inputs[:300], data.train_labels[:300]), size)
    convex_init_(make(), few, forward=mean_membranes, progress=False)
    began = time.process_time()
    convex_init_(net, loader, forward=mean_membranes, seed=seed, progress=False)
    found = {"start": time.process_time() - began}
    found["test"] = accuracy(net, data.test_inputs, data.test_labels)
    for name in ("plain", "fast"):
        net = make()
        with fast_steps(net, loader) if name == "fast" else nullcontext():
            epoch(net, few)
            found[name] = epoch(net, loader)
    return found


def cells(bench: Bench) -> Cells:
    """All cases with three seeds."""
    return {f"{case} | {seed}": partial(measure, bench, case, seed) for case, seed in itertools.product(CASES, SEEDS)}


def pages(store: Store) -> dict[str, dict[str, str]]:
    """One row a case, with means over seeds."""
    table = []
    for case in CASES:
        found = store.cells(f"{case} | *")
        start, plain, fast, test = (statistics.mean(cell[key] for cell in found) for key in ("start", "plain", "fast", "test"))
        seconds = (f"{value:.2f}" for value in (start, plain, fast))
        table.append((case, *seconds, f"{start / plain:.1f}", f"{start / fast:.1f}", f"{100 * test:.1f}"))
    heads = (
        "data and net",
        "s, start",
        "s, epoch",
        "s, epoch with fast steps",
        "start, epochs",
        "start, fast epochs",
        "test after the start, %",
    )
    return {"evidence/training.md": {"start cost": f"{markdown_table(heads, table)}\n\n{machines_line(store.cells())}"}}


STUDY = Study(
    title="CPU seconds of a start beside those of an epoch",
    minutes=5,
    cells=cells,
    pages=pages,
    fields=("start", "plain", "fast", "test"),
    needs=("mnist",),
)
