"""Rules of hidden layers compared: gains chosen by loss or by rate, and recurrent layers with or without draws and reservoirs.

Samples are few, so that all cells take minutes; every pair of cells has the same samples, net and seed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any
from unittest import mock

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.nets import IMAGE_NETS, SEQUENCE_NETS, accuracy
from benchmarks.render import machine_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from benchmarks.tasks import load_task
from snn_recon_plugin import ConvexInitializer
from snn_recon_plugin.demo import Data
from snn_recon_plugin.hidden import recurrent_choice
from snn_recon_plugin.hidden.drive import RATE, choose_drive
from snn_recon_plugin.hidden.hidden_task import HiddenTask
from snn_recon_plugin.stages import build

SEEDS, TESTS = range(3), 2_000
TRAINED = {  # net of nets.py, and images
    "784-1000-10": 1_000,
    "784-1000-10, silent": 1_000,
    "784-256x5-10": 500,
    "conv": 300,
    "Norse 784-1000-10": 500,
}
RULES = ("loss", "rate")
WIDTHS = {"speech": (8, 16, 24, 64, 256), "rows": (16, 24)}  # hidden neurons by task; layers under 32 get no clock
KINDS = ("with", "without")


def drive(task: HiddenTask, number: int) -> Any:
    """Choose gain and offset of a layer by its firing rate."""
    return choose_drive(task.recorder, task.net_map.hidden, number, rate=RATE)


def measure_gains(bench: Bench, network: str, rule: str, seed: int) -> dict[str, Any]:
    """Test accuracy of a net whose layers are rescaled by a rule."""
    data = cut(load_task("10,000 images", bench.places), TRAINED[network])
    torch.manual_seed(seed)
    net = IMAGE_NETS[network]()
    with mock.patch.object(build, "choose_gain", drive if rule == "rate" else build.choose_gain):
        return initialise(net, data, seed, hidden="rescale")


@contextmanager
def without_draws() -> Iterator[None]:
    """Try neither draws of a whole layer nor reservoirs."""
    build_on = recurrent_choice._build_on

    def clocks(search: Any, kind: str, values: Any = None) -> Any:
        return None if kind == "reservoir" else build_on(search, kind, values)

    with (
        mock.patch.object(recurrent_choice, "_build_on", clocks),
        mock.patch.object(
            recurrent_choice, "_try_draws", lambda search, gain: iter([recurrent_choice._Tried(torch.inf, gain, {})])
        ),
    ):
        yield


def measure_draws(bench: Bench, task: str, width: int, kind: str, seed: int) -> dict[str, Any]:
    """Test accuracy of a recurrent net, with and without draws and reservoirs; equal if neither is chosen."""
    data = cut(load_task(task, bench.places), 1_200)
    torch.manual_seed(seed)
    net = SEQUENCE_NETS["snntorch-recurrent"](data.train_inputs.shape[2], width, int(data.train_labels.max()) + 1)
    if kind == "with":
        return initialise(net, data, seed)
    found = bench.cell(f"{task}, {width}, with, seed {seed}", partial(measure_draws, bench, task, width, "with", seed))
    if not found["chosen"].startswith(("draw", "reservoir")):
        return {key: found[key] for key in ("test", "heldout", "chosen")}
    with without_draws():
        return initialise(net, data, seed)


def cut(data: Data, images: int) -> Data:
    """Return the first samples of a task."""
    return Data(data.train_inputs[:images], data.train_labels[:images], data.test_inputs[:TESTS], data.test_labels[:TESTS])


def initialise(net: Any, data: Data, seed: int, **options: Any) -> dict[str, Any]:
    """Run the one line, and test the net."""
    loader = DataLoader(TensorDataset(data.train_inputs, data.train_labels), 100)
    began = time.process_time()
    report = ConvexInitializer(seed=seed, progress=False, **options).initialize(net, loader)
    seconds, layer = time.process_time() - began, report.layers[0]
    kinds = list(layer.witnesses.kinds) if layer.witnesses is not None else []
    chosen = kinds[0] if kinds else "draw" if layer.draw else "own weights"
    test = accuracy(net, data.test_inputs, data.test_labels)
    return {"test": test, "heldout": report.after.accuracy, "cpu_seconds": seconds, "chosen": chosen}


def cells(bench: Bench) -> Cells:
    """Every net with both rules, and every width with and without draws."""
    gains = {
        f"{network}, {rule}, seed {seed}": partial(measure_gains, bench, network, rule, seed)
        for seed, network, rule in product(SEEDS, TRAINED, RULES)
    }
    draws = {
        f"{task}, {width}, {kind}, seed {seed}": partial(measure_draws, bench, task, width, kind, seed)
        for seed, task in product(SEEDS, WIDTHS)
        for width, kind in product(WIDTHS[task], KINDS)
    }
    return {**gains, **draws}


def compare(store: Store, name: str, ways: tuple[str, str]) -> tuple[str, ...]:
    """Return the test accuracies of both ways in percent, one a seed, and the median of their differences in points."""
    tests = [[100 * cell["test"] for cell in store.cells(f"{name}, {way}, seed ?")] for way in ways]
    difference = statistics.median(one - other for one, other in zip(*tests, strict=True))
    return (*(", ".join(f"{value:.1f}" for value in each) for each in tests), f"{difference:+.1f}")


def pages(store: Store) -> dict[str, dict[str, str]]:
    """One table a question, once all cells are measured."""
    if not all(store.cells(f"{net}, {rule}, seed ?") for net in TRAINED for rule in RULES):
        return {}
    if not all(store.cells(f"{task}, {width}, {kind}, seed ?") for task in WIDTHS for width in WIDTHS[task] for kind in KINDS):
        return {}
    rows = [(net, f"{images:,}", *compare(store, net, RULES)) for net, images in TRAINED.items()]
    gains = markdown_table(("net", "images", "chosen by loss, %", "by rate, %", "median difference, points"), rows)
    widths = [(task, width) for task in WIDTHS for width in WIDTHS[task]]
    rows = [(task, str(width), *compare(store, f"{task}, {width}", KINDS), chosen(store, task, width)) for task, width in widths]
    heads = ("task", "hidden neurons", "with, %", "without, %", "median difference, points", "chosen with them")
    line = machine_line(store.cells()[0]["machine"])
    return {"evidence/hidden.md": {"rules gains": gains, "rules draws": markdown_table(heads, rows), "rules setting": line}}


def chosen(store: Store, task: str, width: int) -> str:
    """Return what was chosen with each seed."""
    return ", ".join(cell["chosen"] for cell in store.cells(f"{task}, {width}, with, seed ?"))


STUDY = Study(
    title="gains by loss or by rate; draws and reservoirs of recurrent layers",
    minutes=15,
    cells=cells,
    pages=pages,
    fields=("test", "heldout", "cpu_seconds", "chosen"),
    packages=("snntorch", "norse"),
    needs=("mnist", "speech"),
)
