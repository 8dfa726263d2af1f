"""Surrogate-gradient training in Lightning's loop: Adam, one cycle, an average of the weights; the same with the callback."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.temporal.training import AVERAGED, CLIP, Average
from snn_recon_plugin import ConvexInitializer, ReconstructionCallback

from .nets import Stepped
from .series import Split, windows

__all__ = ["EPOCHS", "RATES", "train", "tune"]

BATCH, EPOCHS = 16, 20
RATES = (1e-3, 4e-3, 1.6e-2)
TUNING = 0.4  # share of a run's epochs that each rate gets
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Module(pl.LightningModule):
    """A user's module: the loss at every step."""

    def __init__(self, net: Stepped, rate: float, average: bool) -> None:
        super().__init__()
        self.net, self.rate = net, rate
        self.average: Average | None = None
        self.averages = average

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("validation", self.loss(batch))

    def loss(self, batch: Any) -> Tensor:
        """Mean squared error of all predictions of a batch."""
        return nn.functional.mse_loss(self.net(batch[0]).transpose(0, 1), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.net.parameters(), self.rate)
        total = int(self.trainer.estimated_stepping_batches)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=total)
        return [optimizer], [{"scheduler": cycle, "interval": "step"}]

    def on_train_start(self) -> None:
        if self.averages:
            self.average = Average(self.net, AVERAGED * int(self.trainer.estimated_stepping_batches))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.average is not None:
            self.average.update()


def train(
    net: Stepped, data: Split, rate: float, seed: int, callback: Mapping[str, Any] | None = None, epochs: int | None = None
) -> dict[str, Any]:
    """Train in place, and leave the averaged weights, or with a callback of some options those it chose.

    Returns the loss on validation windows.
    """
    epochs = EPOCHS if epochs is None else epochs
    pl.seed_everything(seed, verbose=False)
    validation = TensorDataset(*windows(data.validation, data.scale))
    module = Module(net, rate, average=callback is None)
    callbacks: list[pl.Callback] = []
    if callback is not None:
        options = {"loss": nn.MSELoss(), "readout": "membrane_per_step", "seed": seed, "progress": False, **callback}
        callbacks.append(ReconstructionCallback(ConvexInitializer(**options)))
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=callbacks, gradient_clip_val=CLIP, **QUIET)
    loader = DataLoader(TensorDataset(*windows(data.train, data.scale)), BATCH, shuffle=True)
    trainer.fit(module, loader, DataLoader(validation, len(validation)))
    if module.average is not None:
        module.average._exchange()
    with torch.no_grad():
        return {"validation": float(module.loss(validation.tensors)), "epochs": epochs}


def tune(make: Callable[[], Stepped], data: Split, seed: int) -> dict[str, Any]:
    """Try all rates in shorter runs; the one with the least validation loss."""
    short = max(1, round(TUNING * EPOCHS))
    losses = {rate: train(make(), data, rate, seed, epochs=short)["validation"] for rate in RATES}
    best = min(losses, key=lambda rate: losses[rate] if math.isfinite(losses[rate]) else math.inf)
    return {"rate": best, "validation": {str(rate): loss for rate, loss in losses.items()}}
