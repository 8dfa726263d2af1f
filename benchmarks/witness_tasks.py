"""Tasks and nets of the studies of witness kinds and of the choice of hidden layers: static images, sequences, few samples.

Inputs are (n, T, D) for sequences and (n, D) for images, which the nets show at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import snntorch as snn
import torch
from torch import Tensor, nn

from benchmarks.hidden_networks import Convolutional
from snn_recon_plugin.demo import load_digits_data, load_mnist_data

__all__ = ["TASKS", "Net", "Task", "test_accuracy"]

TRAIN, TEST, STEPS = 3000, 2000, 25
NOISE = 1.0  # standard deviation, of pixels from 0 to 1, as in start_cost.py
SPEECH_STEPS, SPEECH_BIN = 60, 15  # steps, and milliseconds each
Split = tuple[Tensor, Tensor, Tensor, Tensor]  # training inputs and labels, test inputs and labels


def images(root: str, seed: int, train: int = TRAIN, noise: bool = False) -> Split:
    """MNIST, all pixels at every step."""
    data = load_mnist_data(root, train)
    parts = [(data.train_inputs, data.train_labels), (data.test_inputs, data.test_labels)]
    if noise:
        generator = torch.Generator().manual_seed(seed)
        parts = [((x + NOISE * torch.randn(x.shape, generator=generator)).clamp(0, 1), y) for x, y in parts]
    return *parts[0], *parts[1]


def rows(root: str, seed: int, train: int = TRAIN) -> Split:
    """MNIST, a row of 28 pixels a step."""
    train_inputs, labels, test_inputs, test_labels = images(root, seed, train)
    return train_inputs.view(-1, 28, 28), labels, test_inputs.view(-1, 28, 28)[:TEST], test_labels[:TEST]


def rate_coded(root: str, seed: int) -> Split:
    """MNIST, 15 steps of independent spikes."""
    generator = torch.Generator().manual_seed(seed)
    inputs, labels, test_inputs, test_labels = images(root, seed)

    def spikes(values: Tensor) -> Tensor:
        return (torch.rand(len(values), 15, 784, generator=generator) < values.view(-1, 1, 784)).float()

    return spikes(inputs), labels, spikes(test_inputs[:TEST]), test_labels[:TEST]


def order(root: str, seed: int) -> Split:
    """Twenty noisy inputs over 40 steps; the class says which of two inputs spikes four steps before the other."""
    del root
    generator = torch.Generator().manual_seed(seed)
    count, pairs = TRAIN + TEST, torch.tensor([(0, 1), (1, 0), (2, 3), (3, 2)])
    inputs = (torch.rand(count, 40, 20, generator=generator) < 0.02).float()
    labels, sample = torch.randint(4, (count,), generator=generator), torch.arange(count)
    step = torch.randint(5, 30, (count,), generator=generator)
    inputs[sample, step, pairs[labels, 0]] = 1
    inputs[sample, step + 4, pairs[labels, 1]] = 1
    return inputs[:TRAIN], labels[:TRAIN], inputs[TRAIN:], labels[TRAIN:]


def series(root: str, seed: int) -> Split:
    """One noisy channel over 60 steps: one of four bursts, each of a shape of its own, at a random time, upright or inverted."""
    del root
    generator = torch.Generator().manual_seed(seed)
    count, length = TRAIN + TEST, 16
    phase = torch.linspace(0, 1, length)
    shapes = torch.stack(
        [torch.sin(2 * torch.pi * phase), torch.sin(4 * torch.pi * phase), 2 * phase - 1, 1 - 4 * (phase - 0.5).abs()]
    )
    labels = torch.randint(8, (count,), generator=generator)
    starts = torch.randint(60 - length, (count,), generator=generator)
    inputs = 0.3 * torch.randn(count, 60, 1, generator=generator)
    burst = shapes[labels % 4] * (1 - 2 * (labels // 4))[:, None]
    inputs[torch.arange(count)[:, None], starts[:, None] + torch.arange(length), 0] += 1.5 * burst
    return inputs[:TRAIN], labels[:TRAIN], inputs[TRAIN:], labels[TRAIN:]


def speech(root: str, seed: int) -> Split:
    """Spoken digits of two languages as spikes of 70 cochlea channels; ``speech/ende.npz`` below ``root``."""
    del seed
    stored = dict(np.load(Path(root) / "speech" / "ende.npz"))
    times, channels = (torch.tensor(stored[name].astype("int64")) for name in ("times", "units"))
    inputs = torch.zeros(len(stored["y"]), SPEECH_STEPS, 70)
    for number, part in enumerate(map(slice, stored["ptr"][:-1], stored["ptr"][1:])):
        steps, units = (times[part] // SPEECH_BIN).clamp_max(SPEECH_STEPS - 1), channels[part]
        inputs[number].index_put_((steps, units), torch.ones(len(steps)), accumulate=True)
    labels, test = torch.tensor(stored["y"].astype("int64")), torch.tensor(stored["test"])
    return inputs[~test], labels[~test], inputs[test], labels[test]


def digits(root: str, seed: int, train: int | None = None) -> Split:
    """Scikit-learn's digits, or the first ``train`` of them from a random order."""
    del root
    data = load_digits_data()
    chosen = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(seed))[:train]
    return data.train_inputs[chosen], data.train_labels[chosen], data.test_inputs, data.test_labels


class Net(nn.Module):
    """Layers of snn.Leaky, beta 0.9, and a readout by its membrane, beta 0.95; ``decode`` takes scores from it at all steps."""

    def __init__(self, *widths: int, last: bool = False) -> None:
        super().__init__()
        self.synapses = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.neurons = nn.ModuleList(snn.Leaky(beta=0.9) for _ in widths[2:])
        self.output, self.last = snn.Leaky(beta=0.95, reset_mechanism="none"), last

    def forward(self, x: Tensor) -> Tensor:
        states, out, found = [neuron.init_leaky() for neuron in self.neurons], self.output.init_leaky(), []
        for step in range(STEPS if x.dim() == 2 else x.shape[1]):
            value = x if x.dim() == 2 else x[:, step]
            for number, neuron in enumerate(self.neurons):
                value, states[number] = neuron(self.synapses[number](value), states[number])
            _, out = self.output(self.synapses[-1](value), out)
            found.append(out)
        return found[-1] if self.last else torch.stack(found)


@dataclass(frozen=True)
class Task:
    """Data and the net on it."""

    load: Callable[[str, int], Split]
    build: Callable[[], nn.Module]


TASKS = {
    "MNIST, a row a step": Task(rows, partial(Net, 28, 256, 10)),
    "MNIST, a row a step, last step read": Task(rows, partial(Net, 28, 256, 10, last=True)),
    "MNIST, a row a step, two layers": Task(rows, partial(Net, 28, 128, 128, 10)),
    "speech": Task(speech, partial(Net, 70, 256, 20)),
    "speech, last step read": Task(speech, partial(Net, 70, 256, 20, last=True)),
    "which of two comes first": Task(order, partial(Net, 20, 256, 4)),
    "one channel": Task(series, partial(Net, 1, 256, 8)),
    "MNIST, rate coded": Task(rate_coded, partial(Net, 784, 256, 10)),
    "MNIST": Task(images, partial(Net, 784, 200, 10)),
    "MNIST, two layers": Task(images, partial(Net, 784, 128, 128, 10)),
    "digits": Task(digits, partial(Net, 64, 100, 10)),
    "digits, 270 samples": Task(partial(digits, train=270), partial(Net, 64, 100, 10)),
    # as in docs/evidence/hidden.md, for costs
    "MNIST, 1000 hidden": Task(partial(images, train=10_000), partial(Net, 784, 1000, 10)),
    "MNIST, 200 hidden": Task(partial(images, train=10_000), partial(Net, 784, 200, 10)),
    "MNIST, heavy noise": Task(partial(images, train=10_000, noise=True), partial(Net, 784, 1000, 10)),
    "MNIST, a row a step, 10000": Task(partial(rows, train=10_000), partial(Net, 28, 256, 10)),
    "MNIST, 1000 hidden, 3000 images": Task(images, partial(Net, 784, 1000, 10)),
    "MNIST, convolutional, 1000 images": Task(partial(images, train=1000), Convolutional),
    "MNIST, convolutional": Task(partial(images, train=10_000), Convolutional),
}


def test_accuracy(net: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Test accuracy by the mean membrane, or by what the net returns where that has no time."""
    with torch.no_grad():
        outputs = [net(part) for part in inputs.split(500)]
    scores = torch.cat([output.mean(0) if output.dim() == 3 else output for output in outputs])
    return float((scores.argmax(1) == labels).double().mean())
