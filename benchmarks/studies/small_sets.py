"""Small data sets: the callback's net against its own start and against training alone, ten seeds each.

Features are standardised on the training samples and shown at each of 10 steps.  A tenth of the training samples is for
validation.  Both trainings take 30 epochs of Adam at 2e-3 in batches of 16.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from sklearn import datasets
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.methods import QUIET, Module
from benchmarks.nets import accuracy
from benchmarks.render import machine_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from snn_recon_plugin import ConvexInitializer, ReconstructionCallback
from snn_recon_plugin.demo import build_network

STEPS, HIDDEN, EPOCHS, RATE, BATCH, SEEDS = 10, 64, 30, 2e-3, 16, 10
VALIDATION = 0.1  # share of the training samples
SETS: dict[str, tuple[Callable[..., Any], int]] = {  # the loader, and the number of training samples
    "iris": (datasets.load_iris, 75),
    "wine": (datasets.load_wine, 90),
    "breast cancer": (datasets.load_breast_cancer, 200),
    "digits 50": (datasets.load_digits, 50),
    "digits 100": (datasets.load_digits, 100),
    "digits 300": (datasets.load_digits, 300),
}


class Started(Module):
    """A module that keeps the test accuracy of the weights before the first step, which are the start's."""

    def __init__(self, test: tuple[Tensor, Tensor]) -> None:
        super().__init__(build_network(test[0].shape[1], HIDDEN, int(test[1].max()) + 1, STEPS), RATE)
        self.test, self.start = test, 0.0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == 0:
            self.start = accuracy(self.net, *self.test)


def load(name: str, seed: int) -> tuple[TensorDataset, TensorDataset, tuple[Tensor, Tensor]]:
    """Return data to train on, to validate on and to test on, drawn by the seed."""
    loader, count = SETS[name]
    inputs, labels = (torch.as_tensor(part) for part in loader(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    inputs, labels = inputs[order].float(), labels[order].long()
    mean, spread = inputs[:count].mean(0), inputs[:count].std(0).clamp_min(1e-3)
    inputs = (inputs - mean) / spread
    held = max(2, round(VALIDATION * count))
    parts = (TensorDataset(inputs[part], labels[part]) for part in (slice(held, count), slice(0, held)))
    return *parts, (inputs[count:], labels[count:])


def measure(name: str, seed: int) -> dict[str, float]:
    """Return the test accuracy of the start, of the callback's net, and of training alone."""
    train, validation, test = load(name, seed)
    found: dict[str, float] = {"validation": len(validation)}
    for method in ("alone", "callback"):
        pl.seed_everything(seed, verbose=False)
        module = Started(test)
        callbacks = [ReconstructionCallback(ConvexInitializer(seed=seed, progress=False))] if method == "callback" else []
        trainer = pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=callbacks, **QUIET)
        trainer.fit(module, DataLoader(train, BATCH, shuffle=True), DataLoader(validation, 500))
        found |= {method: accuracy(module.net, *test)} | ({"start": module.start} if method == "callback" else {})
    return found


def cells(bench: Bench) -> Cells:
    """Every set with every seed."""
    return {f"{name} | {seed}": partial(measure, name, seed) for name in SETS for seed in range(SEEDS)}


def pages(store: Store) -> dict[str, dict[str, str]]:
    """Means over the seeds, one row a data set."""
    rows = []
    for name, (_, count) in SETS.items():
        found = store.cells(f"{name} | *")
        means = (f"{100 * statistics.fmean(row[key] for row in found):.1f}" for key in ("start", "callback", "alone"))
        rows.append((name, str(count), str(found[0]["validation"]), *means))
    table = markdown_table(("data", "samples", "of these to validate", "start", "callback", "training alone"), rows)
    return {"evidence/training.md": {"small sets": f"{table}\n\n{machine_line(store.cells()[-1]['machine'])}"}}


STUDY = Study(
    title="small data sets, with the callback and without",
    minutes=10,
    cells=cells,
    pages=pages,
    fields=("start", "callback", "alone", "validation"),
    packages=("snntorch", "lightning", "scikit-learn"),
)
