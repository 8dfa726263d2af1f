"""Lightning modules as users write them: three epochs alone, and three with the callback and no option; scores and CPU seconds."""

from __future__ import annotations

import math
import statistics
import time
from functools import cache, partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.methods import QUIET
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from snn_recon_plugin import ReconstructionCallback
from snn_recon_plugin.demo import load_digits_data
from tests.user_nets.lightning_modules import MODULES, Base, Regression

SEEDS, EPOCHS, BATCH = range(3), 3, 64
TRAIN, VALIDATION = 1_300, 200  # of 1,797 images; the others are tested
ALONE, CALLBACK = WAYS = ("alone", "callback")
ENOUGH, GAIN = 0.95, 0.05  # accuracy that is high enough, and the gain that is asked for below it; of an error, half


def measure(kind: type[Base], way: str, seed: int) -> dict[str, Any]:
    """Train a module; its own score in the end and the CPU seconds, or the error that ended it."""
    warm_up()
    return fit(kind, way, EPOCHS, seed)


@cache
def warm_up() -> None:
    """Train once, so that what is imported and compiled at the first use costs no cell."""
    fit(MODULES[0], CALLBACK, 1, 0)


def fit(kind: type[Base], way: str, epochs: int, seed: int) -> dict[str, Any]:
    """Train a module for some epochs, and test it on images that neither training nor the callback has seen."""
    data = load_digits_data()
    images, labels = torch.cat([data.train_inputs, data.test_inputs]), torch.cat([data.train_labels, data.test_labels])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, validation, test = (
        DataLoader(TensorDataset(images[part].view(-1, *kind.shape), labels[part]), BATCH, collate_fn=kind.collate)
        for part in order.tensor_split([TRAIN, TRAIN + VALIDATION])
    )
    pl.seed_everything(seed, verbose=False)
    callbacks = [ReconstructionCallback(progress=False)] if way == CALLBACK else []
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=callbacks, num_sanity_val_steps=0, **QUIET)
    module, began = kind(), time.process_time()
    try:
        trainer.fit(module, train, validation)
    except Exception as error:  # whatever ends a user's training is a result
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    seconds, tester = time.process_time() - began, pl.Trainer(accelerator="cpu", **QUIET)
    tester.validate(module, test, verbose=False)  # of the weights that training leaves
    return {"score": float(tester.callback_metrics["score"]), "seconds": seconds}


def cells(bench: Bench) -> Cells:
    """Every module, alone and with the callback, with three seeds."""
    return {
        f"{kind.__name__} | {way} | seed {seed}": partial(measure, kind, way, seed)
        for seed in SEEDS
        for kind in MODULES
        for way in WAYS
    }


def pages(store: Store) -> dict[str, dict[str, str]]:
    """One row a module, how many gain as much as is asked for, and how many times the seconds are at the median."""
    rows = [row_of(store, kind) for kind in MODULES]
    table = markdown_table(
        ("module", "three epochs alone", "with `ReconstructionCallback()`", "s alone", "s with it", "times", "gains enough"), rows
    )
    seeds = len(store.cells()) // (len(MODULES) * len(WAYS))
    line = f"Seeds: {seeds}. {machines_line(store.cells())}"
    held = sum(row[-1] == "yes" for row in rows)
    factor = statistics.median(float(row[-2]) for row in rows if row[-2])
    found = f"{held} of {len(rows)} modules gain enough. The callback multiplies the seconds by {factor:.1f} at the median."
    return {"evidence/user_nets.md": {"user modules": f"{found}\n\n{table}\n\n{line}"}}


def row_of(store: Store, kind: type[Base]) -> tuple[str, ...]:
    """Return a module's scores, or how its training with the callback failed."""
    about = str(kind.__doc__).splitlines()[0]
    alone, callback = (store.cells(f"{kind.__name__} | {way} | *") for way in WAYS)
    failed = [cell["failed"] for cell in callback if "failed" in cell]
    before = statistics.mean(cell["score"] for cell in alone)
    after = math.nan if failed else statistics.mean(cell["score"] for cell in callback)
    if issubclass(kind, Regression):
        shown, enough = [f"error {value:.2f}" for value in (before, after)], after <= before / 2
    else:
        shown, enough = [f"{100 * value:.1f} %" for value in (before, after)], after >= min(before + GAIN, ENOUGH)
    spent = [statistics.mean(cell["seconds"] for cell in cells) for cells in ([alone] if failed else [alone, callback])]
    costs = [*(f"{seconds:.1f}" for seconds in spent), f"{spent[-1] / spent[0]:.1f}"] if len(spent) > 1 else ["", "", ""]
    return (about, shown[0], failed[0] if failed else shown[1], *costs, "yes" if enough else "no")


STUDY = Study(
    title="Lightning modules as users write them, with the callback and no option",
    minutes=6,
    cells=cells,
    pages=pages,
    fields=("score", "seconds", "failed"),
    packages=("snntorch", "norse", "spikingjelly", "lightning"),
)
