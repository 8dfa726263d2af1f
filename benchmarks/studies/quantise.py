"""Readouts of few bits: quantize_readout_ against rounding, with and without a search of scales, and training that rounds.

All start from the same net, whose readout is solved in float. MNIST: 5,000 images, 784-256-10, trained by Adam. Spoken digits: 256
recurrent neurons as the line builds them. The trained rival (quantisation-aware training, straight-through gradients) begins at the
rounded readout, trains hidden layers too, and gets the best of three rates by the test data, which favours it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.methods import Schedule, train
from benchmarks.nets import SEQUENCE_NETS, SLOPE, Steps, accuracy, dense
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from benchmarks.tasks import load_task
from snn_recon_plugin import convex_init_, quantize_readout_
from snn_recon_plugin.convex.grid import Grid
from snn_recon_plugin.demo import Data

SAMPLES, TESTS, HIDDEN, EPOCHS, RATE = 5_000, 2_000, 256, 5, 2e-3
BITS, SEEDS, QAT_RATES = (8, 4, 3, 2), {"MNIST": 3, "spoken digits": 6}, (1e-4, 3e-4, 1e-3)
NAMES = {"MNIST": "10,000 images", "spoken digits": "speech"}
SHARES = torch.linspace(0.05, 1.0, 96)  # of the widest scale, searched


class Rounded(nn.Module):
    """Parametrisation that rounds a weight to a grid; its gradient is that of the weight in float."""

    def __init__(self, grid: Grid, scale: Tensor) -> None:
        super().__init__()
        self.grid, self.scale = grid, scale[:, None]

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.scale * self.grid.round(weight / self.scale) - weight).detach()


def search_scale(weight: Tensor, grid: Grid) -> Tensor:
    """Return the scale of each output with the least squared error of its weights."""
    scales = SHARES[:, None] * grid.widest(weight)
    rounded = scales[..., None] * grid.round(weight / scales[..., None])
    return scales.gather(0, (rounded - weight).square().sum(2).argmin(0)[None])[0]


def round_nearest(net: Steps, data: Data, bits: int, *, search: bool) -> Steps:
    """Round the readout's weights, each to the nearest of the grid."""
    readout, grid = net.synapses[-1], Grid(bits)
    weight = readout.weight.detach()
    scale = search_scale(weight, grid) if search else grid.widest(weight)
    readout.weight.data = Rounded(grid, scale)(weight)
    return net


def train_rounded(net: Steps, data: Data, bits: int) -> Steps:
    """Train an epoch with a readout that rounds; the best rate by the test data."""
    grid, found = Grid(bits), []
    for rate in QAT_RATES:
        trained = copy.deepcopy(net)
        readout = trained.synapses[-1]
        scale = search_scale(readout.weight.detach(), grid)
        readout.weight.data = Rounded(grid, scale)(readout.weight.detach())
        parametrize.register_parametrization(readout, "weight", Rounded(grid, scale))
        found.append((train(trained, data, Schedule(1, slope=SLOPE), rate, 0)["test"], trained))
    return max(found, key=lambda each: each[0])[1]


def solve_rounded(net: Steps, data: Data, bits: int) -> Steps:
    quantize_readout_(net, loader_of(data), bits=bits, progress=False)
    return net


METHODS: dict[str, Callable[[Steps, Data, int], Steps]] = {
    "rounded": partial(round_nearest, search=False),
    "rounded, scales searched": partial(round_nearest, search=True),
    "trained for an epoch": train_rounded,
    "quantize_readout_": solve_rounded,
}


def loader_of(data: Data) -> DataLoader[Any]:
    return DataLoader(TensorDataset(data.train_inputs, data.train_labels), 128, shuffle=True)


def trained_net(task: str, data: Data, seed: int) -> Steps:
    """Return a net as a user has it before quantisation."""
    torch.manual_seed(seed)
    if task == "MNIST":
        net = dense(784, HIDDEN, 10)
        train(net, data, Schedule(EPOCHS, cycle=True, slope=SLOPE), RATE, seed)
    else:
        net = SEQUENCE_NETS["snntorch-recurrent"](data.train_inputs.shape[-1], HIDDEN, int(data.train_labels.max()) + 1)
        convex_init_(net, loader_of(data), progress=False, seed=seed)
    return net


def measure(bench: Bench, task: str, seed: int) -> dict[str, Any]:
    """Return test accuracies and CPU seconds of all methods at all bits, on one net."""
    whole = load_task(NAMES[task], bench.places)
    data = Data(whole.train_inputs[:SAMPLES], whole.train_labels[:SAMPLES], whole.test_inputs[:TESTS], whole.test_labels[:TESTS])
    net, tested = trained_net(task, data, seed), (data.test_inputs, data.test_labels)
    own = accuracy(net, *tested)
    convex_init_(net, loader_of(data), hidden="keep", write="always", progress=False).write_solved()
    tests: dict[str, dict[str, float]] = {name: {} for name in METHODS}
    seconds: dict[str, dict[str, float]] = {name: {} for name in METHODS}
    for name, method in METHODS.items():
        for bits in BITS:
            began = time.process_time()
            rounded = method(copy.deepcopy(net), data, bits)
            seconds[name][str(bits)] = time.process_time() - began
            tests[name][str(bits)] = accuracy(rounded, *tested)
    return {"own": own, "float": accuracy(net, *tested), "tests": tests, "seconds": seconds}


def cells(bench: Bench) -> Cells:
    """Each task and seed."""
    return {f"{task} | {seed}": partial(measure, bench, task, seed) for task, seeds in SEEDS.items() for seed in range(seeds)}


def pages(store: Store) -> dict[str, dict[str, str]]:
    """Mean test accuracies and seconds over seeds, one row a task and method."""
    rows = []
    for task, seeds in SEEDS.items():
        found = [store[f"{task} | {seed}"] for seed in range(seeds)]
        rows.append((task, "float", *[f"{100 * fmean(cell['float'] for cell in found):.1f}"] * len(BITS), ""))
        for name in METHODS:
            means = [100 * fmean(cell["tests"][name][str(bits)] for cell in found) for bits in BITS]
            spent = fmean(cell["seconds"][name][str(bits)] for cell in found for bits in BITS)
            rows.append((task, name, *(f"{mean:.1f}" for mean in means), f"{spent:.1f}"))
    table = markdown_table(("data", "readout", *(f"{bits} bits" for bits in BITS), "CPU seconds"), rows)
    return {"after.md": {"fewer bits": f"{table}\n\n{machines_line(store.cells())}"}}


STUDY = Study(
    title="readouts of few bits",
    minutes=12,
    cells=cells,
    pages=pages,
    fields=("own", "float", "tests", "seconds"),
    needs=("mnist", "speech"),
)
