"""Ways to start and to train a net: plain loops, one cycle with an average of the weights, tuned rates, and the callback.

Seconds are those of training, without tuning and tests.  Runs in Lightning take faster steps unless a method says otherwise.
Nothing is chosen by test data.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.nets import accuracy, loss_of, steep
from benchmarks.starts import Start
from benchmarks.tasks import Parts
from snn_recon_plugin import ConvexInitializer, ReconstructionCallback, fast_steps
from snn_recon_plugin.demo import Data

BATCH = 128
CLIP = 1.0  # norm of a step's gradient: recurrent nets of 60 steps diverge without
AVERAGED = 0.05  # time constant of the weights' average, in a run's steps: the rate hardly changes over the last ones
RATES, TUNING_STEPS, TUNING_SHARE = (5e-4, 2e-3, 8e-3), 240, 0.2  # of plain loops: rates, steps of each, share for validation
METHOD_RATES, SHORT = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3), 0.4  # in Lightning: rates, and the share of a run's epochs for each
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Average:
    """Exponential moving average of a net's parameters, over ``span`` steps; over fewer steps it is their plain mean.

    Running statistics of batch ``norms`` are averaged too.
    """

    def __init__(self, net: nn.Module, span: float, norms: bool = True) -> None:
        found = [module for module in net.modules() if norms and isinstance(module, nn.modules.batchnorm._BatchNorm)]
        statistics = [buffer for norm in found for buffer in norm.buffers() if buffer.is_floating_point()]
        self.parameters, self.span, self.steps = [*net.parameters(), *statistics], max(span, 1.0), 0
        self.values: list[Tensor] = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        share = max(1 / self.span, 1 / self.steps)
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter, share)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the average in place of the parameters for a while."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    @torch.no_grad()
    def exchange(self) -> None:
        """Put the average into the net, and keep its parameters in turn."""
        for value, parameter in zip(self.values, self.parameters, strict=True):
            kept = parameter.clone()
            parameter.copy_(value)
            value.copy_(kept)


@dataclass(frozen=True)
class Schedule:
    """Epochs of a plain loop, and how the rate changes in them.

    Args:
        epochs: of training.
        cycle: OneCycleLR up to the rate and down again, and tests of an average (EMA) of the weights; else a fixed rate.
        slope: of a fast sigmoid as snnTorch's surrogate gradient; None leaves the libraries' default, an arc tangent in snnTorch.
        tests: epochs after which a run is tested, beside the last.
        clip: largest norm of a step's gradient.
        batch: samples of a step.
    """

    epochs: int
    cycle: bool = False
    slope: float | None = None
    tests: tuple[int, ...] = (1, 5, 20, 100)
    clip: float = CLIP
    batch: int = BATCH


def train(net: nn.Module, data: Data, schedule: Schedule, rate: float, seed: int) -> dict[str, Any]:
    """Train in place by Adam; test accuracy and CPU seconds after some epochs.  The net keeps the weights that are tested."""
    inputs, labels = data.train_inputs, data.train_labels
    draw = torch.Generator().manual_seed(seed)
    if schedule.slope is not None:
        steep(net, schedule.slope)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    total = schedule.epochs * -(-len(labels) // schedule.batch)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=total) if schedule.cycle else None
    average = Average(net, AVERAGED * total) if schedule.cycle else None
    points, spent = dict[str, dict[str, float]](), 0.0
    for epoch in range(1, schedule.epochs + 1):
        began = time.process_time()
        for index in torch.randperm(len(labels), generator=draw).split(schedule.batch):
            optimizer.zero_grad()
            loss_of(net(inputs[index]), labels[index]).backward()
            nn.utils.clip_grad_norm_(net.parameters(), schedule.clip)
            optimizer.step()
            if cycle is not None and average is not None:
                cycle.step()
                average.update()
        spent += time.process_time() - began
        if epoch in schedule.tests or epoch == schedule.epochs:
            with average.swapped() if average is not None else contextlib.nullcontext():
                test = accuracy(net, data.test_inputs, data.test_labels)
            points[str(epoch)] = {"test": test, "cpu_seconds": spent}
    if average is not None:
        average.exchange()
    return {**points[str(schedule.epochs)], "rate": rate, "epochs": points}


def tune(make: Callable[[], nn.Module], data: Data, schedule: Schedule, seed: int) -> dict[str, Any]:
    """Try rates in short runs on a part of the training data; the best one on the rest, and the CPU seconds of all."""
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(seed))
    held, rest = order.tensor_split([round(TUNING_SHARE * len(order))])
    part = Data(data.train_inputs[rest], data.train_labels[rest], data.train_inputs[held], data.train_labels[held])
    short = replace(schedule, epochs=max(1, round(TUNING_STEPS * BATCH / len(rest))))
    runs = {rate: train(make(), part, short, rate, seed) for rate in RATES}
    spent = sum(found["cpu_seconds"] for found in runs.values())
    validation = {str(rate): found["test"] for rate, found in runs.items()}
    return {"rate": max(runs, key=lambda rate: float(runs[rate]["test"])), "validation": validation, "cpu_seconds": spent}


@dataclass(frozen=True)
class Method:
    """A way to train in Lightning's loop.

    Args:
        cycle: OneCycleLR up to the rate and down again; else a fixed rate.
        average: tests and validation use an exponential moving average (EMA) of the weights, without the callback.
        options: of the callback; None for none.
        start: what runs before training; None for nothing.
        optimizer: its class.
        rate: a fixed learning rate; None for the one tuned for the method's schedule without the plugin.
        fast: whether steps are faster without the callback.
    """

    cycle: bool = False
    average: bool = False
    options: Mapping[str, Any] | None = None
    start: Start | None = None
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    rate: float | None = None
    fast: bool = True


class Module(pl.LightningModule):
    """A user's module: a net, its loss, and Adam at a rate."""

    def __init__(self, net: Any, rate: float, objective: Callable[[Any, Tensor], Tensor] = loss_of) -> None:
        super().__init__()
        self.net, self.rate, self.objective = net, rate, objective

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.objective(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("validation", self.objective(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), self.rate)

    def one_cycle(self, optimizer: torch.optim.Optimizer) -> Any:
        """Return an optimizer with OneCycleLR over the whole run."""
        total = int(self.trainer.estimated_stepping_batches)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=total)
        return [optimizer], [{"scheduler": cycle, "interval": "step"}]


class Timed(Module):
    """A module that is trained by a method, with a clock that stands still while the net is tested."""

    def __init__(self, net: nn.Module, parts: Parts, method: Method, rate: float) -> None:
        super().__init__(net, rate)
        self.parts, self.method = parts, method
        self.started: dict[str, float] | None = None  # once the callback has run its start
        self.epochs: list[dict[str, float]] = []
        self.average: Average | None = None
        self.began, self.testing = time.process_time(), 0.0

    def configure_optimizers(self) -> Any:
        momentum = {"momentum": 0.9} if self.method.optimizer is torch.optim.SGD else {}
        optimizer = self.method.optimizer(self.net.parameters(), self.rate, **momentum)
        return self.one_cycle(optimizer) if self.method.cycle else optimizer

    def on_train_start(self) -> None:
        if self.method.options is not None:
            self.started = self.point()
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
        with self.average.swapped() if self.average is not None else contextlib.nullcontext():
            found = {"validation": accuracy(self.net, *self.parts.validation.tensors), "test": accuracy(self.net, *self.parts.test)}
        seconds = began - self.began - self.testing
        self.testing += time.process_time() - began
        return {"seconds": seconds, **found}


def run(
    make: Callable[[], nn.Module], parts: Parts, method: Method, rate: float, epochs: int, seed: int, **options: Any
) -> dict[str, Any]:
    """Train a fresh net; accuracies and CPU seconds after each validation, and of the net in the end.

    ``options`` are of Lightning's trainer.
    """
    pl.seed_everything(seed, verbose=False)
    module = Timed(make(), parts, method, rate)
    result: dict[str, Any] = {}
    if method.start is not None:
        method.start(module.net, parts.train, seed)
        result["started"] = module.point()
    callbacks = []
    if method.options is not None:
        callbacks.append(ReconstructionCallback(ConvexInitializer(seed=seed, progress=False), **method.options))
    options = {"gradient_clip_val": CLIP, **QUIET, **options}
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=callbacks, **options)
    loader = DataLoader(parts.train, BATCH, shuffle=True)
    if method.options is None and method.fast:  # the callback does so itself
        fast_steps(module.net, loader)
    trainer.fit(module, loader, DataLoader(parts.validation, 500))
    result |= {"epochs": module.epochs, "final": module.point(), "rate": rate}
    if method.options is not None:
        result["started"] = module.started
        shown = ("recon/share", "recon/held", "recon/step_share")
        result["metrics"] = {name: float(trainer.callback_metrics[name]) for name in shown if name in trainer.callback_metrics}
        result["start"] = [report.accuracy_after for report in callbacks[0].reports][:1]
    return result


def tune_method(make: Callable[[], nn.Module], parts: Parts, method: Method, epochs: int, seed: int) -> dict[str, Any]:
    """Try rates in shorter runs; the one with the best accuracy on validation data, and the seconds of all."""
    bare = replace(method, options=None, start=None, average=method.cycle)
    runs = {rate: run(make, parts, bare, rate, max(1, round(SHORT * epochs)), seed) for rate in METHOD_RATES}
    validation = {str(rate): found["final"]["validation"] for rate, found in runs.items()}
    best = max(runs, key=lambda rate: float(runs[rate]["final"]["validation"]))
    return {"rate": best, "validation": validation, "seconds": sum(found["final"]["seconds"] for found in runs.values())}
