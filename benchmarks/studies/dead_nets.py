"""Nets that learn nothing: six as in public questions, before and after a start, and trained on, against a healthy net.

Images are two handwritten digits of random colours on a random ground with noise, 16 x 16 pixels, at which an epoch takes seconds.
The label is that of the brighter digit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import snntorch as snn
import torch
from snntorch import surrogate
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.methods import Schedule, train
from benchmarks.nets import Stepped, accuracy
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Places, Study
from benchmarks.tasks import SMALL, load_task
from snn_recon_plugin import convex_init_, diagnose, hidden_init_

STEPS, BETA, SLOPE = 4, 0.9, 10.0
BATCH, EPOCHS, RATE, SEED = 32, 16, 3e-3, 0
NINE = (8, 8, "M", 12, 12, "M", 16, 16, 16, "M")  # channels, and pools, as in VGG-9
FOUR = (8, "M", 12, "M", 16, "M", 24)


def vgg(plan: tuple[int | str, ...], beta: float = BETA, threshold: float = 1.0, weights: float | None = 1.0) -> Stepped:
    """Convolutions of 3 x 3, each before Leaky neurons, pools of 2 x 2, a hidden dense layer, and a readout of membranes.

    Args:
        plan: channels of each convolution, and "M" for a pool.
        beta: share of the membrane that is kept from step to step.
        threshold: of the hidden neurons.
        weights: factor of the hidden weights, which are normal with a variance of 2 by the number of inputs (Kaiming); None leaves
            torch's default, a sixth of that variance.
    """
    layers: list[nn.Module] = []
    channels, side = 3, SMALL
    surrogate_gradient = surrogate.fast_sigmoid(slope=SLOPE)
    leaky = partial(snn.Leaky, beta=beta, threshold=threshold, spike_grad=surrogate_gradient, init_hidden=True)
    for each in plan:
        if isinstance(each, int):
            layers += nn.Conv2d(channels, each, 3, padding=1), leaky()
            channels = each
        else:
            layers, side = [*layers, nn.MaxPool2d(2)], side // 2
    net = Stepped([*layers, nn.Flatten(), nn.Linear(channels * side * side, 64), leaky()], 64, BETA, STEPS)
    for layer in net.features if weights is not None else ():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight).data.mul_(weights)
            nn.init.zeros_(layer.bias)
    return net


@dataclass(frozen=True)
class Dead:
    """A net that learns nothing, and the healthy one that it would be without its fault."""

    make: Callable[[], Stepped]
    healthy: str


HEALTHY: dict[str, Callable[[], Stepped]] = {
    "nine layers": partial(vgg, NINE, weights=1.6),
    "four convolutions": partial(vgg, FOUR),
}
DEAD = {
    "four convolutions, threshold 10": Dead(partial(vgg, FOUR, threshold=10.0), "four convolutions"),
    "four convolutions, beta 0.05": Dead(partial(vgg, FOUR, beta=0.05, weights=None), "four convolutions"),
    "four convolutions, weights / 20": Dead(partial(vgg, FOUR, weights=0.05), "four convolutions"),
    "four convolutions, weights x 40": Dead(partial(vgg, FOUR, weights=40.0), "four convolutions"),
    "VGG-9, torch's weights": Dead(partial(vgg, NINE, weights=None), "nine layers"),
    "VGG-9, weights x 40": Dead(partial(vgg, NINE, weights=40.0), "nine layers"),
}


# -- starts and training ---------------------------------------------------------------------------------------------------


# Head of the table's column, and what is done.
STARTS: dict[str, tuple[str, Callable[[Stepped, TensorDataset], object]]] = {
    "none": ("as it is", lambda net, train: None),
    "hidden_init_": ("`hidden_init_`", lambda net, train: hidden_init_(net, DataLoader(train, BATCH))),
    "convex_init_": ("`convex_init_`", lambda net, train: convex_init_(net, DataLoader(train, BATCH), progress=False)),
}


def measure(make: Callable[[], Stepped], start: str, places: Places) -> dict[str, Any]:
    """Return the diagnosis of the net, and test accuracies: with the start, and after one cycle of training with an EMA."""
    data = load_task("small colour images", places)
    samples = TensorDataset(data.train_inputs, data.train_labels)
    torch.manual_seed(SEED)
    net = make()
    finding = diagnose(net, DataLoader(samples, BATCH), max_samples=64).findings[0] if start == "none" else ""
    began = time.process_time()
    STARTS[start][1](net, samples)
    seconds, before = time.process_time() - began, accuracy(net, data.test_inputs, data.test_labels)
    found = train(net, data, Schedule(EPOCHS, cycle=True, tests=(), batch=BATCH), RATE, SEED)
    return {"finding": str(finding), "seconds": seconds, "tests": [before, found["test"]], "epoch": found["cpu_seconds"] / EPOCHS}


def cells(bench: Bench) -> Cells:
    """Every dead net by every start, and the healthy nets trained alone."""
    nets = {**{name: dead.make for name, dead in DEAD.items()}, **HEALTHY}
    pairs = [(name, start) for start in STARTS for name in nets if start == "none" or name in DEAD]
    return {f"{name} | {start}": lambda name=name, start=start: measure(nets[name], start, bench.places) for name, start in pairs}


# -- page ------------------------------------------------------------------------------------------------------------------


def table(store: Store) -> str:
    """One row a dead net: test accuracy at the start and after training; a dash where nothing was measured."""
    starts, rows = [start for start in STARTS if store.named(f"* | {start}")], []
    for name, dead in DEAD.items():
        healthy = store[f"{dead.healthy} | none"]["tests"][-1]
        rows.append((name, *(_span(store, f"{name} | {start}") for start in starts), f"{100 * healthy:.1f}"))
    return markdown_table(("net", *(STARTS[start][0] for start in starts), "without the fault"), rows)


def _span(store: Store, cell: str) -> str:
    tests = store[cell]["tests"] if cell in store else ()
    return f"{100 * tests[0]:.0f} → {100 * tests[-1]:.1f}" if tests else "–"


def findings(store: Store) -> str:
    """What the diagnosis says of each dead net, without what to do."""
    return "\n".join(f"- {name}: {store[f'{name} | none']['finding'].split(' -> ')[0]}." for name in DEAD)


def pages(store: Store) -> dict[str, dict[str, str]]:
    """The table, and what a diagnosis says of each net."""
    machine = machines_line(store.cells())
    return {
        "hidden.md": {"dead nets": f"{table(store)}\n\n{machine}"},
        "evidence/hidden.md": {"dead findings": findings(store)},
    }


STUDY = Study(
    title="nets that learn nothing, after a start and sixteen epochs",
    minutes=25,
    cells=cells,
    pages=pages,
    fields=("finding", "seconds", "tests", "epoch"),
    needs=("mnist",),
)
