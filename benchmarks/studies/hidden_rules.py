"""Rules of hidden layers: gains chosen by loss or by firing rate, and recurrent layers with or without draws and reservoirs.

Every pair of cells has the same samples, net and seed.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from functools import partial
from itertools import chain, product
from typing import Any
from unittest import mock

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.nets import IMAGE_NETS, SEQUENCE_NETS, accuracy
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from benchmarks.tasks import load_task
from snn_recon_plugin import convex_init_
from snn_recon_plugin.demo import Data
from snn_recon_plugin.hidden import recurrent_choice
from snn_recon_plugin.hidden.drive import choose_drive
from snn_recon_plugin.hidden.hidden_task import HiddenTask
from snn_recon_plugin.stages import build

SEEDS, TESTS, SEQUENCES = range(3), 2_000, 1_200
IMAGES = {"784-1000-10": 1_000, "784-1000-10, silent": 1_000, "784-256x5-10": 500, "Norse 784-1000-10": 500}
WIDTHS = {"speech": (8, 16, 24, 64, 256), "rows": (16, 24)}  # hidden neurons by task; layers under 32 get no clock
RULES, KINDS = ("loss", "rate"), ("with", "without")


def drive(task: HiddenTask, number: int) -> Any:
    """Choose gain and offset of a layer by its firing rate."""
    return choose_drive(task.recorder, task.net_map.hidden, number)


def measure_gains(bench: Bench, net: str, rule: str, seed: int) -> dict[str, Any]:
    """Initialise a net whose layers are rescaled by a rule."""
    torch.manual_seed(seed)
    with mock.patch.object(build, "choose_gain", drive if rule == "rate" else build.choose_gain):
        return initialise(IMAGE_NETS[net](), load_task("10,000 images", bench.places), IMAGES[net], seed, hidden="rescale")


def measure_draws(bench: Bench, task: str, width: int, kind: str, seed: int) -> dict[str, Any]:
    """Initialise a recurrent net; without draws and reservoirs it is the same if no reservoir is chosen."""
    data = load_task(task, bench.places)
    torch.manual_seed(seed)
    net = SEQUENCE_NETS["snntorch-recurrent"](data.train_inputs.shape[2], width, int(data.train_labels.max()) + 1)
    with ExitStack() as stack:
        if kind == "without":
            found = bench.cell(f"{task}, {width}, with, seed {seed}", partial(measure_draws, bench, task, width, "with", seed))
            if found["chosen"] != "reservoir":
                return {"test": found["test"], "chosen": found["chosen"]}
            build_on = recurrent_choice._build_on

            def clocks(search: Any, kind: str, values: Any = None) -> Any:
                return None if kind == "reservoir" else build_on(search, kind, values)

            stack.enter_context(mock.patch.object(recurrent_choice, "_build_on", clocks))
            stack.enter_context(mock.patch.object(recurrent_choice, "_try_draws", return_value=()))
        return initialise(net, data, SEQUENCES, seed)


def initialise(net: Any, data: Data, samples: int, seed: int, **options: Any) -> dict[str, Any]:
    """Run the one line on the first samples, and test the net."""
    loader = DataLoader(TensorDataset(data.train_inputs[:samples], data.train_labels[:samples]), 100)
    layer = convex_init_(net, loader, seed=seed, progress=False, **options).layers[0]
    kinds = list(layer.witnesses.kinds) if layer.witnesses is not None else []
    chosen = kinds[0] if kinds else "own weights"
    return {"test": accuracy(net, data.test_inputs[:TESTS], data.test_labels[:TESTS]), "chosen": chosen}


def cells(bench: Bench) -> Cells:
    """Every net by both rules, and every width with and without draws."""
    draws = [(task, width, kind) for task in WIDTHS for width in WIDTHS[task] for kind in KINDS]
    return {
        f"{', '.join(map(str, place))}, seed {seed}": partial(measure, bench, *place, seed)
        for measure, places in ((measure_gains, list(product(IMAGES, RULES))), (measure_draws, draws))
        for place in places
        for seed in SEEDS
    }


def compare(store: Store, name: str, ways: tuple[str, str]) -> tuple[str, ...]:
    """Return the test accuracies of both ways in percent, one a seed, and the median of their differences in points."""
    names = [[f"{name}, {way}, seed {seed}" for way in ways] for seed in SEEDS]
    tests = [[100 * store[each]["test"] for each in pair] for pair in names if all(each in store for each in pair)]
    difference = statistics.median(one - other for one, other in tests)
    return (*(", ".join(f"{value:.1f}" for value in each) for each in zip(*tests, strict=True)), f"{difference:+.1f}")


def pages(store: Store) -> dict[str, dict[str, str]]:
    """One table a question."""
    rows = [(net, f"{images:,}", *compare(store, net, RULES)) for net, images in IMAGES.items()]
    gains = markdown_table(("net", "images", "chosen by loss, %", "by rate, %", "median difference, points"), rows)
    rows = []
    for task, width in chain.from_iterable(product([task], widths) for task, widths in WIDTHS.items()):
        name = f"{task}, {width}"
        chosen = ", ".join(cell["chosen"] for cell in store.cells(f"{name}, with, seed ?"))
        rows.append((task, str(width), *compare(store, name, KINDS), chosen))
    heads = ("task", "hidden neurons", "with, %", "without, %", "median difference, points", "chosen with them")
    line = machines_line(store.cells())
    return {"evidence/hidden.md": {"rules gains": gains, "rules draws": f"{markdown_table(heads, rows)}\n\n{line}"}}


STUDY = Study(
    title="gains by loss or by rate; draws and reservoirs of recurrent layers",
    minutes=15,
    cells=cells,
    pages=pages,
    fields=("test", "chosen"),
    packages=("snntorch", "norse"),
    needs=("mnist", "speech"),
)
