"""Nets with snnTorch beyond dense layers: convolutions, normalisation, gates, Lightning modules."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import pytorch_lightning
import snntorch as snn
import snntorch.functional as SF
import torch
import torch.nn.utils.prune
from snntorch import surrogate
from torch import Tensor, nn

from benchmarks.user_nets_common import CLASSES, STEPS
from benchmarks.user_nets_dense import Loop

SPIKE_GRAD = surrogate.atan()


def kept(**options: Any) -> nn.Module:
    """A neuron that keeps its membrane between calls."""
    return snn.Leaky(beta=0.5, spike_grad=SPIKE_GRAD, init_hidden=True, **options)


def conv_net(channels: int = 1) -> nn.Sequential:
    """Tutorials 6 and 7: two convolutions and a Linear."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.MaxPool2d(2),
        kept(),
        nn.Conv2d(8, 16, 3),
        kept(),
        nn.Flatten(),
        nn.Linear(16 * 2 * 2, CLASSES),
        kept(output=True),
    )


def depthwise_net() -> nn.Sequential:
    """A grouped convolution, as mobile nets have them."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        kept(),
        nn.Conv2d(8, 16, 3, groups=8),
        nn.AvgPool2d(2),
        kept(),
        nn.Flatten(),
        nn.Linear(16 * 3 * 3, CLASSES),
        kept(output=True),
    )


class Conv1dNet(nn.Module):
    """A convolution along a row, the rows as channels, as keyword nets have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lif1 = nn.Conv1d(8, 24, 3), snn.Leaky(beta=0.9)
        self.fc, self.lif2 = nn.Linear(24 * 6, CLASSES), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2, spikes, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), [], []
        for _ in range(STEPS):
            spk1, mem1 = self.lif1(self.conv(x), mem1)
            spk2, mem2 = self.lif2(self.fc(spk1.flatten(1)), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


class Normalised(Loop):
    """Batch norm and dropout before the neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(self.fc1.out_features), nn.Dropout(0.2)
        self.fc1 = nn.Sequential(self.fc1, self.norm, self.drop)
        run_in(self.norm)


def run_in(norm: nn.Module) -> None:
    """Statistics as of a net that was trained for a while."""
    norm.running_mean.normal_(0, 0.2)
    norm.running_var.uniform_(0.2, 0.6)


class NormalisedOverTime(Loop):
    """Batch norm with parameters of its own at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = snn.BatchNormTT1d(self.fc1.out_features, STEPS)
        for norm in self.norms:
            run_in(norm)

    def steps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2, spikes, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), [], []
        for step in range(STEPS):
            spk1, mem1 = self.lif1(self.norms[step](self.fc1(x)), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


class Residual(nn.Module):
    """Spikes of two layers are added."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 60), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(60, 60), snn.Leaky(beta=0.9)
        self.fc3, self.lif3 = nn.Linear(60, CLASSES), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2, mem3 = (neuron.reset_mem() for neuron in (self.lif1, self.lif2, self.lif3))
        spikes, membranes = [], []
        for _ in range(STEPS):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk3, mem3 = self.lif3(self.fc3(spk1 + spk2), mem3)
            spikes.append(spk3)
            membranes.append(mem3)
        return torch.stack(spikes), torch.stack(membranes)


class LongShortTerm(nn.Module):
    """An SLSTM layer under a Linear and a Leaky."""

    def __init__(self) -> None:
        super().__init__()
        self.slstm = snn.SLSTM(8, 40)
        self.fc, self.lif = nn.Linear(40, CLASSES), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        syn, mem = self.slstm.reset_mem()
        mem2, spikes, membranes = self.lif.reset_mem(), [], []
        for step in range(x.size(1)):
            _, syn, mem = self.slstm(x[:, step], syn, mem)
            spk2, mem2 = self.lif(self.fc(mem), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


class LightningNet(L.LightningModule):
    """A net inside a LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.loss = Loop(), SF.ce_rate_loss()

    def forward(self, x: Tensor) -> Any:
        return self.net(x.flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        data, targets = batch
        return self.loss(self(data)[0], targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class OldLightningNet(pytorch_lightning.LightningModule):
    """A net whose layers the module of the older package holds itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 80), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(80, CLASSES), snn.Leaky(beta=0.9)

    forward = Loop.steps
    num_steps = STEPS
    current = Loop.current


def frozen_features() -> nn.Sequential:
    """Convolutions that are not trained, and a head for new classes."""
    net = conv_net()
    for parameter in net[:6].parameters():
        parameter.requires_grad_(False).mul_(2)  # as of a trained part, whose neurons spike
    return net


def normalised_weights() -> Loop:
    """Both Linears with torch's own weight norm."""
    net = Loop()
    for layer in (net.fc1, net.fc2):
        nn.utils.parametrizations.weight_norm(layer)
    return net


class OwnTraining(Loop):
    """A module whose ``train`` is a training loop of its own."""

    def train(self) -> None:
        raise RuntimeError("the script's training loop was called")


def old_weight_norm() -> Loop:
    """The Linears with the weight norm of before PyTorch 2.0."""
    net = Loop()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for layer in (net.fc1, net.fc2):
            nn.utils.weight_norm(layer)
    return net


def pruned() -> Loop:
    """A hidden layer of which half the weights were pruned."""
    net = Loop()
    nn.utils.prune.l1_unstructured(net.fc1, "weight", amount=0.5)
    return net
