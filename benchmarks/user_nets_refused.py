"""Nets that have no convex readout, or that hide what is needed: each must be refused, with its true reason."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import snntorch as snn
import torch
from snntorch import utils
from snntorch.functional import quant
from torch import Tensor, nn

from benchmarks.user_nets_common import (
    CLASSES,
    STEPS,
    Loader,
    Samples,
    UserNet,
    as_dicts,
    as_images,
    as_pixels,
    as_row_steps,
    as_rows,
    by_count,
    own_test,
    repeated,
)
from benchmarks.user_nets_dense import HIDDEN, BatchFirst, Loop


class Autoencoder(nn.Module):
    """Spikes in the middle, images out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), snn.Leaky(beta=0.9, init_hidden=True))
        self.decoder = nn.Sequential(nn.ConvTranspose2d(8, 1, 2, stride=2), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        self.encoder[1].reset_mem()
        return torch.stack([self.decoder(self.encoder(x)) for _ in range(STEPS)]).mean(0)


class Parallel(nn.Module):
    """LeakyParallel to the end: its weights are inside an nn.RNN, and it returns spikes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2 = snn.LeakyParallel(8, HIDDEN, beta=0.9), snn.LeakyParallel(HIDDEN, CLASSES, beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(self.layer1(x))


class InLists(Loop):
    """Neurons in a plain list, which PyTorch does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.neurons = [self.lif1, self.lif2]
        del self.lif1, self.lif2

    def steps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        lif1, lif2 = self.neurons
        mem1, mem2, spikes, membranes = lif1.reset_mem(), lif2.reset_mem(), [], []
        for _ in range(STEPS):
            spk1, mem1 = lif1(self.fc1(x), mem1)
            spk2, mem2 = lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


class Binarised(nn.Linear):
    """A Linear that computes with its weights' signs."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().mean()
        return nn.functional.linear(x, scale * torch.sign(self.weight), self.bias)


class BinaryReadout(Loop):
    """A binarised last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc2 = Binarised(HIDDEN, CLASSES)


class Noisy(Loop):
    """Spikes drawn anew in forward."""

    def current(self, x: Tensor, step: int) -> Tensor:
        return torch.bernoulli(x)


class NumpyNoisy(Loop):
    """Spikes drawn by NumPy."""

    def current(self, x: Tensor, step: int) -> Tensor:
        return torch.from_numpy((np.random.rand(*x.shape) < x.numpy()).astype(np.float32))


class PythonNoisy(Loop):
    """Brightness drawn by Python at each step."""

    def current(self, x: Tensor, step: int) -> Tensor:
        return x * random.uniform(0.8, 1.2)


class Forgetful(Loop):
    """States that are never handed on: every step begins at rest."""

    def steps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2, spikes, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), [], []
        for _ in range(STEPS):
            spk1, _ = self.lif1(self.fc1(x), mem1)
            spk2, out = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(out)
        return torch.stack(spikes), torch.stack(membranes)


class NeverReset(nn.Sequential):
    """Neurons that keep their membranes, in a net whose forward loops and leaves resetting to the script."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([super(NeverReset, self).forward(x) for _ in range(STEPS)])


def as_reconstruction(samples: Samples) -> Loader:
    """The images are their own targets."""
    return [(images, images) for images, _ in as_images(samples)]


def refused(name: str, make: Callable[[], nn.Module], loader: Callable[[Samples], Loader], *words: str) -> UserNet:
    """An entry whose refusal must hold some words; there is nothing to test."""
    return UserNet(name, make, loader, lambda net, batches: math.nan, refused=words)


def spectral() -> Loop:
    net = Loop()
    nn.utils.parametrizations.spectral_norm(net.fc2)
    return net


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def quantised_state() -> Loop:
    return Loop(output=snn.Leaky(beta=0.9, state_quant=quant.state_quant(num_bits=4, threshold=1.0)))


def never_reset() -> nn.Module:
    kept = {"beta": 0.9, "init_hidden": True}
    return NeverReset(nn.Linear(64, HIDDEN), snn.Leaky(**kept), nn.Linear(HIDDEN, CLASSES), snn.Leaky(**kept))


def recurrent_output() -> BatchFirst:
    return BatchFirst(8, 8, output=snn.RLeaky(beta=0.9, linear_features=CLASSES))


def by_spikes(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """The class that spikes most, of a net that returns spikes alone and is reset by the script."""
    data, targets = batch
    utils.reset(net)
    return net(data).sum(0).argmax(1), targets


NETS = (
    refused("autoencoder", Autoencoder, as_reconstruction, "readout"),
    refused("LeakyParallel to the end", Parallel, as_row_steps, "LeakyParallel"),
    refused("no spiking neuron", plain, as_images, "spiking neuron"),
    refused("neurons in a plain list", InLists, as_pixels, "list", "ModuleList"),
    refused("binarised weights in the readout", BinaryReadout, as_pixels, "fc2", "Binarised"),
    refused("quantised membrane of the output", quantised_state, as_pixels, "lif2", "quant"),
    refused("states that are never handed on", Forgetful, as_pixels, "state", "lif"),
    refused("RLeaky output", recurrent_output, as_rows, "lif2", "RLeaky"),
    refused("spectral norm on the readout", spectral, as_pixels, "fc2", "spectral"),
    refused("images that the script's loop flattens", Loop, as_images, "fc1", "flatten"),
    refused("batches that are dicts, without unpack=", Loop, as_dicts, "unpack="),
)

UNUSUAL = (
    UserNet("spikes drawn in forward", Noisy, as_pixels, repeated(own_test(by_count)), rebuilds=False, alike=0.02),
    UserNet("spikes drawn by NumPy", NumpyNoisy, as_pixels, repeated(own_test(by_count)), rebuilds=False, alike=0.02),
    UserNet("brightness drawn by Python", PythonNoisy, as_pixels, repeated(own_test(by_count)), rebuilds=False, alike=0.02),
    UserNet("membranes that the script resets", never_reset, as_pixels, own_test(by_spikes)),
)
