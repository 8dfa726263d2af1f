"""Small data sets: the callback's net against its own start and against training alone, ten seeds each.

Features are standardised on the training samples.  A tenth of the training samples is for validation.  All trainings take 30 epochs
of Adam at 2e-3 in batches of 16.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.methods import QUIET, Module
from benchmarks.nets import SEQUENCE_NETS, accuracy
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from snn_recon_plugin import ReconstructionCallback
from snn_recon_plugin.demo import build_network

STEPS, HIDDEN, EPOCHS, RATE, BATCH, SEEDS = 10, 64, 30, 2e-3, 16, 10
VALIDATION = 0.1  # share of the training samples


class Small(NamedTuple):
    """A data set, how many of its samples are trained on, and the pixels of a step for a recurrent net."""

    load: Callable[..., Any]
    samples: int
    row: int | None = None


SETS = {
    "iris": Small(datasets.load_iris, 30),
    "wine": Small(datasets.load_wine, 90),
    "breast cancer": Small(datasets.load_breast_cancer, 200),
    **{f"digits, {count}": Small(datasets.load_digits, count) for count in (50, 100, 300)},
    **{f"digits by row, recurrent, {count}": Small(datasets.load_digits, count, 8) for count in (100, 300)},
}


class Started(Module):
    """A module that keeps the test accuracy of the weights before the first step, which are the start's."""

    def __init__(self, net: nn.Module, test: tuple[Tensor, Tensor]) -> None:
        super().__init__(net, RATE)
        self.test, self.start = test, 0.0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == 0:
            self.start = accuracy(self.net, *self.test)


def load(name: str, seed: int) -> tuple[TensorDataset, TensorDataset, tuple[Tensor, Tensor]]:
    """Return data to train on, to validate on and to test on, drawn by the seed."""
    small = SETS[name]
    inputs, labels = (torch.as_tensor(part) for part in small.load(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    inputs, labels = inputs[order].float(), labels[order].long()
    mean, spread = inputs[: small.samples].mean(0), inputs[: small.samples].std(0).clamp_min(1e-3)
    inputs = (inputs - mean) / spread
    if small.row is not None:
        inputs = inputs.unflatten(1, (-1, small.row))
    held = max(2, round(VALIDATION * small.samples))
    parts = (TensorDataset(inputs[part], labels[part]) for part in (slice(held, small.samples), slice(0, held)))
    return *parts, (inputs[small.samples :], labels[small.samples :])


def make_net(name: str, test: tuple[Tensor, Tensor]) -> nn.Module:
    """Return a net for a data set."""
    features, outputs = test[0].shape[-1], int(test[1].max()) + 1
    if SETS[name].row is not None:
        return SEQUENCE_NETS["snntorch-recurrent"](features, HIDDEN, outputs)
    return build_network(features, HIDDEN, outputs, STEPS)


def measure(name: str, seed: int) -> dict[str, float]:
    """Return the test accuracy of the start, of the callback's net, and of training alone."""
    train, validation, test = load(name, seed)
    found: dict[str, float] = {"validation": len(validation)}
    for method in ("alone", "callback"):
        pl.seed_everything(seed, verbose=False)
        module = Started(make_net(name, test), test)
        callbacks = [ReconstructionCallback(seed=seed, progress=False)] if method == "callback" else []
        trainer = pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=callbacks, **QUIET)
        trainer.fit(module, DataLoader(train, BATCH, shuffle=True), DataLoader(validation, 500))
        found |= {method: accuracy(module.net, *test)} | ({"start": module.start} if method == "callback" else {})
    return found


def cells(bench: Bench) -> Cells:
    """Every set with every seed."""
    return {f"{name} | {seed}": partial(measure, name, seed) for seed in range(SEEDS) for name in SETS}


def pages(store: Store) -> dict[str, dict[str, str]]:
    """Means over the seeds, one row a data set, and the callback beside its start and beside training alone."""
    rows = []
    for name, small in SETS.items():
        found = store.cells(f"{name} | *")
        if found:
            start, callback, alone = (100 * statistics.fmean(cell[key] for cell in found) for key in ("start", "callback", "alone"))
            worst = 100 * min(cell["callback"] - cell["start"] for cell in found)
            means = (f"{mean:.1f}" for mean in (start, callback, alone))
            changes = (f"{change:+.1f}" for change in (callback - start, worst, callback - alone))
            rows.append((name, str(small.samples), str(found[0]["validation"]), *means, *changes, str(len(found))))
    heads = ("start", "callback", "training alone", "callback - start", "the same, worst seed", "callback - alone", "seeds")
    table = markdown_table(("data", "samples", "of these to validate", *heads), rows)
    return {"evidence/training.md": {"small sets": f"{table}\n\n{machines_line(store.cells())}"}}


STUDY = Study(
    title="small data sets, with the callback and without",
    minutes=15,
    cells=cells,
    pages=pages,
    fields=("start", "callback", "alone", "validation"),
    packages=("snntorch", "lightning", "scikit-learn"),
)
