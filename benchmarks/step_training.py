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

from benchmarks.methods import BATCH, CLIP, QUIET, Method, run
from benchmarks.nets import dense, leaky, recurrent, sequential, steep
from benchmarks.study import Bench
from benchmarks.tasks import Parts, load_task
from snn_recon_plugin import ReconstructionCallback

VALIDATION = 2_000  # images
METHODS = {
    "one cycle, EMA": Method(cycle=True, average=True, fast=False),
    "one cycle, EMA, fast steps": Method(cycle=True, average=True),
    "callback": Method(cycle=True, options={"fast": False}),
    "callback, fast steps": Method(cycle=True, options={}),
}


@dataclass(frozen=True)
class Case:
    """A net that is trained on MNIST by all methods.

    Args:
        build: of a fresh net.
        task: of tasks.py.
        rate: largest learning rate of the cycle.
        epochs: of training alone, and with the callback.
        tests: share of an epoch from one validation and test to the next.
        goals: test accuracies, to which seconds are counted.
        clip: norm of gradients; None for no bound.
    """

    build: Callable[[], nn.Module]
    task: str
    rate: float
    epochs: tuple[int, int]
    tests: float
    goals: tuple[float, ...]
    clip: float | None = None


CASES = {
    "MNIST": Case(
        partial(dense, 784, 300, 10, neuron=partial(leaky, beta=0.9, spike_grad=surrogate.fast_sigmoid(25)), steps=10),
        "all images",
        rate=2e-3,
        epochs=(4, 1),
        tests=0.25,
        goals=(0.97, 0.975, 0.98),
    ),
    "MNIST by row": Case(
        lambda: steep(recurrent(28, 256, axis=1)),
        "rows",
        rate=8e-3,
        epochs=(8, 2),
        tests=1.0,
        goals=(0.85, 0.9, 0.93),
        clip=CLIP,
    ),
}


def train_case(bench: Bench, case: Case, method: str, seed: int) -> dict[str, Any]:
    """Train on MNIST, start included; return CPU seconds and test accuracy at each validation."""
    parts, way = Parts(load_task(case.task, bench.places), seed, VALIDATION), METHODS[method]
    trainer = {"gradient_clip_val": case.clip, "val_check_interval": case.tests}
    found = run(case.build, parts, way, case.rate, case.epochs[way.options is not None], seed, **trainer)
    return {"points": [(point["seconds"], point["test"]) for point in found["epochs"]]}


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
