"""The cases of the study: a net, its data, and the epochs of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks import start_cost
from benchmarks.hidden_networks import NETWORKS
from benchmarks.temporal.nets import NETS
from benchmarks.temporal.tasks import TASKS, Places, load_task, mnist
from snn_recon_plugin.demo import Data, build_network, load_digits_data

__all__ = ["CASES", "Case", "Parts", "split"]

SLOPE = 25.0  # of snnTorch's tutorials; its default, an arc tangent, trains recurrent nets badly
IMAGES = 5_400
VALIDATION = 0.1  # share of the training data


@dataclass(frozen=True)
class Case:
    """A net on a task.

    Args:
        load: gives its data.
        make: gives a fresh net for data; draws its weights from torch's generator.
        epochs: of a run.
    """

    load: Callable[[Places], Data]
    make: Callable[[Data], nn.Module]
    epochs: int


@dataclass(frozen=True)
class Parts:
    """Data to train on, to validate on, and to test on, which nothing is chosen by."""

    train: TensorDataset
    validation: TensorDataset
    test: tuple[Tensor, Tensor]


def split(data: Data, seed: int) -> Parts:
    """Take a tenth of the training data for validation."""
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(seed))
    held, rest = order.tensor_split([round(VALIDATION * len(order))])
    parts = (TensorDataset(data.train_inputs[index], data.train_labels[index]) for index in (rest, held))
    return Parts(*parts, (data.test_inputs, data.test_labels))


def steep(net: nn.Module) -> nn.Module:
    """Give snnTorch's neurons the surrogate gradient of its tutorials."""
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            module.spike_grad = surrogate.fast_sigmoid(slope=SLOPE)
    return net


def images(kind: str, places: Places, count: int = IMAGES) -> Data:
    """MNIST, its first images, changed as in start_cost.py."""
    if places.mnist is None:
        raise SystemExit("MNIST is needed: pass --root DIR, where torchvision finds it")
    return start_cost.data_of(kind, places.mnist, 0, count, 0)[0]


def mislabelled(wrong: float, places: Places) -> Data:
    """MNIST with a share of the training labels drawn at random; the labels of the test are right."""
    data, draw = images("MNIST", places, 60_000), torch.Generator().manual_seed(0)
    labels = data.train_labels
    drawn = torch.randint(10, labels.shape, generator=draw)
    return replace(data, train_labels=drawn.where(torch.rand(labels.shape, generator=draw) < wrong / 0.9, labels))


def static(name: str, data: Data) -> nn.Module:
    """A net of hidden_networks.py."""
    del data
    return steep(NETWORKS[name]())


def sequential(name: str, data: Data) -> nn.Module:
    """A net of temporal/nets.py, 256 hidden neurons."""
    net = NETS[name](data.train_inputs.shape[2], 256, int(data.train_labels.max()) + 1)
    return steep(net) if name.startswith("snntorch") else net


def small(data: Data) -> nn.Module:
    """64-256-10 of the demo, 10 steps."""
    del data
    return steep(build_network(64, 256, 10, 10))


class Stepped(nn.Module):
    """784-300-10, read by the mean of its output membranes; ``steps`` may be changed."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.neuron = nn.Linear(784, 300), snn.Leaky(beta=0.9)
        self.readout, self.output = nn.Linear(300, 10), snn.Leaky(beta=0.95, reset_mechanism="none")
        self.steps = 10

    def forward(self, x: Tensor) -> Tensor:
        membrane, out, membranes = self.neuron.reset_mem(), self.output.reset_mem(), []
        for _ in range(self.steps):
            spikes, membrane = self.neuron(self.hidden(x), membrane)
            _, out = self.output(self.readout(spikes), out)
            membranes.append(out)
        return torch.stack(membranes)


def stepped(data: Data) -> nn.Module:
    """784-300-10, 10 steps."""
    del data
    return steep(Stepped())


def _over_time(task: str, net: str, epochs: int) -> Case:
    assert task in TASKS
    return Case(partial(load_task, task), partial(sequential, net), epochs)


CASES: dict[str, Case] = {
    "digits": Case(lambda places: load_digits_data(), small, 20),
    "digits by row, recurrent": _over_time("digits", "snntorch-recurrent", 20),
    "spoken digits": _over_time("speech", "snntorch-feedforward", 20),
    "spoken digits, recurrent": _over_time("speech", "snntorch-recurrent", 20),
    "spike timing": _over_time("timing", "snntorch-feedforward", 12),
    "delayed match, recurrent": _over_time("match", "snntorch-recurrent", 12),
    "MNIST": Case(partial(images, "MNIST"), partial(static, "784-1000-10"), 8),
    "MNIST, 60,000 images": Case(partial(images, "MNIST", count=60_000), partial(static, "784-1000-10"), 4),
    "MNIST, 60,000 images, 300 neurons": Case(partial(images, "MNIST", count=60_000), stepped, 4),
    "MNIST, 60,000 images, 300 neurons, 20 % wrong labels": Case(partial(mislabelled, 0.2), stepped, 4),
    "MNIST, 60,000 images, 300 neurons, 40 % wrong labels": Case(partial(mislabelled, 0.4), stepped, 4),
    "MNIST, heavy noise": Case(partial(images, "heavy noise"), partial(static, "784-1000-10"), 8),
    "MNIST, mixed labels": Case(partial(images, "labels mixed, 85 % reachable"), partial(static, "784-1000-10"), 8),
    "MNIST, five layers": Case(partial(images, "MNIST"), partial(static, "784-256x5-10"), 8),
    "MNIST, spiking outputs": Case(partial(images, "MNIST"), partial(static, "784-1000-10 spiking"), 8),
    "MNIST, convolutions": Case(partial(images, "MNIST"), partial(static, "conv"), 4),
    "MNIST, Norse": Case(partial(images, "MNIST"), partial(static, "Norse 784-1000-10"), 8),
    "MNIST by row": _over_time("rows", "snntorch-feedforward", 8),
    "MNIST by row, recurrent": _over_time("rows", "snntorch-recurrent", 8),
    "MNIST by row, recurrent, 60,000 images": Case(
        partial(mnist, steps=28, images=60_000), partial(sequential, "snntorch-recurrent"), 8
    ),
}
