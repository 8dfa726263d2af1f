"""Nets with snnTorch beyond dense layers: convolutions, normalisation, events, loaders of other forms, Lightning modules."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytorch_lightning
import snntorch as snn
import snntorch.functional as SF
import torch
from snntorch import surrogate, utils
from torch import Tensor, nn
from user_nets_common import (
    CLASSES,
    STEPS,
    UserNet,
    as_dicts,
    as_events,
    as_images,
    as_padded_events,
    as_pixels,
    as_rows,
    as_triples,
    by_count,
    by_count_flat,
    own_test,
)
from user_nets_dense import Loop, by_forward_pass, forward_pass

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


class NormalisedOverTime(Loop):
    """Batch norm with parameters of its own at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = snn.BatchNormTT1d(self.fc1.out_features, STEPS)

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
        parameter.requires_grad_(False)
    return net


def normalised_weights() -> Loop:
    """Both Linears with torch's own weight norm."""
    net = Loop()
    for layer in (net.fc1, net.fc2):
        nn.utils.parametrizations.weight_norm(layer)
    return net


def over_events(net: nn.Module, events: Tensor) -> Tensor:
    """The script's loop over a recording, ``[T, B, 2, H, W]``."""
    utils.reset(net)
    return torch.stack([net(events[step])[0] for step in range(events.size(0))])


def by_events(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    events, targets = batch[0], batch[1]
    return over_events(net, events).sum(0).argmax(1), targets


def by_dicts(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    return forward_pass(net, STEPS, batch["image"]).sum(0).argmax(1), batch["label"]


OVER = "convex_init_(net, loader, forward=over_time(10))"
COUNT_LOSS = "loss=SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)"

NETS = (
    UserNet("tutorial 6: convolutions, init_hidden", conv_net, as_images, by_forward_pass(STEPS), OVER),
    UserNet(
        "tutorial 7: convolutions on events",
        lambda: conv_net(2),
        as_events,
        own_test(by_events),
        f"convex_init_(net, loader, forward=over_time(), {COUNT_LOSS})",
    ),
    UserNet(
        "events, another number of steps in each batch",
        lambda: conv_net(2),
        as_padded_events,
        own_test(by_events),
        "convex_init_(net, loader, forward=over_time())",
    ),
    UserNet(
        "triples of events, labels and lengths",
        lambda: conv_net(2),
        as_triples,
        own_test(by_events),
        "convex_init_(net, loader, forward=over_time(), unpack=lambda batch: (batch[0], batch[1]))",
    ),
    UserNet(
        "batches that are dicts",
        conv_net,
        as_dicts,
        own_test(by_dicts),
        'convex_init_(net, loader, forward=over_time(10), unpack=lambda batch: (batch["image"], batch["label"]))',
    ),
    UserNet("grouped convolution", depthwise_net, as_images, by_forward_pass(STEPS), OVER),
    UserNet("Conv1d", Conv1dNet, as_rows, own_test(by_count)),
    UserNet("frozen convolutions, a new head", frozen_features, as_images, by_forward_pass(STEPS), OVER),
    UserNet("batch norm and dropout", Normalised, as_pixels, own_test(by_count)),
    UserNet("batch norm through time", NormalisedOverTime, as_pixels, own_test(by_count)),
    UserNet("weight norm", normalised_weights, as_pixels, own_test(by_count)),
    UserNet("residual", Residual, as_pixels, own_test(by_count)),
    UserNet("SLSTM, membranes into a Linear", LongShortTerm, as_rows, own_test(by_count), rebuilds=False),
    UserNet("lightning module", LightningNet, as_images, own_test(by_count)),
    UserNet(
        "pytorch_lightning module",
        OldLightningNet,
        as_images,
        own_test(by_count_flat),
        "convex_init_(net, loader, forward=lambda net, x: net(x.flatten(1)))",
    ),
)
