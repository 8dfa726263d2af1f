"""Nets of the study of steps that are trained on MNIST: alone and with the callback, with faster steps and without."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from snntorch import surrogate, utils
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.methods import AVERAGED, CLIP, QUIET, Average
from benchmarks.nets import steep
from benchmarks.step_nets import BATCH, NETS, dense, leaky, sequential
from benchmarks.study import Bench
from benchmarks.tasks import load_mnist_data
from snn_recon_plugin import ReconstructionCallback, fast_steps

RATE, VALIDATION = 2e-3, 2_000
METHODS = {  # whether it has the callback, and faster steps
    "one cycle, EMA": (False, False),
    "one cycle, EMA, fast steps": (False, True),
    "callback": (True, False),
    "callback, fast steps": (True, True),
}


@dataclass(frozen=True)
class Case:
    """A net that is trained on MNIST by all methods.

    Args:
        build: of a fresh net.
        shape: of one input.
        images: to train and to validate with, the first ones.
        rate: largest learning rate of the cycle.
        epochs: of training alone, and with the callback.
        tests: share of an epoch from one validation and test to the next.
        goals: test accuracies, to which seconds are counted.
        clip: norm of gradients; None for no bound.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    images: int
    rate: float
    epochs: tuple[int, int]
    tests: float
    goals: tuple[float, ...]
    clip: float | None = None


CASES = {
    "MNIST": Case(
        partial(dense, 784, 300, 10, neuron=partial(leaky, beta=0.9, spike_grad=surrogate.fast_sigmoid(25)), steps=10),
        (784,),
        images=60_000,
        rate=RATE,
        epochs=(4, 1),
        tests=0.25,
        goals=(0.97, 0.975, 0.98),
    ),
    "MNIST by row": Case(
        lambda: steep(NETS["rows, RLeaky 256"].build()),
        (28, 28),
        images=10_000,
        rate=8e-3,
        epochs=(8, 2),
        tests=1.0,
        goals=(0.85, 0.9, 0.93),
        clip=CLIP,
    ),
}


class Classifier(pl.LightningModule):
    """A case's net in Lightning's loop; notes CPU seconds and test accuracy at each validation."""

    def __init__(self, case: Case, test: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.net, self.rate, self.test_data = case.build(), case.rate, test
        self.points: list[tuple[float, float]] = []
        self.began = self.testing = 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.net(batch[0])[1].mean(0), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("validation", functional.cross_entropy(self.net(batch[0])[1].mean(0), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), self.rate)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=int(self.trainer.estimated_stepping_batches))
        return [optimizer], [{"scheduler": cycle, "interval": "step"}]

    @torch.no_grad()
    def on_validation_epoch_end(self) -> None:
        began = time.process_time()
        right = [
            (self.net(x)[1].mean(0).argmax(1) == y).sum()
            for x, y in zip(*(part.split(1000) for part in self.test_data), strict=True)
        ]
        self.points.append((began - self.began - self.testing, float(sum(right)) / len(self.test_data[1])))
        self.testing += time.process_time() - began


class Averaged(pl.Callback):
    """An exponential moving average of the weights, which validation uses."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.average = Average(pl_module.net, AVERAGED * int(trainer.estimated_stepping_batches))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.average.update()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.swapped = self.average.swapped()
        self.swapped.__enter__()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.swapped.__exit__(None, None, None)


def train_case(bench: Bench, case: Case, method: str, seed: int) -> dict[str, Any]:
    """Train on MNIST, start included; return CPU seconds and test accuracy at each validation."""
    data = load_mnist_data(bench.places.need("mnist"), case.images)
    train_inputs, test_inputs = (inputs.view(-1, *case.shape) for inputs in (data.train_inputs, data.test_inputs))
    held, rest = torch.randperm(case.images, generator=torch.Generator().manual_seed(seed)).tensor_split([VALIDATION])
    train, validation = (TensorDataset(train_inputs[part], data.train_labels[part]) for part in (rest, held))
    pl.seed_everything(seed, verbose=False)
    module, (has_callback, fast) = Classifier(case, (test_inputs, data.test_labels)), METHODS[method]
    callbacks = [ReconstructionCallback(fast=fast)] if has_callback else [Averaged()]
    trainer = pl.Trainer(
        max_epochs=case.epochs[has_callback],
        accelerator="cpu",
        callbacks=callbacks,
        gradient_clip_val=case.clip,
        val_check_interval=case.tests,
        num_sanity_val_steps=0,
        **QUIET,
    )
    loader = DataLoader(train, BATCH, shuffle=True)
    module.began = time.process_time()
    if fast and not has_callback:
        fast_steps(module.net, loader)
    trainer.fit(module, loader, DataLoader(validation, 500))
    return {"points": module.points}


# -- loops in a training_step --------------------------------------------------------------------------------------------------

LOOPS: dict[str, Callable[[], nn.Module]] = {  # nets whose neurons keep their states
    "784-300-10, 10 steps": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), leaky(init_hidden=True), nn.Linear(300, 10), leaky(init_hidden=True, output=True)
    ),
    "tutorial 6, 10 steps": sequential,
}
LOOP_STEPS, TIMED = 10, 60


class LoopModule(pl.LightningModule):
    """A LightningModule whose training_step loops over time, and logs loss and accuracy."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, labels = batch
        utils.reset(self.net)
        counts = torch.stack([self.net(inputs)[0] for _ in range(LOOP_STEPS)]).sum(0)
        loss = functional.cross_entropy(counts, labels)
        self.log("loss", loss)
        self.log("accuracy", (counts.argmax(1) == labels).float().mean())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


class Stopwatch(pl.Callback):
    """CPU seconds of each training step, with its optimizer."""

    def __init__(self) -> None:
        self.began, self.seconds = 0.0, list[float]()

    def on_train_batch_start(self, *rest: Any) -> None:
        self.began = time.process_time()

    def on_train_batch_end(self, *rest: Any) -> None:
        self.seconds.append(time.process_time() - self.began)


def time_loop(name: str) -> dict[str, float]:
    """Return the median seconds of a step of a LightningModule with the callback, by plans and without."""
    draw, medians = torch.Generator().manual_seed(0), []
    images = TensorDataset(torch.rand(2 * BATCH, 1, 28, 28, generator=draw), torch.randint(10, (2 * BATCH,), generator=draw))
    for fast in (False, True):
        pl.seed_everything(0, verbose=False)
        watch, callback = Stopwatch(), ReconstructionCallback(hidden="keep", at_start=False, damping=1.0, fast=fast, progress=False)
        trainer = pl.Trainer(max_steps=TIMED, max_epochs=-1, accelerator="cpu", callbacks=[callback, watch], **QUIET)
        trainer.fit(LoopModule(LOOPS[name]()), DataLoader(images, BATCH, shuffle=True))
        medians.append(statistics.median(watch.seconds[TIMED // 2 :]))
    return {"plain": medians[0], "fast": medians[1]}
