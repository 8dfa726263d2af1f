"""What a start costs and brings: CPU seconds of the line and of training epochs, and test accuracies with a start and without.

On two nets with convolutions also what a refit costs, on all samples and on a quarter of them.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.image_nets import DEEP_NETS
from benchmarks.nets import accuracy, dense, recurrent, train_epochs
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from benchmarks.tasks import load_task
from snn_recon_plugin import convex_init_, fast_steps, refit_

SEEDS, EPOCHS, LONGEST = range(3), 3, 60  # epochs after a start, and at most without one
TESTS = 2_000  # images that nets with convolutions are tested on


# Data, net and size of a batch.
CASES: dict[str, tuple[str, Callable[[], nn.Module], int]] = {
    "MNIST, 20,000, 784-500-10, 10 steps": ("20,000 images", partial(dense, 784, 500, 10, steps=10), 128),
    "digits, 64-128-10, 10 steps": ("whole digits", partial(dense, 64, 128, 10, steps=10), 64),
    "MNIST by row, 10,000, RLeaky 128": ("rows", partial(recurrent, 28, 128, axis=1), 128),
    "spike timing, 2,000, 20-200-200-10, 50 steps": ("timing", partial(dense, 20, 200, 200, 10, axis=1), 64),
    "points in a plane, 5,000, 5-120-3, 20 steps": ("points in a plane", partial(dense, 5, 120, 3, steps=20), 64),
    "MNIST, 60,000, 784-300-10, 10 steps": ("all images", partial(dense, 784, 300, 10, steps=10), 128),
    "spoken digits, RLeaky 256": ("speech", partial(recurrent, 70, 256, 20, axis=1), 64),
    "hard images, 2,400, four convolutions": ("hard images", DEEP_NETS["four convolutions"], 32),
}
# Net, data and number of images; batches of 64.
CONVOLUTIONS = tuple(
    (net, *images)
    for net in ("tutorial 6", "four convolutions")
    for images in (("10,000 images", 2_000), ("10,000 images", 3_000), ("hard images", 2_000))
)


def mean_membranes(net: nn.Module, inputs: Tensor) -> Tensor:
    return net(inputs).mean(0)


def epoch(net: nn.Module, loader: DataLoader[Any]) -> float:
    """Return the CPU seconds of an epoch of Adam."""
    began = time.process_time()
    train_epochs(net, loader)
    return time.process_time() - began


def measure(bench: Bench, case: str, seed: int) -> dict[str, Any]:
    """Start a net and train it, and train two others without a start; the first pass of each warms up."""
    task, make, size = CASES[case]
    data = load_task(task, bench.places)
    loader = DataLoader(TensorDataset(data.train_inputs, data.train_labels), size, shuffle=True)
    torch.manual_seed(seed)
    net, few = make(), DataLoader(TensorDataset(data.train_inputs[:300], data.train_labels[:300]), size)
    convex_init_(make(), few, forward=mean_membranes, progress=False)
    began = time.process_time()
    convex_init_(net, loader, forward=mean_membranes, seed=seed, progress=False)
    start = time.process_time() - began

    def points(net: nn.Module, longest: int, least: float, seconds: float = 0.0) -> list[tuple[float, float]]:
        """Return seconds and test accuracy before and after each epoch with faster steps, until enough seconds have passed."""
        found = [(seconds, accuracy(net, data.test_inputs, data.test_labels))]
        with fast_steps(net, loader):
            while len(found) <= longest and seconds < least:
                seconds += epoch(net, loader)
                found.append((seconds, accuracy(net, data.test_inputs, data.test_labels)))
        return found

    started = points(net, EPOCHS, math.inf, start)
    alone = points(make(), LONGEST, started[-1][0])
    net = make()
    epoch(net, few)
    seconds = {"start": start, "plain": epoch(net, loader), "fast": (started[-1][0] - start) / EPOCHS}
    return {**seconds, "test": started[0][1], "started": started, "alone": alone}


def measure_convolutions(bench: Bench, net: str, task: str, count: int, seed: int) -> dict[str, Any]:
    """Start a net, train it for two epochs, and refit its readout on all images and on a quarter of them."""
    data = load_task(task, bench.places)
    inputs, tests = (images.view(-1, 1, 28, 28) for images in (data.train_inputs[:count], data.test_inputs[:TESTS]))
    labels = data.test_labels[:TESTS]
    loader, few, quarter = (
        DataLoader(TensorDataset(inputs[:some], data.train_labels[:some]), 64, shuffle=True) for some in (count, 300, count // 4)
    )
    torch.manual_seed(seed)
    made, other = DEEP_NETS[net](), DEEP_NETS[net]()
    train_epochs(other, few)  # warms up, as the one below
    convex_init_(other, few, progress=False)
    began = time.process_time()
    convex_init_(made, loader, seed=seed, progress=False)
    found = {"start": time.process_time() - began, "test": accuracy(made, tests, labels)}
    found |= {"plain": epoch(made, loader), "second": epoch(made, loader), "trained": accuracy(made, tests, labels)}
    weights = deepcopy(made.state_dict())
    for name, part in (("refit", loader), ("quarter", quarter)):
        made.load_state_dict(weights)
        began = time.process_time()
        refit_(made, part)
        found |= {name: time.process_time() - began, f"after {name}": accuracy(made, tests, labels)}
    return found


def cells(bench: Bench) -> Cells:
    """All cases with three seeds."""
    convolutions = {
        f"{net}, {task}, first {count:,} | {seed}": partial(measure_convolutions, bench, net, task, count, seed)
        for seed, (net, task, count) in itertools.product(SEEDS[:2], CONVOLUTIONS)
    }
    return {
        f"{case} | {seed}": partial(measure, bench, case, seed) for case, seed in itertools.product(CASES, SEEDS)
    } | convolutions


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
    found = [cell for case in CASES for cell in store.cells(f"{case} | *")]
    dense_nets = f"{markdown_table(heads, table)}\n\n{machines_line(found)}"
    sections = {"start cost": dense_nets, "start or epochs": gain_table(store), "convolution cost": convolution_table(store)}
    return {"evidence/training.md": sections}


def gain_table(store: Store) -> str:
    """One row a case: test accuracies after a start and some epochs, and after training alone for as long; means over seeds."""
    table, shown = [], []
    for case in CASES:
        shown += (found := store.cells(f"{case} | *"))
        pairs = (compare(found, number) for number in range(EPOCHS + 1))
        table.append((case, *(f"{100 * started:.1f}, {100 * alone:.1f}" for started, alone in pairs)))
    after = ("the start", "the start and an epoch", *(f"the start and {number} epochs" for number in range(2, EPOCHS + 1)))
    return f"{markdown_table(('data and net', *after), table)}\n\n{machines_line(shown)}"


def compare(found: Sequence[Mapping[str, Any]], number: int) -> tuple[float, float]:
    """Return mean test accuracies: after a start and so many epochs, and after the whole epochs that take no more seconds alone."""
    pairs = [(cell["started"][number], cell["alone"]) for cell in found]
    alone = [[test for spent, test in points if spent <= seconds][-1] for (seconds, _), points in pairs]
    return statistics.mean(test for (_, test), _ in pairs), statistics.mean(alone)


def convolution_table(store: Store) -> str:
    """One row a net and set of images: seconds of start and refits, in epochs, and test accuracies; means over seeds."""
    table, shown = [], []
    for net, task, count in CONVOLUTIONS:
        shown += (found := store.cells(f"{net}, {task}, first {count:,} | *"))
        names = "start", "plain", "second", "refit", "quarter", "test", "trained", "after refit", "after quarter"
        start, *epochs, refit, quarter, test, trained, one, other = (
            statistics.mean(cell[name] for cell in found) for name in names
        )
        plain = statistics.mean(epochs)
        costs = (f"{value / plain:.2f}" for value in (start, refit, quarter))
        tests = (f"{100 * value:.1f}" for value in (test, trained, one, other))
        images = f"{'MNIST' if 'hard' not in task else 'hard images'}, {count:,}"
        table.append((net, images, f"{plain:.1f}", *costs, *tests))
    costs = ("start, epochs", "refit, epochs", "refit on a quarter, epochs")
    tests = ("test after the start, %", "after two epochs", "after a refit", "after a refit on a quarter")
    return f"{markdown_table(('net', 'images', 's, epoch', *costs, *tests), table)}\n\n{machines_line(shown)}"


STUDY = Study(
    title="CPU seconds of a start beside those of an epoch, and test accuracies with a start and without",
    minutes=25,
    cells=cells,
    pages=pages,
    fields=(
        *("start", "plain", "fast", "second", "refit", "quarter", "test", "trained", "after refit", "after quarter"),
        *("started", "alone"),
    ),
    needs=("mnist", "speech"),
)
