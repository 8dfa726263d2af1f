"""Readouts by the maximum over time: as the line refines them, with parts of that left out, and the same nets read by their mean.

200 hidden neurons; 5,000 images of MNIST, shown at each of 15 steps or a row a step, and the spoken digits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

import norse.torch as norse
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.nets import OverTime, accuracy
from benchmarks.render import machine_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from benchmarks.tasks import load_task
from snn_recon_plugin import convex_init_

HIDDEN, STEPS, SAMPLES, TESTS = 200, 15, 5_000, 3_000
DATA = {"MNIST": "10,000 images", "rows of MNIST": "rows", "spoken digits": "speech"}
CALIBRATE = "snn_recon_plugin.stages.calibrate"
WAYS: dict[str, dict[str, Any]] = {  # what is changed in the package
    "maximum": {},
    "maximum, one strength": {f"{CALIBRATE}._FACTORS": (1.0,)},
    "maximum, not refined": {f"{CALIBRATE}._SAME": float("inf")},
    "mean": {},
}


class NorseOverTime(nn.Module):
    """Sequences in Norse: Linear, LIF, and an integrator with its own weights."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.layers = norse.SequentialState(nn.Linear(inputs, hidden), norse.LIFCell(), norse.LILinearCell(hidden, classes))

    def forward(self, x: Tensor) -> Tensor:
        state, membranes = None, []
        for step in x.unbind(1):
            membrane, state = self.layers(step, state)
            membranes.append(membrane)
        return torch.stack(membranes)


class Read(nn.Module):
    """A net over time, and what is made of its membranes; an image is shown at every step."""

    def __init__(self, net: nn.Module, by: str) -> None:
        super().__init__()
        self.net, self.by = net, by

    def forward(self, x: Tensor) -> Tensor:
        membranes: Tensor = self.net(x if x.dim() == 3 else x[:, None].expand(-1, STEPS, -1))
        return membranes.mean(0) if self.by == "mean" else membranes.amax(0)


NETS: dict[str, Callable[[int, int, int], nn.Module]] = {"snnTorch": partial(OverTime, recurrent=False), "Norse": NorseOverTime}


def measure(bench: Bench, task: str, library: str, way: str) -> dict[str, Any]:
    """Return test accuracy and CPU seconds of a start."""
    data = load_task(DATA[task], bench.places)
    inputs, labels = data.train_inputs[:SAMPLES], data.train_labels[:SAMPLES]
    torch.manual_seed(0)
    net = Read(NETS[library](inputs.shape[-1], HIDDEN, int(labels.max()) + 1), way.partition(",")[0])
    loader, began = DataLoader(TensorDataset(inputs, labels), 64, shuffle=True), time.process_time()
    with ExitStack() as stack:
        for name, value in WAYS[way].items():
            stack.enter_context(patch(name, value))
        convex_init_(net, loader, progress=False)
    seconds = time.process_time() - began
    return {"test": accuracy(net, data.test_inputs[:TESTS], data.test_labels[:TESTS], net), "seconds": seconds}


def cells(bench: Bench) -> Cells:
    """Each task, library and way."""
    names = [(task, library, way) for task in DATA for library in NETS for way in WAYS]
    return {" | ".join(each): partial(measure, bench, *each) for each in names}


def pages(store: Store) -> dict[str, dict[str, str]]:
    """Test accuracies and seconds, one row a task and library."""
    rows = []
    for task in DATA:
        for library in NETS:
            found = [store[f"{task} | {library} | {way}"] for way in WAYS]
            rows.append((task, library, *(f"{100 * cell['test']:.1f} ({cell['seconds']:.0f} s)" for cell in found)))
    table = markdown_table(("data", "library", *WAYS), rows)
    return {"evidence/temporal.md": {"maximum over time": f"{table}\n\n{machine_line(store.cells()[-1]['machine'])}"}}


STUDY = Study(
    title="readouts by the maximum over time",
    minutes=8,
    cells=cells,
    pages=pages,
    fields=("test", "seconds"),
    packages=("snntorch", "norse"),
    needs=("mnist", "speech"),
)
