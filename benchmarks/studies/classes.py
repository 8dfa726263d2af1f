"""New classes one by one on the hidden layers of the first ones, and few samples a class, against peers.

MNIST: 4,000 images, classes 0 to 4, then 5 to 9 one by one; 256 hidden neurons over 10 steps.  Spoken digits: ten English words,
then ten German ones one by one; 200 hidden neurons.  The start builds the hidden layers on the first classes alone.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.neighbors import NearestCentroid
from torch import Tensor, nn

from benchmarks.nets import SEQUENCE_NETS, Steps, accuracy, dense, train_epochs
from benchmarks.render import machines_line, markdown_table
from benchmarks.solvers.problems import filtered_spikes
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Places, Study
from benchmarks.tasks import load_task
from snn_recon_plugin import convex_init_, extend_, statistics_of
from snn_recon_plugin.demo import Data, build_network

SEEDS, BATCH, JOINT_EPOCHS = 3, 64, 3
TASKS = {"MNIST": ("10,000 images", 4_000, 2_000, 5), "spoken digits": ("speech", None, None, 10)}  # samples, tests, first classes
FEW = {"digits": ("whole digits", 256), "MNIST": ("10,000 images", 500)}  # task and hidden neurons of nets as they come
COUNTS, FEW_TESTS, FEW_STEPS = (1, 5, 10), 2_000, 25  # steps of filtered_spikes


@lru_cache(maxsize=1)
def started(name: str, seed: int, places: Places) -> tuple[Steps, Data, int]:
    """Return a net of the first classes, started on them, all data, and the number of first classes."""
    task, samples, tests, first = TASKS[name]
    data = load_task(task, places)
    data = Data(data.train_inputs[:samples], data.train_labels[:samples], data.test_inputs[:tests], data.test_labels[:tests])
    torch.manual_seed(seed)
    net = dense(784, 256, first, steps=10) if name == "MNIST" else SEQUENCE_NETS["snntorch-feedforward"](70, 200, first)
    convex_init_(net, batches(data, range(first)), seed=seed, progress=False)
    return net, data, first


def batches(data: Data, classes: range) -> list[tuple[Tensor, Tensor]]:
    """Return the training samples of some classes, shuffled."""
    chosen = torch.isin(data.train_labels, torch.tensor(classes)).nonzero()[:, 0]
    chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))]
    return [(data.train_inputs[part], data.train_labels[part]) for part in chosen.split(BATCH)]


def widened(net: Steps, outputs: int) -> Steps:
    """Return a copy with more outputs, whose rows are torch's fresh ones."""
    net = copy.deepcopy(net)
    old = net.synapses[-1]
    new = nn.Linear(old.in_features, outputs)
    with torch.no_grad():
        new.weight[: old.out_features], new.bias[: old.out_features] = old.weight, old.bias
    net.synapses[-1] = new
    return net


Step = Callable[[Steps, Data, range, int, dict[str, Any]], Steps]  # net, data, classes so far, new class, what is kept


def by_extension(net: Steps, data: Data, seen: range, label: int, kept: dict[str, Any]) -> Steps:
    """Extend by one class, from the statistics of the others."""
    if "statistics" not in kept:
        kept["statistics"] = statistics_of(net, batches(data, seen))
    result = extend_(net, batches(data, range(label, label + 1)), statistics=kept["statistics"])
    kept["statistics"] = result.statistics
    kept.setdefault("before", (result.footprint[0], result.operations[0]))
    kept["after"] = result.footprint[1], result.operations[1]
    return net


def by_prototypes(net: Steps, data: Data, seen: range, label: int, kept: dict[str, Any]) -> Steps:
    """Write a linear readout that decides for the nearest class mean."""
    sums = statistics_of(widened(net, label + 1), batches(data, range(label + 1)))
    means = (sums.sums[0] / torch.tensor(sums.counts)).T.float()
    net = widened(net, label + 1)
    with torch.no_grad():
        net.synapses[-1].weight.copy_(2 * means[:, :-1])
        net.synapses[-1].bias.copy_(-means[:, :-1].square().sum(1) / means[:, -1])
    return net


def by_tuning(net: Steps, data: Data, seen: range, label: int, kept: dict[str, Any]) -> Steps:
    """Train on the new class alone for an epoch."""
    net = widened(net, label + 1)
    train_epochs(net, batches(data, range(label, label + 1)), 1)
    return net


def by_joint_solve(net: Steps, data: Data, seen: range, label: int, kept: dict[str, Any], epochs: int = 0) -> Steps:
    """Solve the readout on the samples of all classes so far, and train on; the last class only, since nothing is kept."""
    net, loader = widened(net, label + 1), batches(data, range(label + 1))
    if label == len(torch.unique(data.train_labels)) - 1 or not epochs:
        convex_init_(net, loader, hidden="keep", write="always", progress=False)
        train_epochs(net, loader, epochs)
    return net


METHODS: dict[str, Step] = {
    "`extend_`": by_extension,
    "nearest class mean": by_prototypes,
    "Adam on the new class": by_tuning,
    "joint solve of all samples": by_joint_solve,
    f"joint solve, {JOINT_EPOCHS} epochs on all samples": partial(by_joint_solve, epochs=JOINT_EPOCHS),
}


def one_by_one(name: str, method: str, seed: int, places: Places) -> dict[str, Any]:
    """Return test accuracies of all, the first and the new classes after each class, and the seconds of all steps."""
    net, data, first = started(name, seed, places)
    net, kept, seconds = copy.deepcopy(net), {}, 0.0
    points: list[list[float]] = []
    for label in range(first, int(data.train_labels.max()) + 1):
        began = time.process_time()
        net = METHODS[method](net, data, range(label), label, kept)
        seconds += time.process_time() - began
        parts = [data.test_labels <= label, data.test_labels < first, (data.test_labels >= first) & (data.test_labels <= label)]
        points.append([accuracy(net, data.test_inputs[part], data.test_labels[part]) for part in parts])
    size = {"before": kept["before"], "after": kept["after"]} if "after" in kept else {}
    return {"points": points, "seconds": seconds, **size}


def few(name: str, count: int, seed: int, places: Places) -> dict[str, Any]:
    """Return test accuracies of readouts of so many samples a class, on the features of a net as it comes."""
    task, hidden = FEW[name]
    data, draw = load_task(task, places), torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.train_labels), generator=draw)
    chosen = torch.cat([order[data.train_labels[order] == label][:count] for label in range(10)])
    chosen = chosen[torch.randperm(len(chosen), generator=draw)]
    inputs, labels = data.train_inputs[chosen], data.train_labels[chosen]
    test, wanted = data.test_inputs[:FEW_TESTS], data.test_labels[:FEW_TESTS]
    torch.manual_seed(seed)
    net = build_network(inputs.shape[1], hidden, 10, FEW_STEPS)
    features, unseen = (filtered_spikes(net, part).numpy() for part in (inputs, test))
    found = {"nearest class mean": float(NearestCentroid().fit(features, labels).score(unseen, wanted))}
    if count > 1:
        warnings.filterwarnings("ignore")
        peer = LogisticRegressionCV(max_iter=1000).fit(features, labels)
        found["LogisticRegressionCV"] = float(peer.score(unseen, wanted))
    for kind in ("keep", "auto"):
        solved = copy.deepcopy(net)
        convex_init_(solved, [(inputs, labels)], hidden=kind, write="always", progress=False)
        found[kind] = accuracy(solved, test, wanted)
    return {"test": found}


def cells(bench: Bench) -> Cells:
    """Each task, seed and method; each data set, number of samples and seed."""
    orders = {
        f"order | {name} | {method} | {seed}": partial(one_by_one, name, method, seed, bench.places)
        for name in TASKS
        for seed in range(SEEDS)
        for method in METHODS
    }
    fews = {
        f"few | {name} | {count} | {seed}": partial(few, name, count, seed, bench.places)
        for name in FEW
        for count in COUNTS
        for seed in range(SEEDS)
    }
    return {**fews, **orders}


def spread(values: list[float]) -> str:
    """Return the mean of shares in percent, and their standard deviation if there are several."""
    error = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{error}" if values else ""


def pages(store: Store) -> dict[str, dict[str, str]]:
    """Final accuracies by method, accuracies after each class of MNIST, sizes, and accuracies of few samples."""
    last, each, samples, sizes = [], [], [], []
    for name, method in itertools.product(TASKS, METHODS):
        found = store.cells(f"order | {name} | {method} | *")
        if not found:
            continue
        ends = [cell["points"][-1] for cell in found]
        seconds = statistics.fmean(cell["seconds"] for cell in found)
        last.append((name, method, *(spread([end[part] for end in ends]) for part in range(3)), str(len(found)), f"{seconds:.1f}"))
        if name == "MNIST" and "epochs" not in method:
            means = (statistics.fmean(cell["points"][step][0] for cell in found) for step in range(5))
            each.append((method, *(f"{100 * mean:.1f}" for mean in means)))
        if method == "`extend_`":
            sizes.append((name, *(f"{found[0][key][part]:,.0f}" for part in (0, 1) for key in ("before", "after"))))
    names = {"keep": '`convex_init_(hidden="keep")`', "auto": "`convex_init_`"}
    for name, method in itertools.product(FEW, ("nearest class mean", "LogisticRegressionCV", *names)):
        rows = [store.cells(f"few | {name} | {count} | *") for count in COUNTS]
        shown = (spread([cell["test"][method] for cell in row if method in cell["test"]]) for row in rows)
        samples.append((name, names.get(method, method), *shown))
    machine = machines_line(store.cells())
    heads = ("all classes", "first classes", "new classes", "seeds", "CPU seconds")
    orders = markdown_table(("data", "test accuracy in the end, %", *heads), last)
    steps = markdown_table(("MNIST, all classes so far, %", *(f"with {label}" for label in range(5, 10))), each)
    sizes_table = markdown_table(("data", "bytes before", "after", "readout operations a sample before", "after"), sizes)
    few_table = markdown_table(("data", "test accuracy, %", *(f"{count} a class" for count in COUNTS)), samples)
    note = "Means, and standard deviations over seeds"
    return {
        "after.md": {
            "new classes": f"{orders}\n\n{note}; {machine}",
            "few samples": f"{few_table}\n\n{note}, {SEEDS} of them; {machine}",
        },
        "evidence/networks.md": {"new classes in turn": f"{steps}\n\n{sizes_table}"},
    }


STUDY = Study(
    title="new classes one by one, and few samples a class",
    minutes=15,
    cells=cells,
    pages=pages,
    fields=("points", "seconds", "before", "after", "test"),
    packages=("snntorch", "scikit-learn"),
    needs=("mnist", "speech"),
)
