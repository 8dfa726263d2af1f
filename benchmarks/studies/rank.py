"""Does the line rank hyperparameters as training does?  24 nets a task, each also trained with the better of two rates."""

from __future__ import annotations

import itertools
import statistics
import time
from functools import partial
from typing import Any

import snntorch as snn
import torch
from scipy.stats import kendalltau, spearmanr
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.methods import Schedule, train
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from benchmarks.tasks import load_task
from snn_recon_plugin import convex_init_, fast_steps
from snn_recon_plugin.demo import Data

TASKS = {
    "digits, a row a step": "digits",
    "digits, shown for 10 steps": "whole digits",
    "spike timing": "timing",
    "MNIST by row": "rows",
}
SPACE = {"hidden": [64, 256], "layers": [1, 2], "beta": [0.5, 0.8, 0.95], "output": [0.8, 0.97]}
SAMPLES, STILL, BATCH = 2_000, 10, 64
SCHEDULE, RATES = Schedule(epochs=8, cycle=True, slope=25.0, batch=BATCH), (3e-3, 1e-2)
SPACES = [dict(zip(SPACE, values, strict=True)) for values in itertools.product(*SPACE.values())]


class Net(nn.Module):
    """Layers of Leaky neurons over the steps of (B, T, D), or over ten steps of (B, D); returns the mean membrane."""

    def __init__(self, inputs: int, hidden: int, layers: int, beta: float, output: float) -> None:
        super().__init__()
        sizes = [inputs, *[hidden] * layers]
        self.synapses = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(sizes))
        self.neurons = nn.ModuleList(snn.Leaky(beta=beta) for _ in self.synapses)
        self.readout, self.output = nn.Linear(hidden, 10), snn.Leaky(beta=output, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        states, state, membranes = [neuron.init_leaky() for neuron in self.neurons], self.output.init_leaky(), []
        for step in x.unbind(1) if x.dim() > 2 else [x] * STILL:
            for number, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                step, states[number] = neuron(synapse(step), states[number])  # noqa: PLW2901
            _, state = self.output(self.readout(step), state)
            membranes.append(state)
        return torch.stack(membranes).mean(0)


def load(bench: Bench, task: str) -> Data:
    """Return the first samples of a task."""
    data = load_task(TASKS[task], bench.places)
    return Data(data.train_inputs[:SAMPLES], data.train_labels[:SAMPLES], data.test_inputs, data.test_labels)


def loader_of(data: Data) -> DataLoader[Any]:
    """Return batches of the training data."""
    return DataLoader(TensorDataset(data.train_inputs, data.train_labels), BATCH, shuffle=True)


def make_net(inputs: int, **values: Any) -> Net:
    """Make a net of some hyperparameters from a seed."""
    torch.manual_seed(0)
    return Net(inputs, **values)


def measure_net(bench: Bench, task: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the accuracies of the line and of training, and CPU seconds."""
    data = load(bench, task)
    make = partial(make_net, data.train_inputs.shape[-1], **values)
    began = time.process_time()
    report = convex_init_(make(), loader_of(data), progress=False)
    line, trained, began = time.process_time() - began, list[float](), time.process_time()
    for rate in RATES:
        net = make()
        with fast_steps(net, loader_of(data)):
            trained.append(train(net, data, SCHEDULE, rate, 0)["test"])
    found = {"heldout": report.accuracy_after, "samples": report.after.samples, "trained": max(trained)}
    return {**found, "line seconds": line, "training seconds": time.process_time() - began}


def cells(bench: Bench) -> Cells:
    """All nets of all tasks."""
    nets = itertools.product(TASKS, SPACES)
    return {f"net | {task} | {name_of(values)}": partial(measure_net, bench, task, values) for task, values in nets}


def name_of(values: dict[str, Any]) -> str:
    """Return the name of a net."""
    return " ".join(map(str, values.values()))


def pages(store: Store) -> dict[str, dict[str, str]]:
    """One row a task."""
    rows = []
    for task in TASKS:
        found = [store[f"net | {task} | {name_of(values)}"] for values in SPACES]
        line, trained = ([cell[key] for cell in found] for key in ("heldout", "trained"))
        accuracies = (trained[line.index(max(line))], max(trained), statistics.median(trained))
        seconds = (sum(cell[key] for cell in found) for key in ("line seconds", "training seconds"))
        correlations = (f"{measure(line, trained).statistic:.2f}" for measure in (spearmanr, kendalltau))
        held = f"{found[0]['samples']:,}"
        figures = (f"{100 * each:.1f}" for each in accuracies)
        rows.append((task, held, *correlations, *figures, *(f"{each:.0f}" for each in seconds)))
    heads = ("task", "held-out samples", "Spearman", "Kendall", "first, %", "best, %", "median, %", "s, line", "s, training")
    return {"evidence/rank.md": {"ranking": f"{markdown_table(heads, rows)}\n\n{machines_line(store.cells())}"}}


STUDY = Study(
    title="hyperparameters ranked by the line and by training",
    minutes=20,
    cells=cells,
    pages=pages,
    fields=("heldout", "samples", "trained", "line seconds", "training seconds"),
    needs=("mnist",),
)
