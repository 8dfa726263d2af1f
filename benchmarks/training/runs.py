"""One run of a case by a method, in Lightning's loop: test accuracy and CPU seconds after each epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.hidden_networks import loss_of, scores_of
from benchmarks.temporal.training import AVERAGED, BATCH, CLIP, Average
from snn_recon_plugin import ConvexInitializer, ReconstructionCallback

from . import starts
from .aided import Aided, FewFirst
from .cases import Parts
from .starts import Start

__all__ = ["METHODS", "RATES", "Method", "run", "tune"]

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
TUNING = 0.4  # share of a run's epochs that each rate gets
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@dataclass(frozen=True)
class Method:
    """A way to train.

    Args:
        cycle: OneCycleLR up to the rate and down again; else a fixed rate.
        average: tests and validation use an exponential moving average (EMA) of the weights, without the callback.
        options: of the callback; None for none.
        start: what runs before training, see starts.py; None for nothing.
        few: time steps of a net with ``steps`` in the first 70 % of training; scores are scaled up to the size of all steps.
        aids: damped recurrence, and hard samples after the first epoch, on fresh weights.
        optimizer: its class.
        rate: a fixed learning rate; None for the one tuned for the method's schedule without the plugin.
    """

    cycle: bool = False
    average: bool = False
    options: Mapping[str, Any] | None = None
    start: Start | None = None
    few: int | None = None
    aids: bool = False
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    rate: float | None = None


METHODS: dict[str, Method] = {
    "fixed rate": Method(),
    "fixed rate, EMA": Method(average=True),
    "one cycle": Method(cycle=True),
    "one cycle, EMA": Method(cycle=True, average=True),
    "fluctuation-driven, one cycle, EMA": Method(cycle=True, average=True, start=starts.fluctuation_driven),
    "S-SWIM, one cycle, EMA": Method(cycle=True, average=True, start=starts.s_swim),
    "line, one cycle, EMA": Method(cycle=True, average=True, start=starts.line),
    "callback, fixed rate": Method(options={}),
    "callback, one cycle": Method(cycle=True, options={}),
    "refits, one cycle": Method(cycle=True, options={"at_start": False}),
    "SGD 0.05": Method(optimizer=torch.optim.SGD, rate=0.05),
    "callback, SGD 0.05": Method(optimizer=torch.optim.SGD, rate=0.05, options={}),
}


class Module(pl.LightningModule):
    """A user's module, with a clock that stands still while the net is tested."""

    def __init__(self, net: nn.Module, parts: Parts, method: Method, rate: float) -> None:
        super().__init__()
        self.net, self.parts, self.method, self.rate = net, parts, method, rate
        self.epochs: list[dict[str, float]] = []
        self.average: Average | None = None
        self.began = self.testing = 0.0
        self.scale = 1.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return loss_of(self.scale * self.net(batch[0]) if self.method.few else self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("validation", loss_of(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        momentum = {"momentum": 0.9} if self.method.optimizer is torch.optim.SGD else {}
        optimizer = self.method.optimizer(self.net.parameters(), self.rate, **momentum)
        if not self.method.cycle:
            return optimizer
        total = int(self.trainer.estimated_stepping_batches)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=total)
        return [optimizer], [{"scheduler": cycle, "interval": "step"}]

    def on_train_start(self) -> None:
        if self.method.average:
            self.average = Average(self.net, AVERAGED * int(self.trainer.estimated_stepping_batches))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.average is not None:
            self.average.update()

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.epochs.append(self.point())

    def point(self) -> dict[str, float]:
        """CPU seconds so far, accuracy on validation and test data, which take none."""
        began = time.process_time()
        seconds = began - self.began - self.testing
        if self.average is None:
            found = self.accuracies()
        else:
            with self.average.swapped():
                found = self.accuracies()
        self.testing += time.process_time() - began
        return {"seconds": seconds, **found}

    @torch.no_grad()
    def accuracies(self) -> dict[str, float]:
        """Accuracy on validation and on test data."""
        held = self.parts.validation.tensors
        return {"validation": accuracy(self.net, *held), "test": accuracy(self.net, *self.parts.test)}


@torch.no_grad()
def accuracy(net: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of samples whose score is the largest at their class."""
    predicted = torch.cat([scores_of(net(part)).argmax(1) for part in inputs.split(500)])
    return float((predicted == labels).double().mean())


def run(make: Callable[[], nn.Module], parts: Parts, method: Method, rate: float, epochs: int, seed: int) -> dict[str, Any]:
    """Train a fresh net; accuracies and CPU seconds after each epoch, and of the net in the end."""
    pl.seed_everything(seed, verbose=False)
    module = Module(make(), parts, method, rate)
    module.began = time.process_time()
    result: dict[str, Any] = {}
    if method.start is not None:
        method.start(module.net, parts.train, seed)
        result["started"] = module.point()
    callbacks: list[pl.Callback] = [Aided(parts.train)] if method.aids else []
    callbacks += [FewFirst(method.few)] if method.few else []
    if method.options is not None:
        callbacks.append(ReconstructionCallback(ConvexInitializer(seed=seed, progress=False), **method.options))
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=callbacks, gradient_clip_val=CLIP, **QUIET)
    trainer.fit(module, _loader(parts.train), DataLoader(parts.validation, 500))
    result |= {"epochs": module.epochs, "final": module.point(), "rate": rate}
    if method.options is not None:
        shown = ("recon/share", "recon/held", "recon/step_share")
        result["metrics"] = {name: float(trainer.callback_metrics[name]) for name in shown if name in trainer.callback_metrics}
        result["start"] = [report.accuracy_after for report in callbacks[-1].reports][:1]
    return result


def tune(make: Callable[[], nn.Module], parts: Parts, method: Method, epochs: int, seed: int) -> dict[str, Any]:
    """Try all rates in shorter runs; the one with the best accuracy on validation data, and the seconds of all."""
    short = max(1, round(TUNING * epochs))
    runs = {rate: run(make, parts, method, rate, short, seed) for rate in RATES}
    validation = {str(rate): found["final"]["validation"] for rate, found in runs.items()}
    best = max(runs, key=lambda rate: float(runs[rate]["final"]["validation"]))
    return {"rate": best, "validation": validation, "seconds": sum(found["final"]["seconds"] for found in runs.values())}


def _loader(data: TensorDataset) -> DataLoader[Any]:
    return DataLoader(data, BATCH, shuffle=True)
