"""The catalogue of convolutional and deep nets for images, as users write them.

A net shows an image (B, C, H, W) at every step, and returns membranes of its readout, (T, B, 10), or their mean over time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import norse.torch as norse
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from benchmarks.nets import Convolutional

STEPS, NORSE_STEPS, TUTORIAL_STEPS = 4, 10, 50  # each layer of Norse passes its input on a step later
BETA, CLASSES = 0.5, 10
NORSE_RATE = 500.0  # inverse time constants, 1/s: half of a current or membrane is left after a step of 1 ms
WIDTHS = (1, 16, 32, 32, 32)  # channels of four convolutions; the first three are pooled
VGG_9 = (8, 8, "M", 16, 16, "M", 32, 32, 32, "M")  # "M" pools, as in torchvision
RESNET_18 = ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1))  # channels and stride of its blocks


class FourConvolutions(nn.Module):
    """snnTorch: convolution, batch norm or none, Leaky and pooling; states are passed on in ``forward``."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1, bias=not norm) for pair in pairwise(WIDTHS))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) if norm else nn.Identity() for width in WIDTHS[1:])
        self.lifs = nn.ModuleList(snn.Leaky(beta=BETA) for _ in self.convs)
        self.fc, self.out = nn.Linear(9 * WIDTHS[-1], CLASSES), snn.Leaky(beta=BETA, reset_mechanism="none")
        self.pools = nn.ModuleList([*(nn.MaxPool2d(2) for _ in range(3)), nn.Identity()])

    def forward(self, x: Tensor) -> Tensor:
        states, membrane, membranes = [lif.reset_mem() for lif in self.lifs], self.out.reset_mem(), []
        for _ in range(STEPS):
            value = x
            for number, (conv, norm, lif, pool) in enumerate(zip(self.convs, self.norms, self.lifs, self.pools, strict=True)):
                spikes, states[number] = lif(norm(conv(value)), states[number])
                value = pool(spikes)
            _, membrane = self.out(self.fc(value.flatten(1)), membrane)
            membranes.append(membrane)
        return torch.stack(membranes)


class Stepped(nn.Module):
    """snnTorch: layers whose neurons keep their states (``init_hidden``), Linear, and Leaky without reset."""

    def __init__(self, features: Iterable[nn.Module], width: int) -> None:
        super().__init__()
        self.features, self.fc = nn.Sequential(*features), nn.Linear(width, CLASSES)
        self.out = snn.Leaky(beta=BETA, reset_mechanism="none", init_hidden=True, output=True)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.modules():
            if isinstance(module, snn.Leaky):
                module.reset_mem()
        return torch.stack([self.out(self.fc(self.features(x)))[1] for _ in range(STEPS)])


def conv_norm(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    """A convolution and its batch norm."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def leaky() -> nn.Module:
    """Return neurons that keep their states."""
    return snn.Leaky(beta=BETA, init_hidden=True)


class SewBlock(nn.Module):
    """Block of SEW ResNet (Fang et al., 2021): its spikes are added to those of its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.lif1 = conv_norm(channels, channels), leaky()
        self.two, self.lif2 = conv_norm(channels, channels), leaky()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.lif2(self.two(self.lif1(self.one(x))))


class BasicBlock(nn.Module):
    """Block of a spiking ResNet: the input, or its 1x1 convolution, is added to the current of the last neurons."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one, self.lif1 = conv_norm(inputs, outputs, stride), leaky()
        self.two, self.lif2 = conv_norm(outputs, outputs), leaky()
        self.shortcut = conv_norm(inputs, outputs, stride, 1) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.lif2(self.two(self.lif1(self.one(x))) + self.shortcut(x))


def sew(channels: int = 16, blocks: int = 2) -> nn.Module:
    """Return a SEW net for grey images."""
    stem = [conv_norm(1, channels), leaky(), nn.MaxPool2d(2)]
    return Stepped([*stem, *(SewBlock(channels) for _ in range(blocks)), nn.AvgPool2d(2), nn.Flatten()], 49 * channels)


def vgg_9(hidden: int = 128) -> nn.Module:
    """Return a narrow VGG-9 for 32x32 colour images, with batch norm."""
    layers, inputs = [], 3
    for width in VGG_9:
        layers += [nn.MaxPool2d(2)] if isinstance(width, str) else [conv_norm(inputs, width), leaky()]
        inputs = inputs if isinstance(width, str) else width
    return Stepped([*layers, nn.Flatten(), nn.Linear(16 * inputs, hidden), leaky()], hidden)


def resnet_18() -> nn.Module:
    """Return a ResNet-18 of width 16 for 32x32 colour images; its first convolution has stride 2."""
    blocks, inputs = [], RESNET_18[0][0]
    for width, stride in RESNET_18:
        blocks.append(BasicBlock(inputs, width, stride))
        inputs = width
    stem = [conv_norm(3, RESNET_18[0][0], 2), leaky()]
    return Stepped([*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()], inputs)


class NorseConvolutions(nn.Module):
    """Norse: four convolutions with batch norm in a ``SequentialState``, and a loop over time."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        quick = norse.LIFParameters(tau_syn_inv=torch.tensor(NORSE_RATE), tau_mem_inv=torch.tensor(NORSE_RATE))
        for number, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), norse.LIFCell(quick)]
            layers += [nn.MaxPool2d(2)] if number < 3 else [nn.Flatten()]
        self.layers = norse.SequentialState(*layers, nn.Linear(9 * WIDTHS[-1], CLASSES), norse.LICell())

    def forward(self, x: Tensor) -> Tensor:
        state, membranes = None, []
        for _ in range(NORSE_STEPS):
            membrane, state = self.layers(x, state)
            membranes.append(membrane)
        return torch.stack(membranes)


class JellyConvolutions(nn.Module):
    """SpikingJelly: four convolutions with batch norm that take all steps at once, and a mean over time."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
            layers += [layer.Conv2d(inputs, outputs, 3, padding=1, bias=False), layer.BatchNorm2d(outputs)]
            layers += [neuron.LIFNode(surrogate_function=surrogate.ATan(), detach_reset=True)]
            layers += [layer.MaxPool2d(2)] if number < 3 else [layer.Flatten()]
        self.layers = nn.Sequential(*layers, layer.Linear(9 * WIDTHS[-1], CLASSES))
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        scores: Tensor = self.layers(x.unsqueeze(0).repeat(STEPS, 1, 1, 1, 1)).mean(0)
        return scores


DEEP_NETS: dict[str, Callable[[], nn.Module]] = {
    "tutorial 6, 50 steps": lambda: Convolutional(TUTORIAL_STEPS),
    "tutorial 6": lambda: Convolutional(STEPS),
    "four convolutions": lambda: FourConvolutions(norm=False),
    "four convolutions, batch norm": lambda: FourConvolutions(norm=True),
    "SEW": sew,
    "Norse, batch norm": NorseConvolutions,
    "SpikingJelly, batch norm": JellyConvolutions,
    "VGG-9": vgg_9,
    "ResNet-18": resnet_18,
}
