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
from scipy.stats import kendalltau, rankdata, spearmanr
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.methods import Schedule, train
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from benchmarks.tasks import load_task
from snn_recon_plugin import convex_init_, fast_steps
from snn_recon_plugin.demo import Data

DENSE, RECURRENT, CONVOLUTIONS = "dense", "recurrent", "convolutions"
TASKS = {  # of tasks.py, and the kind of net
    "digits, a row a step": ("digits", DENSE),
    "digits, shown for 10 steps": ("whole digits", DENSE),
    "spike timing": ("timing", DENSE),
    "MNIST by row": ("rows", DENSE),
    "digits by row, recurrent": ("digits", RECURRENT),
    "hard images, convolutions": ("hard images", CONVOLUTIONS),
}
SPACE = {"hidden": [64, 256], "layers": [1, 2], "beta": [0.5, 0.8, 0.95], "output": [0.8, 0.97]}
SAMPLES, BATCH = 2_000, 64
STILL, STILL_IMAGES, SIDE = 10, 4, 28  # steps of vectors and of images, and pixels of an image's side
SCHEDULE, RATES = Schedule(epochs=8, cycle=True, slope=25.0, batch=BATCH), (3e-3, 1e-2)
SEEDS, SHOWN = 3, 64  # samples whose spikes are compared
LINE, SHORT, SPIKES, BOTH, AGAIN = (
    *("the line", "training of as many seconds", "spikes of untrained nets"),
    *("the line and spikes, ranks added", "the whole training, another seed"),
)
FIELDS = {LINE: "heldout", SHORT: "short", SPIKES: "hamming"}
SPACES = [dict(zip(SPACE, values, strict=True)) for values in itertools.product(*SPACE.values())]


class Net(nn.Module):
    """Layers of neurons over the steps of (B, T, D), or over steps of a still (B, D) or (B, C, H, W); returns the mean membrane.

    Convolutions have an eighth of ``hidden`` as channels, and each halves the image.
    """

    def __init__(self, kind: str, inputs: int, hidden: int, layers: int, beta: float, output: float) -> None:
        super().__init__()
        self.recurrent, features = kind == RECURRENT, hidden
        if kind == CONVOLUTIONS:
            channels, features = [1, *[hidden // 8] * layers], hidden // 8 * (SIDE >> layers) ** 2
            synapses: list[nn.Module] = [
                nn.Sequential(nn.Conv2d(*pair, 3, padding=1), nn.MaxPool2d(2)) for pair in itertools.pairwise(channels)
            ]
        else:
            synapses = [nn.Linear(*pair) for pair in itertools.pairwise([inputs, *[hidden] * layers])]
        self.synapses = nn.ModuleList(synapses)
        one = partial(snn.RLeaky, linear_features=hidden) if self.recurrent else snn.Leaky
        self.neurons = nn.ModuleList(one(beta=beta) for _ in synapses)
        self.readout, self.output = nn.Linear(features, 10), snn.Leaky(beta=output, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        states: list[Any] = [neuron.init_rleaky() if self.recurrent else (neuron.init_leaky(),) for neuron in self.neurons]
        state, membranes = self.output.init_leaky(), []
        for step in x.unbind(1) if x.dim() == 3 else [x] * (STILL if x.dim() == 2 else STILL_IMAGES):
            for number, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                step, membrane = neuron(synapse(step), *states[number])  # noqa: PLW2901
                states[number] = (step, membrane) if self.recurrent else (membrane,)
            _, state = self.output(self.readout(step.flatten(1)), state)
            membranes.append(state)
        return torch.stack(membranes).mean(0)


def load(bench: Bench, task: str) -> Data:
    """Return the first samples of a task."""
    data = load_task(TASKS[task][0], bench.places)
    return Data(data.train_inputs[:SAMPLES], data.train_labels[:SAMPLES], data.test_inputs, data.test_labels)


def loader_of(data: Data) -> DataLoader[Any]:
    """Return batches of the training data."""
    return DataLoader(TensorDataset(data.train_inputs, data.train_labels), BATCH, shuffle=True)


def make_net(kind: str, inputs: int, seed: int, **values: Any) -> Net:
    """Make a net of some hyperparameters from a seed."""
    torch.manual_seed(seed)
    return Net(kind, inputs, **values)


def measure_net(bench: Bench, task: str, values: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return the accuracies of the line and of training, what rivals rank by, and CPU seconds."""
    data = load(bench, task)
    make = partial(make_net, TASKS[task][1], data.train_inputs.shape[-1], seed, **values)
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
        spikes = output[0].flatten(1).double()
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


def scores_of(seeds: list[list[dict[str, Any]]], ranker: str, seed: int) -> list[float]:
    """Return what a way to rank gives the nets of a seed, more for better."""
    if ranker in FIELDS:
        return [cell[FIELDS[ranker]] for cell in seeds[seed]]
    if ranker == AGAIN:
        return [cell["trained"] for cell in seeds[(seed + 1) % len(seeds)]]
    both = (rankdata(scores_of(seeds, each, seed)) for each in (LINE, SPIKES))
    return [float(one + other) for one, other in zip(*both, strict=True)]


def pages(store: Store) -> dict[str, dict[str, str]]:
    """A row for each task and way to rank: means over the seeds, and the range of the correlation."""
    rows = []
    for task, ranker in itertools.product(TASKS, (*FIELDS, BOTH, AGAIN)):
        names = ([f"net | {task} | {name_of(values)} | {seed}" for values in SPACES] for seed in range(SEEDS))
        seeds = [[store[name] for name in nets] for nets in names if all(name in store for name in nets)]
        if seeds and (ranker != AGAIN or len(seeds) > 1):
            rows.append((task, str(len(seeds)), ranker, *_summary(seeds, ranker)))
    heads = ("Spearman", "(range)", "Kendall", "first, %", "best, %", "median, %", "first after the line, %", "s", "s, training")
    table = markdown_table(("task", "seeds", "ranked by", *heads), rows)
    return {"evidence/rank.md": {"ranking": f"{table}\n\n{machines_line(store.cells())}"}}


def _summary(seeds: list[list[dict[str, Any]]], ranker: str) -> list[str]:
    """Return the columns of a way to rank the nets of several seeds."""
    spearman, kendall, accuracies = list[float](), list[float](), list[tuple[float, ...]]()
    for number, cells in enumerate(seeds):
        scores, trained = scores_of(seeds, ranker, number), [cell["trained"] for cell in cells]
        spearman.append(spearmanr(scores, trained).statistic)
        kendall.append(kendalltau(scores, trained).statistic)
        first = scores.index(max(scores))
        accuracies.append((trained[first], max(trained), statistics.median(trained), cells[first]["heldout"]))
    figures = (f"{100 * statistics.mean(each):.1f}" for each in zip(*accuracies, strict=True))
    fields = {LINE: ["line seconds"], SHORT: ["short seconds"], BOTH: ["line seconds"], AGAIN: ["training seconds"]}
    spent = [
        statistics.mean(sum(cell[name] for cell in cells for name in names) for cells in seeds)
        for names in (fields.get(ranker, []), ["training seconds"])
    ]
    range_of = f"{min(spearman):.2f} to {max(spearman):.2f}"
    means = (f"{statistics.mean(each):.2f}" for each in (spearman, kendall))
    return [next(means), range_of, next(means), *figures, *(f"{each:.0f}" for each in spent)]


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
