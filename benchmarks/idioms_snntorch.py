"""Classifiers of 8 x 8 digits in each way in which snnTorch's tutorials put a net together.

Every builder takes the output neuron's reset mechanism, and every net gives (spikes, membranes) over time.
"""

from __future__ import annotations

import snntorch as snn
import torch
from torch import Tensor, nn

from benchmarks.idioms_common import DIGITS, Sizes

BETA = 0.9


class ExplicitLoop(nn.Module):
    """Tutorial 5: membranes passed by hand, the time loop inside."""

    def __init__(self, reset: str, sizes: Sizes = DIGITS) -> None:
        super().__init__()
        self.steps = sizes.steps
        self.fc1, self.lif1 = nn.Linear(sizes.inputs, sizes.hidden), snn.Leaky(beta=BETA)
        self.fc2, self.lif2 = nn.Linear(sizes.hidden, sizes.classes), snn.Leaky(beta=BETA, reset_mechanism=reset)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        spikes, membranes = [], []
        for _ in range(self.steps):
            hidden, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(hidden), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


class ExplicitConv(nn.Module):
    """Tutorial 6 as a class: pooling between the currents, ``flatten`` before the readout."""

    def __init__(self, reset: str, sizes: Sizes = DIGITS) -> None:
        super().__init__()
        self.steps = sizes.steps
        self.conv1, self.lif1 = nn.Conv2d(1, sizes.channels[0], 3, padding=1), snn.Leaky(beta=BETA)
        self.conv2, self.lif2 = nn.Conv2d(*sizes.channels, 3), snn.Leaky(beta=BETA)
        self.fc, self.lif3 = nn.Linear(4 * sizes.channels[1], sizes.classes), snn.Leaky(beta=BETA, reset_mechanism=reset)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2, mem3 = self.lif1.reset_mem(), self.lif2.reset_mem(), self.lif3.reset_mem()
        spikes, membranes = [], []
        for _ in range(self.steps):
            hidden, mem1 = self.lif1(nn.functional.max_pool2d(self.conv1(x), 2), mem1)
            hidden, mem2 = self.lif2(self.conv2(hidden), mem2)
            spk3, mem3 = self.lif3(self.fc(hidden.flatten(1)), mem3)
            spikes.append(spk3)
            membranes.append(mem3)
        return torch.stack(spikes), torch.stack(membranes)


def sequential(reset: str, sizes: Sizes = DIGITS) -> nn.Module:
    """The quickstart: neurons keep their own membranes, the time loop is outside."""
    return nn.Sequential(
        nn.Linear(sizes.inputs, sizes.hidden),
        snn.Leaky(beta=BETA, init_hidden=True),
        nn.Linear(sizes.hidden, sizes.classes),
        snn.Leaky(beta=BETA, init_hidden=True, output=True, reset_mechanism=reset),
    )


def sequential_conv(reset: str, sizes: Sizes = DIGITS) -> nn.Module:
    """Tutorial 6's Sequential."""
    return nn.Sequential(
        nn.Conv2d(1, sizes.channels[0], 3, padding=1),
        nn.MaxPool2d(2),
        snn.Leaky(beta=BETA, init_hidden=True),
        nn.Conv2d(*sizes.channels, 3),
        snn.Leaky(beta=BETA, init_hidden=True),
        nn.Flatten(),
        nn.Linear(4 * sizes.channels[1], sizes.classes),
        snn.Leaky(beta=BETA, init_hidden=True, output=True, reset_mechanism=reset),
    )


class Nested(nn.Module):
    """A net inside a net, whose neurons ``snntorch.utils.reset`` does not reach."""

    def __init__(self, reset: str, sizes: Sizes = DIGITS) -> None:
        super().__init__()
        self.body = sequential(reset, sizes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spikes, membrane = self.body(x)
        return spikes, membrane


class States(nn.Module):
    """Tutorial 8: StateLeaky takes all steps at once and never resets."""

    def __init__(self, _: str, sizes: Sizes = DIGITS) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(sizes.inputs, sizes.hidden), snn.StateLeaky(beta=BETA, channels=sizes.hidden)
        self.fc2, self.lif2 = nn.Linear(sizes.hidden, sizes.classes), snn.StateLeaky(beta=BETA, channels=sizes.classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden, _ = self.lif1(self.fc1(x))
        spikes, membranes = self.lif2(self.fc2(hidden))
        return spikes, membranes


class Linears(nn.Module):
    """LinearLeaky: synapse and neuron in one module."""

    def __init__(self, _: str, sizes: Sizes = DIGITS) -> None:
        super().__init__()
        self.lif1, self.lif2 = snn.LinearLeaky(BETA, sizes.inputs, sizes.hidden), snn.LinearLeaky(BETA, sizes.hidden, sizes.classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden, _ = self.lif1(x)
        spikes, membranes = self.lif2(hidden)
        return spikes, membranes


class Parallel(nn.Module):
    """LeakyParallel: an nn.RNN that gives spikes alone; the readout's currents are the scores."""

    def __init__(self, _: str, sizes: Sizes = DIGITS) -> None:
        super().__init__()
        self.lif1, self.fc = snn.LeakyParallel(sizes.inputs, sizes.hidden, beta=BETA), nn.Linear(sizes.hidden, sizes.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lif1(x))


class Recurrent(nn.Module):
    """RLeaky: the layer's own spikes come back through a Linear inside it."""

    def __init__(self, reset: str, sizes: Sizes = DIGITS) -> None:
        super().__init__()
        self.steps = sizes.steps
        self.fc1, self.lif1 = nn.Linear(sizes.inputs, sizes.hidden), snn.RLeaky(beta=BETA, linear_features=sizes.hidden)
        self.fc2, self.lif2 = nn.Linear(sizes.hidden, sizes.classes), snn.Leaky(beta=BETA, reset_mechanism=reset)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (hidden, mem1), mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        spikes, membranes = [], []
        for _ in range(self.steps):
            hidden, mem1 = self.lif1(self.fc1(x), hidden, mem1)
            spk2, mem2 = self.lif2(self.fc2(hidden), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)
