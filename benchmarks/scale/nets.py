"""The nets of the memory study, with a made data set for each.

Memory depends on shapes alone, so images are class patterns with noise: no files are needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import norse.torch as norse
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["CHANNELS", "NETS", "NetCase"]

CLASSES, CHANNELS = 10, 28  # channels of a sequence
_NOISE = 0.3  # standard deviation of pixels from 0 to 1


class Dense(nn.Module):
    """snnTorch, 784-1000-10: Leaky neurons, and an output without reset; images are held still."""

    def __init__(self, steps: int, width: int = 1000) -> None:
        super().__init__()
        self.steps = steps
        self.fc1, self.lif1 = nn.Linear(784, width), snn.Leaky(beta=0.95)
        self.fc2, self.lif2 = nn.Linear(width, CLASSES), snn.Leaky(beta=0.95, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        hidden, output, membranes = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for _ in range(self.steps):
            spikes, hidden = self.lif1(self.fc1(x), hidden)
            _, output = self.lif2(self.fc2(spikes), output)
            membranes.append(output)
        return torch.stack(membranes)


class DenseNorse(nn.Module):
    """Norse, 784-1000-10: LIF cells, and a leaky integrator."""

    def __init__(self, steps: int, width: int = 1000) -> None:
        super().__init__()
        self.steps = steps
        self.fc1, self.lif1 = nn.Linear(784, width), norse.LIFCell()
        self.fc2, self.out = nn.Linear(width, CLASSES), norse.LICell()

    def forward(self, x: Tensor) -> Tensor:
        hidden = output = None
        membranes = []
        for _ in range(self.steps):
            spikes, hidden = self.lif1(self.fc1(x), hidden)
            membrane, output = self.out(self.fc2(spikes), output)
            membranes.append(membrane)
        return torch.stack(membranes)


class Convolutional(nn.Module):
    """snnTorch, 8C5-MP2-16C5-MP2-10: images of 28 x 28 pixels, held still."""

    def __init__(self, steps: int, width: int = 8) -> None:
        super().__init__()
        self.steps = steps
        self.conv1, self.lif1 = nn.Conv2d(1, width, 5), snn.Leaky(beta=0.9)
        self.conv2, self.lif2 = nn.Conv2d(width, 2 * width, 5), snn.Leaky(beta=0.9)
        self.fc, self.out = nn.Linear(32 * width, CLASSES), snn.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        first, second, output, membranes = self.lif1.init_leaky(), self.lif2.init_leaky(), self.out.init_leaky(), []
        pool = nn.functional.max_pool2d
        for _ in range(self.steps):
            spikes, first = self.lif1(pool(self.conv1(x.reshape(-1, 1, 28, 28)), 2), first)
            spikes, second = self.lif2(pool(self.conv2(spikes), 2), second)
            _, output = self.out(self.fc(spikes.flatten(1)), output)
            membranes.append(output)
        return torch.stack(membranes)


class Recurrent(nn.Module):
    """snnTorch, 28-256-10: RLeaky neurons, all-to-all, on sequences (T, batch, 28)."""

    def __init__(self, steps: int, width: int = 256) -> None:
        super().__init__()
        self.steps = steps
        self.fc1, self.lif1 = nn.Linear(CHANNELS, width), snn.RLeaky(beta=0.9, linear_features=width)
        self.fc2, self.lif2 = nn.Linear(width, CLASSES), snn.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        (spikes, hidden), output, membranes = self.lif1.init_rleaky(), self.lif2.init_leaky(), []
        for value in x:
            spikes, hidden = self.lif1(self.fc1(value), spikes, hidden)
            _, output = self.lif2(self.fc2(spikes), output)
            membranes.append(output)
        return torch.stack(membranes)


def _images(samples: int, batch: int, steps: int, device: str) -> DataLoader[tuple[Tensor, ...]]:
    """Return images (batch, 784) from 0 to 1: one of ten patterns, and noise."""
    del steps
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    patterns = torch.rand(CLASSES, 784, generator=generator)
    images = (patterns[labels] + _NOISE * torch.randn(samples, 784, generator=generator)).clamp_(0, 1)
    return DataLoader(TensorDataset(images.to(device), labels.to(device)), batch)


class _Sequences:
    """Batches of sequences (T, batch, 28), made batch by batch: all at once would take more memory than what is measured.

    Each class has a pattern of frequencies over the channels; a sample shifts its phases.
    """

    def __init__(self, samples: int, batch: int, steps: int, device: str) -> None:
        self.samples, self.batch, self.steps, self.device = samples, batch, steps, device

    def __len__(self) -> int:
        return math.ceil(self.samples / self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        rates = 0.5 * torch.rand(CLASSES, CHANNELS, generator=generator)
        time = torch.arange(self.steps, dtype=torch.float32)[:, None, None]
        for start in range(0, self.samples, self.batch):
            count = min(self.batch, self.samples - start)
            labels = torch.randint(CLASSES, (count,), generator=generator)
            phases = torch.rand(count, 1, generator=generator)
            waves = torch.sin(time * rates[labels] + 6.3 * phases)
            yield waves.to(self.device), labels.to(self.device)


@dataclass(frozen=True)
class NetCase:
    """A net of the study.

    Args:
        build: from time steps and a width to the net; the width has a default.
        loader: from samples, batch, time steps and device to (input, target) batches.
        title: for the table.
        small: width for tests.
    """

    build: Callable[..., nn.Module]
    loader: Callable[[int, int, int, str], DataLoader[tuple[Tensor, ...]] | _Sequences]
    title: str
    small: int


NETS = {
    "dense": NetCase(Dense, _images, "784-1000-10 Leaky, snnTorch", 30),
    "norse": NetCase(DenseNorse, _images, "784-1000-10 LIF, Norse", 30),
    "conv": NetCase(Convolutional, _images, "8C5-MP2-16C5-MP2-10 Leaky, snnTorch", 2),
    "recurrent": NetCase(Recurrent, _Sequences, "28-256-10 RLeaky, snnTorch", 20),
}
