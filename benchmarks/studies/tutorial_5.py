"""snnTorch's tutorial 5 on MNIST, alone, with faster steps, and with the one line.

784-1000-10, beta 0.95, 25 steps, spiking outputs; cross-entropy of the membranes at every step, Adam at 5e-4, batches of 128.
Classes are decided by spike counts.  All train on the same 55,000 images of a seed; 5,000 are for validation.  Seconds are CPU
seconds of one thread without those of tests, which all methods have eight of.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from benchmarks.comparison import comparison
from benchmarks.nets import accuracy, tutorial_5
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from benchmarks.tasks import load_task
from snn_recon_plugin import convex_init_, fast_steps

EPOCHS, TESTS_AN_EPOCH, SEEDS = 2, 4, 3
RATE, BATCH, TRAIN, VALIDATION = 5e-4, 128, 55_000, 5_000
Loader = DataLoader[Any]


def loss_of(output: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy of the membranes, summed over the steps."""
    return torch.stack([nn.functional.cross_entropy(step, labels) for step in output[1]]).sum()


class Clock:
    """Seconds since the beginning, without those of tests, and the test accuracy at each test."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.points: list[dict[str, float]] = []
        self.began, self.testing = time.process_time(), 0.0

    def test(self, net: nn.Module) -> None:
        now = time.process_time()
        self.points.append({"seconds": now - self.began - self.testing, "test": accuracy(net, self.images, self.labels)})
        self.testing += time.process_time() - now


def train_alone(train: Loader, validation: Loader, clock: Clock, fast: bool = False) -> None:
    """The tutorial's loop."""
    net = tutorial_5()
    clock.test(net)
    if fast:
        fast_steps(net, train)
    loop(net, torch.optim.Adam(net.parameters(), lr=RATE), train, lambda: clock.test(net))


def train_from_line(train: Loader, validation: Loader, clock: Clock) -> None:
    """The tutorial's loop with the one line before it, faster steps and the line's guard."""
    net = tutorial_5()
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    clock.test(net)
    report = convex_init_(net, train, progress=False)
    guard = report.protect(optimizer, validation, fast=True)
    clock.test(net)

    def test() -> None:
        with guard.evaluated():
            clock.test(net)

    loop(net, optimizer, train, test)
    guard.close()


def loop(net: nn.Module, optimizer: torch.optim.Optimizer, train: Loader, test: Callable[[], None]) -> None:
    """Train, and test four times an epoch."""
    every = len(train) // TESTS_AN_EPOCH
    for _ in range(EPOCHS):
        for step, (inputs, labels) in enumerate(train, 1):
            optimizer.zero_grad()
            loss_of(net(inputs), labels).backward()
            optimizer.step()
            if step % every == 0 and step // every <= TESTS_AN_EPOCH:
                test()


METHODS: dict[str, Callable[[Loader, Loader, Clock], None]] = {
    "training alone": train_alone,
    "training with fast steps": partial(train_alone, fast=True),
    "the one line, then training": train_from_line,
}


def measure(bench: Bench, name: str, seed: int) -> dict[str, Any]:
    """Train by one method; those of a seed begin with the same net, and share the order of batches."""
    data = load_task("all images", bench.places)
    everything, draw = TensorDataset(data.train_inputs, data.train_labels), torch.Generator().manual_seed(seed)
    images, held = random_split(everything, [len(everything) - VALIDATION, VALIDATION], draw)
    train = DataLoader(images, BATCH, shuffle=True, generator=torch.Generator().manual_seed(seed))
    pl.seed_everything(seed, verbose=False)
    clock = Clock(data.test_inputs, data.test_labels)
    METHODS[name](train, DataLoader(held, 500), clock)
    return {"points": clock.points}


def cells(bench: Bench) -> Cells:
    """The ways to train, a seed at a time."""
    return {f"{name} | {seed}": partial(measure, bench, name, seed) for seed, name in itertools.product(range(SEEDS), METHODS)}


def mean_points(store: Store, name: str) -> list[dict[str, float]]:
    """Return seconds and test accuracy at each test, the means over the seeds."""
    runs = zip(*(cell["points"] for cell in store.cells(f"{name} | *")), strict=True)
    return [{key: statistics.fmean(point[key] for point in points) for key in ("seconds", "test")} for points in runs]


def tutorial_table(store: Store) -> str:
    """Return accuracy and seconds of tutorial 5 after the one line and after each epoch."""

    def text(point: dict[str, float]) -> str:
        return f"{100 * point['test']:.1f} % ({point['seconds']:.0f} s)"

    rows = []
    for name in METHODS:
        points = mean_points(store, name)
        has_line = name == "the one line, then training"  # its first point is of the line
        after = (text(points[epoch * TESTS_AN_EPOCH + has_line]) for epoch in range(1, EPOCHS + 1))
        rows.append((name, text(points[1]) if has_line else "", *after))
    return markdown_table(("training", "after the line", *(f"after epoch {epoch}" for epoch in range(1, EPOCHS + 1))), rows)


def pages(store: Store) -> dict[str, dict[str, str]]:
    """The comparison with other methods, and the table of tutorial 5."""
    seeds = len(store.cells("training alone | *"))
    about = f"{TRAIN:,} training images, seeds: {seeds}; CPU seconds of one thread. {machines_line(store.cells())}"
    return {
        "evidence/index.md": {"comparison": comparison(store)},
        "evidence/training.md": {"tutorial 5": f"{tutorial_table(store)}\n\n{about}"},
    }


STUDY = Study(
    title="snnTorch's tutorial 5 on MNIST: alone, with faster steps, with the line",
    minutes=25,
    cells=cells,
    pages=pages,
    fields=("points",),
    packages=("snntorch", "lightning"),
    needs=("mnist",),
)
