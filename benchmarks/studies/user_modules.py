"""Lightning modules as users write them: two epochs alone, and two with the callback and no option."""

from __future__ import annotations

import math
import statistics
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.methods import QUIET
from benchmarks.render import machine_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from snn_recon_plugin import ReconstructionCallback
from snn_recon_plugin.demo import load_digits_data
from tests.user_nets.lightning_modules import MODULES, Base, Regression

SEEDS, EPOCHS, BATCH = range(3), 2, 64
TRAIN = 1_300  # of 1,797 images; the others are tested
ALONE, CALLBACK = WAYS = ("alone", "callback")
ENOUGH, GAIN = 0.95, 0.05  # accuracy that is high enough, and the gain that is asked for below it; of an error, half


def measure(kind: type[Base], way: str, seed: int) -> dict[str, Any]:
    """Train a module; its own score in the end, or the error that ended it."""
    data = load_digits_data()
    images, labels = torch.cat([data.train_inputs, data.test_inputs]), torch.cat([data.train_labels, data.test_labels])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    loaders = [
        DataLoader(TensorDataset(images[part].view(-1, *kind.shape), labels[part]), BATCH, collate_fn=kind.collate)
        for part in order.tensor_split([TRAIN])
    ]
    pl.seed_everything(seed, verbose=False)
    callbacks = [ReconstructionCallback(progress=False)] if way == CALLBACK else []
    trainer = pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=callbacks, num_sanity_val_steps=0, **QUIET)
    try:
        trainer.fit(kind(), *loaders)
    except Exception as error:  # whatever ends a user's training is a result
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {"score": float(trainer.callback_metrics["score"])}


def cells(bench: Bench) -> Cells:
    """Every module, alone and with the callback, with three seeds."""
    return {
        f"{kind.__name__} | {way} | seed {seed}": partial(measure, kind, way, seed)
        for seed in SEEDS
        for kind in MODULES
        for way in WAYS
    }


def pages(store: Store) -> dict[str, dict[str, str]]:
    """One row a module, and how many gain as much as is asked for."""
    rows = [row_of(store, kind) for kind in MODULES]
    table = markdown_table(("module", "two epochs alone", "with `ReconstructionCallback()`", "gains enough"), rows)
    seeds = len(store.cells()) // (len(MODULES) * len(WAYS))
    line = f"Seeds: {seeds}. {machine_line(store.cells()[0]['machine'])}"
    held = sum(row[-1] == "yes" for row in rows)
    return {"evidence/user_nets.md": {"user modules": f"{held} of {len(rows)} modules gain enough.\n\n{table}\n\n{line}"}}


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
    return (about, shown[0], failed[0] if failed else shown[1], "yes" if enough else "no")


STUDY = Study(
    title="Lightning modules as users write them, with the callback and no option",
    minutes=6,
    cells=cells,
    pages=pages,
    fields=("score", "failed"),
    packages=("snntorch", "norse", "spikingjelly", "lightning"),
)
