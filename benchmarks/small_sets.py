"""Small data sets: the callback's net against its own start and against training alone, ten seeds each.

    python benchmarks/small_sets.py      writes benchmarks/results/small_sets.json; an interrupted run goes on where it was

Features are standardised on the training samples and shown at each of 10 steps.  A tenth of the training samples is for
validation.  Both trainings take 30 epochs of Adam at 2e-3 in batches of 16.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from common import RESULTS, machine, run_all
from sklearn import datasets
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

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
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Module(pl.LightningModule):
    """A user's module; remembers the test accuracy of the first evaluated weights, which are the start's."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.net = build_network(features, HIDDEN, classes, STEPS)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]).mean(0), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", nn.functional.cross_entropy(self.net(batch[0]).mean(0), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), RATE)


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


@torch.no_grad()
def accuracy(net: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    return float((net(inputs).mean(0).argmax(1) == labels).double().mean())


def run(name: str, seed: int) -> dict[str, float]:
    """Test accuracy of the start, of the callback's net, and of training alone."""
    train, validation, test = load(name, seed)
    found = {"validation": len(validation)}
    for with_callback in (False, True):
        pl.seed_everything(seed, verbose=False)
        module = Module(test[0].shape[1], int(test[1].max()) + 1)
        callbacks = [ReconstructionCallback(ConvexInitializer(seed=seed, progress=False))] if with_callback else []
        if with_callback:
            callbacks.append(Tester(found, test))
        trainer = pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=callbacks, **QUIET)
        trainer.fit(module, DataLoader(train, BATCH, shuffle=True), DataLoader(validation, 500))
        found["callback" if with_callback else "alone"] = accuracy(module.net, *test)
    return found


class Tester(pl.Callback):
    """Tests the net right after the start, before the first step."""

    def __init__(self, found: dict[str, float], test: tuple[Tensor, Tensor]) -> None:
        self.found, self.test = found, test

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0:
            self.found["start"] = accuracy(pl_module.net, *self.test)


def main() -> None:
    """Run all cases, write the json and print means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    cases = {f"{name} | {seed}": partial(run, name, seed) for name in SETS for seed in range(SEEDS)}
    head = {"machine": machine("snntorch", "lightning", "scikit-learn"), "epochs": EPOCHS, "rate": RATE, "batch": BATCH}
    results = run_all(RESULTS / "small_sets.json", head, cases)["cases"]
    for name in [*SETS, ""]:
        rows = [row for case, row in results.items() if case.startswith(name)]
        means = {key: 100 * statistics.fmean(row[key] for row in rows) for key in ("start", "callback", "alone")}
        print(f"{name or 'all':<14} " + "  ".join(f"{key} {value:5.1f}" for key, value in means.items()))


if __name__ == "__main__":
    main()
