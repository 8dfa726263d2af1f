"""Nets of the study of the finish, each with the loss, the test and the learning rate of a user's script."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import snntorch as snn
import snntorch.functional as SF
import torch
from snntorch import surrogate, utils
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.image_nets import DEEP_NETS
from benchmarks.methods import AVERAGED, BATCH, CLIP, Average
from benchmarks.nets import Steps, accuracy, leaky, loss_of, scores_of, sequential, tutorial_5
from benchmarks.studies.training import CASES as TASKS
from benchmarks.studies.tutorial_5 import loss_of as membrane_loss
from benchmarks.study import Places
from benchmarks.tasks import Parts, load_task
from snn_recon_plugin import fast_steps
from snn_recon_plugin.demo import Data

TUTORIAL_STEPS = 50  # of tutorial 6
SMALL_BATCH = 32  # for 2,000 images


def one_pass(net: nn.Module, inputs: Tensor) -> Any:
    return net(inputs)


@dataclass(frozen=True)
class Case:
    """A net on a task, and how a script trains and tests it.

    Args:
        task: name in tasks.py.
        make: builds a fresh net for the data.
        loss: training loss of a pass's output and the labels.
        scores: the class with the largest of these scores (B, C) is predicted.
        run: runs the net over all time steps.
        rate: Adam's fixed learning rate; None tunes it on validation samples.
        epochs: numbers of epochs at the fixed rate after which the line and the finish are called.
        cycle: epochs of the tuned cycle.
        held: number of validation samples; None for a tenth of the training data.
        batch: samples of a training step.
        clip: largest norm of a step's gradient; None for no limit.
        tests: number of test samples; None for all.
        line_seeds: number of seeds for which the line is called.
    """

    task: str
    make: Callable[[Data], nn.Module]
    loss: Callable[[Any, Tensor], Tensor] = loss_of
    scores: Callable[[Any], Tensor] = scores_of
    run: Callable[[nn.Module, Tensor], Any] = one_pass
    rate: float | None = None
    epochs: tuple[int, ...] = (0, 1, 2, 4, 8)
    cycle: int = 8
    held: int | None = None
    batch: int = BATCH
    clip: float | None = None
    tests: int | None = None
    line_seeds: int = 3

    def step(self, net: nn.Module, batch: Any) -> Tensor:
        """Return the training loss of a batch: the script's step."""
        return self.loss(self.run(net, batch[0]), batch[1])

    def test(self, net: nn.Module, batch: Any) -> Tensor:
        """Return the predicted classes of a batch."""
        return self.scores(self.run(net, batch[0])).argmax(1)

    def accuracy(self, net: nn.Module, data: Sequence[Tensor]) -> float:
        """Return the share of samples whose class is predicted right."""
        inputs, labels = data
        return accuracy(net, inputs, labels, lambda part: self.scores(self.run(net, part)))

    def parts(self, places: Places, seed: int) -> Parts:
        """Return training, validation and test data; the validation samples are drawn from the training data by the seed."""
        parts = Parts(load_task(self.task, places), seed, self.held)
        inputs, labels = parts.test
        parts.test = inputs[: self.tests], labels[: self.tests]
        return parts

    def fresh(self, places: Places, seed: int) -> nn.Module:
        """Return the net with weights drawn by the seed."""
        torch.manual_seed(seed)
        return self.make(load_task(self.task, places))

    def loader(self, part: TensorDataset, seed: int) -> DataLoader[Any]:
        """Return a shuffled training loader."""
        return DataLoader(part, self.batch, shuffle=True, generator=torch.Generator().manual_seed(seed))


def train(case: Case, net: nn.Module, parts: Parts, rate: float, epochs: int, seed: int, *, cycle: bool) -> Iterator[float]:
    """Train in place by Adam with faster steps; yield CPU seconds so far, before the first epoch and after each.

    A cycle is a OneCycleLR up to the rate and down again, and leaves an EMA of the weights after the last epoch.
    """
    yield 0.0
    began, loader = time.process_time(), case.loader(parts.train, seed)
    handle, optimizer = fast_steps(net, loader, step=case.step), torch.optim.Adam(net.parameters(), rate)
    total = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=total) if cycle else None
    average = Average(net, AVERAGED * total)
    spent = time.process_time() - began
    for epoch in range(1, epochs + 1):
        began = time.process_time()
        for batch in loader:
            optimizer.zero_grad()
            handle(net, batch).backward()
            if case.clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), case.clip)
            optimizer.step()
            if schedule is not None:
                schedule.step()
                average.update()
        if cycle and epoch == epochs:
            average.exchange()
        spent += time.process_time() - began
        yield spent


def dense_net(data: Data, reset: str = "subtract", both: bool = True) -> nn.Module:
    """Return snnTorch's 784-500-10 over 10 steps, with an output neuron that spikes, or one without a reset."""
    first, last = (nn.Linear(784, 500), leaky(beta=0.9)), (nn.Linear(500, 10), leaky(beta=0.9, reset_mechanism=reset))
    return Steps(first, last, steps=10, both=both)


def count_loss(output: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy of the spike counts."""
    return functional.cross_entropy(output[0].sum(0), labels)


def sum_over_time(spikes: Tensor) -> Tensor:
    return spikes.sum(0)


def over_steps(net: nn.Module, images: Tensor) -> Tensor:
    """Spikes of a net whose neurons keep their states, for an image shown at every step."""
    utils.reset(net)
    return torch.stack([net(images)[0] for _ in range(TUTORIAL_STEPS)])


def over_frames(net: nn.Module, events: Tensor) -> Tensor:
    """Spikes of a net whose neurons keep their states, for the frames of a recording (B, T, 2, H, W)."""
    utils.reset(net)
    return torch.stack([net(frame)[0] for frame in events.unbind(1)])


def event_net(data: Data) -> nn.Module:
    """Return the net of snnTorch's tutorial 7, 12C5-MP2-32C5-MP2-800FC10, for events."""
    options = {"beta": 0.5, "spike_grad": surrogate.atan(), "init_hidden": True}
    first = [nn.Conv2d(2, 12, 5), snn.Leaky(**options), nn.MaxPool2d(2)]
    second = [nn.Conv2d(12, 32, 5), snn.Leaky(**options), nn.MaxPool2d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(800, 10), snn.Leaky(**options, output=True))


DENSE = partial(Case, "22,000 images", dense_net, held=2_000, rate=1e-3)
HARD = partial(Case, "3,300 hard images", held=300, batch=64)
CONVOLUTIONS = ("tutorial 6", "four convolutions", "four convolutions, batch norm", "SEW", "SpikingJelly, batch norm")
CASES: dict[str, Case] = {
    **{name: Case(task.task, task.make, cycle=task.epochs, clip=CLIP) for name, task in TASKS.items()},
    "784-500-10, membranes trained, spikes counted": DENSE(loss=membrane_loss),
    "784-500-10, counts trained": DENSE(loss=count_loss),
    "784-500-10, mean membrane, 2,000 images": Case(
        "2,400 images", partial(dense_net, reset="none", both=False), held=400, rate=1e-3, batch=SMALL_BATCH
    ),
    "tutorial 5": Case(
        *("all images", lambda data: tutorial_5(), membrane_loss), rate=5e-4, epochs=(0, 1, 2), cycle=2, line_seeds=1
    ),
    "tutorial 6": Case(
        *("1,500 images", lambda data: sequential(), SF.ce_rate_loss(), sum_over_time, over_steps),
        rate=1e-2,
        epochs=(0, 1, 2, 4),
        cycle=4,
        tests=2_000,
        line_seeds=1,
    ),
    "tutorial 7, made events": Case(
        *("moving images", event_net, SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2), sum_over_time, over_frames),
        rate=2e-2,
    ),
    **{f"{net}, hard images": HARD(lambda data, net=net: DEEP_NETS[net]()) for net in CONVOLUTIONS},
}
