"""Three runs of the callback for the golden record: a start and refits, refits that are all kept, and a run that is resumed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.methods import QUIET, Module
from snn_recon_plugin import ConvexInitializer, ReconstructionCallback
from snn_recon_plugin.demo import build_network, load_digits_data

EPOCHS = 4
Finished = tuple[nn.Module, list[Any]]


def train(callback: ReconstructionCallback, epochs: int, *, resume: Path | None = None, save: Path | None = None) -> Module:
    """Train a new classifier of digits, or go on from a checkpoint."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    pl.seed_everything(0, verbose=False)
    data, module = load_digits_data(), Module(build_network(inputs=64, hidden=48, outputs=10, steps=8), 1e-3)
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[callback], **QUIET)
    loaders = (
        DataLoader(TensorDataset(data.train_inputs[:400], data.train_labels[:400]), 50),
        DataLoader(TensorDataset(data.test_inputs[:200], data.test_labels[:200]), 100),
    )
    trainer.fit(module, *loaders, ckpt_path=None if resume is None else str(resume))
    if save is not None:
        trainer.save_checkpoint(str(save))
    return module


def start_and_refits(folder: Path) -> Finished:
    """The callback's defaults."""
    callback = ReconstructionCallback(at_start=True)
    return train(callback, EPOCHS), callback.reports


def without_start(folder: Path) -> Finished:
    """Refits alone."""
    callback = ReconstructionCallback(ConvexInitializer(hidden="keep"), at_start=False)
    return train(callback, EPOCHS), callback.reports


def resumed(folder: Path) -> Finished:
    """A run that ends, and another that goes on from its checkpoint."""
    first, second = (ReconstructionCallback(at_start=True) for _ in range(2))
    train(first, EPOCHS // 2, save=folder / "half.ckpt")
    return train(second, EPOCHS, resume=folder / "half.ckpt"), first.reports + second.reports


RUNS: dict[str, Callable[[Path], Finished]] = {
    "start and refits": start_and_refits,
    "without a start": without_start,
    "resumed": resumed,
}
