"""Surrogate-gradient training of a net: Adam, batches of 128, at a fixed rate or in one cycle with an average of the weights."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from snntorch import surrogate
from torch import Tensor, nn

from snn_recon_plugin.demo import Data

from .nets import accuracy

__all__ = ["BATCH", "LOOKS", "RATES", "Schedule", "split_for_tuning", "train", "tune"]

BATCH = 128
LOOKS = (1, 5, 20, 100)  # epochs after which a run is tested
RATES = (5e-4, 2e-3, 8e-3)
CLIP = 1.0  # norm of a step's gradient: recurrent nets of 60 steps diverge without
AVERAGED = 0.05  # time constant of the weights' average, in a run's steps: the rate hardly changes over the last ones
TUNING_STEPS = 240  # per rate: 3 epochs of 10,000 images
VALIDATION = 0.2  # share of the training data


@dataclass(frozen=True)
class Schedule:
    """Epochs of a run, and how the rate changes in them.

    Args:
        epochs: of training.
        cycle: OneCycleLR up to the rate and down again, and tests of an average (EMA) of the weights; else a fixed rate.
        slope: of a fast sigmoid as snnTorch's surrogate gradient; None leaves the libraries' default, an arc tangent in snnTorch.
    """

    epochs: int
    cycle: bool = False
    slope: float | None = None


def train(net: nn.Module, data: Data, schedule: Schedule, rate: float, seed: int) -> dict[str, Any]:
    """Train in place; test accuracy and seconds so far after the epochs of ``LOOKS``, seconds of tests left out."""
    inputs, labels = data.train_inputs, data.train_labels
    draw = torch.Generator().manual_seed(seed)
    if schedule.slope is not None:
        net.neuron.spike_grad = surrogate.fast_sigmoid(slope=schedule.slope)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    total = schedule.epochs * -(-len(labels) // BATCH)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=total) if schedule.cycle else None
    average = Average(net, AVERAGED * total) if schedule.cycle else None
    points: dict[str, dict[str, float]] = {}
    spent = torch.zeros(2, dtype=torch.float64)
    for epoch in range(1, schedule.epochs + 1):
        began = _clocks()
        for index in torch.randperm(len(labels), generator=draw).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[index]).mean(0), labels[index]).backward()
            nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimizer.step()
            if cycle is not None and average is not None:
                cycle.step()
                average.update()
        spent += _clocks() - began
        if epoch in LOOKS or epoch == schedule.epochs:
            with average.swapped() if average is not None else contextlib.nullcontext():
                test = accuracy(net, data.test_inputs, data.test_labels)
            points[str(epoch)] = {"test": test, "seconds": float(spent[0]), "cpu_seconds": float(spent[1])}
    last = points[str(schedule.epochs)]
    return {**last, "rate": rate, "epochs": points}


def tune(make: Callable[[], nn.Module], data: Data, schedule: Schedule, seed: int) -> dict[str, Any]:
    """Try the rates of ``RATES`` in short runs; validation accuracy of each, the best rate, and the seconds of all.

    Runs are as ``schedule`` says, but for their epochs.
    """
    data = split_for_tuning(data, seed)
    epochs = max(1, round(TUNING_STEPS * BATCH / len(data.train_labels)))
    runs = {rate: train(make(), data, replace(schedule, epochs=epochs), rate, seed) for rate in RATES}
    spent = {name: sum(run[name] for run in runs.values()) for name in ("seconds", "cpu_seconds")}
    validation = {str(rate): run["test"] for rate, run in runs.items()}
    return {"rate": max(runs, key=lambda rate: float(runs[rate]["test"])), "validation": validation, "epochs": epochs, **spent}


def split_for_tuning(data: Data, seed: int) -> Data:
    """Training data alone: a part to train on, and a part that stands where test data do."""
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(seed))
    held, rest = order.tensor_split([round(VALIDATION * len(order))])
    return Data(data.train_inputs[rest], data.train_labels[rest], data.train_inputs[held], data.train_labels[held])


class Average:
    """Exponential moving average of a net's parameters, over ``span`` steps; over fewer steps it is their plain mean."""

    def __init__(self, net: nn.Module, span: float) -> None:
        self.parameters, self.span, self.steps = list(net.parameters()), max(span, 1.0), 0
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
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for value, parameter in zip(self.values, self.parameters, strict=True):
            kept = parameter.clone()
            parameter.copy_(value)
            value.copy_(kept)


def _clocks() -> Tensor:
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)
