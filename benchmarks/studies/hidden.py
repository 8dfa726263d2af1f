"""Hidden layers rebuilt on MNIST, 10,000 images: test accuracy and seconds without a gradient step, and training from there.

An epoch of surrogate training (Adam, batches of 128) is timed beside each case, on a net like its own, so that seconds compare
within one run.
"""

from __future__ import annotations

import math
import statistics
import time
from functools import partial
from itertools import product
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import starts
from benchmarks.methods import Schedule, train
from benchmarks.nets import IMAGE_NETS, accuracy
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from benchmarks.tasks import load_task
from snn_recon_plugin import ConvexInitializer
from snn_recon_plugin.demo import Data

RATE, SEEDS, EPOCHS = 5e-4, range(3), (0, 1, 3, 10)
CASES: dict[str, tuple[str, dict[str, Any]]] = {  # net of nets.py, and options
    "own weights, rescaled": ("784-1000-10", {"hidden": "rescale"}),
    "3000 candidates, 1000 selected": ("784-1000-10", {}),
    "silent net, 3000 candidates": ("784-1000-10, silent", {}),
    "5 layers": ("784-256x5-10", {}),
    "10 layers": ("784-256x10-10", {}),
    "conv": ("conv", {}),
    "Norse": ("Norse 784-1000-10", {}),
}
# Colour of a start of training, and where its label lies: an epoch, points from its line there, and its side.
STARTS: dict[str, tuple[str, int, tuple[int, int], str]] = {
    "Kaiming": ("#777777", 0, (10, -3), "left"),
    "fluctuation-driven": ("#E69F00", 0, (18, -17), "left"),
    "rescaled, readout solved": ("#0072B2", 10, (0, 14), "right"),
    "rebuilt, readout solved": ("#D55E00", 10, (0, -16), "right"),
}
# Net, its case with own weights rescaled (None if it was not run), its rebuilt case.
SHOWN = (
    ("784-1000-10, healthy", "own weights, rescaled", "3000 candidates, 1000 selected"),
    ("784-1000-10, silent", None, "silent net, 3000 candidates"),
    ("784-256x5-10, five hidden layers", None, "5 layers"),
    ("784-256x10-10, ten hidden layers", None, "10 layers"),
    ("12C5-MP2-64C5-MP2-10, convolutions", None, "conv"),
    ("784-1000-10 in Norse", None, "Norse"),
)


def fresh(network: str, seed: int) -> Any:
    """Return a net of nets.py."""
    torch.manual_seed(seed)
    return IMAGE_NETS[network]()


def initialise(net: Any, data: Data, seed: int, **options: Any) -> Any:
    """Run the one line, and return its report."""
    loader = DataLoader(TensorDataset(data.train_inputs, data.train_labels), 1000)
    return ConvexInitializer(seed=seed, **{"hidden": "reconstruct", **options}).initialize(net, loader)


def measure(bench: Bench, name: str, seed: int) -> dict[str, Any]:
    """One net, rebuilt or rescaled; with the first seed an epoch of training of another like it."""
    (network, options), data = CASES[name], load_task("10,000 images", bench.places)
    net, began = fresh(network, seed), time.process_time()
    report = initialise(net, data, seed, **options)
    result: dict[str, Any] = {"seconds": time.process_time() - began, "heldout": report.accuracy_after}
    layer = report.to_dict()["layers"][-1]
    for when, found in (("before", layer["before"]), ("after", layer["stats"])):
        result[when] = {key: found[key] for key in ("firing_rate", "silent")}
    result["test"] = accuracy(net, data.test_inputs, data.test_labels)
    if not seed:
        schedule = Schedule(1, clip=math.inf)
        result["epoch_seconds"] = train(fresh(network, seed), data, schedule, RATE, seed)["cpu_seconds"]
    return result


def measure_training(bench: Bench, start: str, seed: int) -> dict[str, Any]:
    """Test accuracy after some epochs of surrogate training from an initialisation of 784-1000-10."""
    data, net = load_task("10,000 images", bench.places), fresh("784-1000-10", seed)
    if start == "fluctuation-driven":
        starts.fluctuation_driven(net, TensorDataset(data.train_inputs, data.train_labels), seed)
    elif start != "Kaiming":
        initialise(net, data, seed, hidden="reconstruct" if start.startswith("rebuilt") else "rescale")
    tests = {"0": accuracy(net, data.test_inputs, data.test_labels)}
    found = train(net, data, Schedule(EPOCHS[-1], tests=EPOCHS, clip=math.inf), RATE, seed)
    return {"tests": tests | {epoch: point["test"] for epoch, point in found["epochs"].items()}}


def cells(bench: Bench) -> Cells:
    """Every case, and training from every start."""
    cases = [(name, seed) for seed, name in product(SEEDS, CASES)]
    return {f"{name}, seed {seed}": partial(measure, bench, name, seed) for name, seed in cases} | {
        f"from {start}, seed {seed}": partial(measure_training, bench, start, seed) for seed, start in product(SEEDS, STARTS)
    }


def spread(values: list[float]) -> str:
    """Mean in percent, least and most in brackets."""
    mean = f"{100 * statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.2f} to {100 * max(values):.2f})"


def epochs_of(results: list[dict[str, Any]]) -> str:
    """Return the call's seconds over those of an epoch."""
    return next(f"{result['seconds'] / result['epoch_seconds']:.1f}" for result in results if "epoch_seconds" in result)


def table(store: Store) -> str:
    """One row a case: test and held-out accuracy, seconds beside those of an epoch, how the last hidden layer fires."""
    rows = []
    for name, (network, _) in CASES.items():
        results = store.cells(f"{name}, seed ?")
        before, after = results[0]["before"], results[0]["after"]
        rows.append(
            (
                *(name, network, spread([result["test"] for result in results])),
                f"{100 * statistics.mean(result['heldout'] for result in results):.2f}",
                f"{statistics.mean(result['seconds'] for result in results):.1f}",
                epochs_of(results),
                f"{before['firing_rate']:.3f} → {after['firing_rate']:.3f}",
                f"{100 * before['silent']:.0f} % → {100 * after['silent']:.0f} %",
            )
        )
    costs = ("seconds", "epochs' worth", "rate before → after", "dead before → after")
    return markdown_table(("case", "net", "test accuracy, %", "held out, %", *costs), rows)


def summary(store: Store) -> str:
    """One row a net: silent neurons of its last hidden layer before, test accuracy rescaled and rebuilt, and the call's cost."""

    def test(name: str | None) -> str:
        return f"{100 * statistics.mean(cell['test'] for cell in store.cells(f'{name}, seed ?')):.2f}" if name else ""

    rows = []
    for net, rescaled, rebuilt in SHOWN:
        results = store.cells(f"{rebuilt}, seed ?")
        rows.append((net, f"{100 * results[0]['before']['silent']:.0f} %", test(rescaled), test(rebuilt), epochs_of(results)))
    accuracies = ('`"rescale"`, test accuracy, %', '`"reconstruct"`, test accuracy, %')
    return markdown_table(("net", "silent neurons before", *accuracies, "call, in epochs"), rows)


def tests_from(store: Store, start: str) -> list[list[float]]:
    """Return the test accuracies of all seeds, at each of ``EPOCHS``."""
    return [[cell["tests"][str(epoch)] for cell in store.cells(f"from {start}, seed ?")] for epoch in EPOCHS]


def pages(store: Store) -> dict[str, dict[str, str]]:
    """A summary for users, all cases, and training from there."""
    rows = [(start, *map(spread, tests_from(store, start))) for start in STARTS]
    training = markdown_table(("start", *(f"epoch {epoch}" for epoch in EPOCHS)), rows)
    setting = f"10,000 training images; {machines_line(store.cells())}"
    tables = {"hidden setting": setting, "hidden table": table(store), "hidden training": training}
    return {"evidence/hidden.md": tables, "hidden.md": {"hidden summary": summary(store)}}


def figures(store: Store) -> dict[str, Figure]:
    """Test error against epochs, one line a start, a band over the seeds."""
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    for name, (colour, epoch, offset, side) in STARTS.items():
        errors = [[100 * (1 - test) for test in tests] for tests in tests_from(store, name)]
        means = [statistics.mean(part) for part in errors]
        axes.plot(EPOCHS, means, "o-", color=colour, markersize=4)
        point = (epoch, means[EPOCHS.index(epoch)])
        axes.annotate(name, point, color=colour, xytext=offset, textcoords="offset points", ha=side)
        axes.fill_between(EPOCHS, [min(part) for part in errors], [max(part) for part in errors], color=colour, alpha=0.2)
    axes.set_yscale("log")
    axes.set_ylim(2.2, 100)
    axes.set_yticks([3, 5, 10, 20, 50, 90], ["3", "5", "10", "20", "50", "90"])
    axes.minorticks_off()
    axes.set(xlabel="epochs of surrogate training", ylabel="test error, %")
    axes.set_title("784-1000-10 from four initialisations, MNIST, 10,000 images", fontsize=10)
    return {"hidden_training.png": figure}


STUDY = Study(
    title="hidden layers rebuilt on MNIST, and training from there",
    minutes=30,
    cells=cells,
    pages=pages,
    figures=figures,
    fields=("test", "seconds", "heldout", "before", "after", "epoch_seconds", "tests"),
    packages=("snntorch", "norse"),
    needs=("mnist",),
)
