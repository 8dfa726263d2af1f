"""Does the line rank hyperparameters as training does, and do cheap rivals?  24 nets a task, trained with the better of two rates.

Rivals: a training of the line's seconds, by the accuracy on the fifth of the samples that it leaves out; and how much the spikes of
an untrained net differ between samples (SNASNet, arXiv 2201.10355).
"""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import replace
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
SEEDS, SHOWN = 3, 64  # samples whose spikes are compared
RANKERS = {"the line": "heldout", "training of as many seconds": "short", "spikes of untrained nets": "hamming"}
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


def make_net(inputs: int, seed: int, **values: Any) -> Net:
    """Make a net of some hyperparameters from a seed."""
    torch.manual_seed(seed)
    return Net(inputs, **values)


def measure_net(bench: Bench, task: str, values: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return the accuracies of the line and of training, what rivals rank by, and CPU seconds."""
    data = load(bench, task)
    make = partial(make_net, data.train_inputs.shape[-1], seed, **values)
    began = time.process_time()
    report = convex_init_(make(), loader_of(data), progress=False)
    line, trained, began = time.process_time() - began, list[float](), time.process_time()
    for rate in RATES:
        trained.append(train_fast(make(), data, SCHEDULE, rate, seed))
    full = time.process_time() - began
    epochs = max(1, round(line / full * len(RATES) * SCHEDULE.epochs))
    kept = len(data.train_labels) * 4 // 5
    part = Data(data.train_inputs[:kept], data.train_labels[:kept], data.train_inputs[kept:], data.train_labels[kept:])
    began = time.process_time()
    short = train_fast(make(), part, replace(SCHEDULE, epochs=epochs), RATES[-1], seed)
    found = {"heldout": report.accuracy_after, "samples": report.after.samples, "trained": max(trained), "short": short}
    seconds = {"line seconds": line, "training seconds": full, "short seconds": time.process_time() - began}
    return {**found, **seconds, "short epochs": epochs, "hamming": difference_of_spikes(make(), data.train_inputs[:SHOWN])}


def train_fast(net: Net, data: Data, schedule: Schedule, rate: float, seed: int) -> float:
    """Return the test accuracy after training with faster steps."""
    with fast_steps(net, loader_of(data)):
        return float(train(net, data, schedule, rate, seed)["test"])


def difference_of_spikes(net: Net, inputs: Tensor) -> float:
    """Return log |det K| of the sparsity-aware Hamming distances between samples, summed over layers and steps."""
    kernel = torch.zeros(len(inputs), len(inputs), dtype=torch.double)

    def add(neuron: nn.Module, given: Any, output: tuple[Tensor, Tensor]) -> None:
        nonlocal kernel
        spikes = output[0].double()
        rates = spikes.mean(1, keepdim=True)
        apart = spikes @ (1 - spikes.T) + (1 - spikes) @ spikes.T
        expected = rates * (1 - rates.T) + (1 - rates) * rates.T  # of each neuron, of two random patterns that are as sparse
        kernel = kernel + spikes.shape[1] - (0.5 * apart / expected).nan_to_num(0.0, 0.0, 0.0)

    hooks = [neuron.register_forward_hook(add) for neuron in net.neurons]
    with torch.no_grad():
        net(inputs)
    for hook in hooks:
        hook.remove()
    return float(torch.linalg.slogdet(kernel).logabsdet.nan_to_num(neginf=-1e9))


def cells(bench: Bench) -> Cells:
    """All nets of all tasks, with each seed."""
    nets = itertools.product(range(SEEDS), TASKS, SPACES)
    return {
        f"net | {task} | {name_of(values)} | {seed}": partial(measure_net, bench, task, values, seed) for seed, task, values in nets
    }


def name_of(values: dict[str, Any]) -> str:
    """Return the name of a net."""
    return " ".join(map(str, values.values()))


def pages(store: Store) -> dict[str, dict[str, str]]:
    """A row for each task and way to rank: means over the seeds, and the range of the correlation."""
    rows = []
    for task, (ranker, key) in itertools.product(TASKS, RANKERS.items()):
        measured = []
        for seed in range(SEEDS):
            names = [f"net | {task} | {name_of(values)} | {seed}" for values in SPACES]
            if all(name in store for name in names):
                measured.append([store[name] for name in names])
        if measured:
            rows.append((task, str(len(measured)), ranker, *_summary(measured, key)))
    heads = ("task", "seeds", "ranked by", "Spearman", "(range)", "Kendall", "first, %", "best, %", "median, %", "s", "s, training")
    return {"evidence/rank.md": {"ranking": f"{markdown_table(heads, rows)}\n\n{machines_line(store.cells())}"}}


def _summary(measured: list[list[dict[str, Any]]], key: str) -> list[str]:
    """Return the columns of a way to rank the nets of several seeds."""
    seconds = {"heldout": "line seconds", "short": "short seconds"}
    spearman, kendall, accuracies = list[float](), list[float](), list[tuple[float, float, float]]()
    for cells in measured:
        ranks, trained = ([cell[name] for cell in cells] for name in (key, "trained"))
        spearman.append(spearmanr(ranks, trained).statistic)
        kendall.append(kendalltau(ranks, trained).statistic)
        accuracies.append((trained[ranks.index(max(ranks))], max(trained), statistics.median(trained)))
    means = (statistics.mean(each) for each in zip(*accuracies, strict=True))
    spent = [
        statistics.mean(sum(cell.get(name, 0.0) for cell in cells) for cells in measured)
        for name in (seconds.get(key, ""), "training seconds")
    ]
    span = f"{min(spearman):.2f} to {max(spearman):.2f}"
    figures = (f"{100 * each:.1f}" for each in means)
    return [
        f"{statistics.mean(spearman):.2f}",
        span,
        f"{statistics.mean(kendall):.2f}",
        *figures,
        *(f"{each:.0f}" for each in spent),
    ]


STUDY = Study(
    title="hyperparameters ranked by the line and by training",
    minutes=60,
    cells=cells,
    pages=pages,
    fields=(
        "heldout",
        "samples",
        "trained",
        "short",
        "hamming",
        "short epochs",
        *(f"{each} seconds" for each in ("line", "training", "short")),
    ),
    needs=("mnist",),
)
