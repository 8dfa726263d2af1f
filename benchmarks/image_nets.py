"""The catalogue of convolutional and deep nets for images, as users write them.

A net shows an image (B, C, H, W) at every step, and returns membranes of its readout, (T, B, 10), or their mean over time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import norse.torch as norse
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from benchmarks import nets
from benchmarks.nets import NorseSteps, Stepped, Steps, convolutions

STEPS, NORSE_STEPS, TUTORIAL_STEPS = 4, 10, 50  # each layer of Norse passes its input on a step later
BETA, CLASSES = 0.5, 10
NORSE_RATE = 500.0  # inverse time constants, 1/s: half of a current or membrane is left after a step of 1 ms
WIDTHS = (1, 16, 32, 32, 32)  # channels of four convolutions; the first three are pooled
VGG_9 = (8, 8, "M", 16, 16, "M", 32, 32, 32, "M")  # "M" pools, as in torchvision
RESNET_18 = ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1))  # channels and stride of its blocks
leaky = partial(nets.leaky, beta=BETA, init_hidden=True)  # neurons that keep their states


def four_convolutions(norm: bool) -> Steps:
    """snnTorch: convolution, batch norm or none, Leaky and pooling; states are passed on in ``forward``."""
    pairs: list[tuple[nn.Module, nn.Module]] = []
    for number, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
        pools, norms = [nn.MaxPool2d(2)] * (number > 0), [nn.BatchNorm2d(outputs)] * norm
        synapse = nn.Sequential(*pools, nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm), *norms)
        pairs.append((synapse, snn.Leaky(beta=BETA)))
    last = nn.Linear(9 * WIDTHS[-1], CLASSES), snn.Leaky(beta=BETA, reset_mechanism="none")
    return Steps(*pairs, last, steps=STEPS)


def conv_norm(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    """A convolution and its batch norm."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


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
    return Stepped([*stem, *(SewBlock(channels) for _ in range(blocks)), nn.AvgPool2d(2), nn.Flatten()], 49 * channels, BETA, STEPS)


def vgg_9(hidden: int = 128) -> nn.Module:
    """Return a narrow VGG-9 for 32x32 colour images, with batch norm."""
    layers, inputs = [], 3
    for width in VGG_9:
        layers += [nn.MaxPool2d(2)] if isinstance(width, str) else [conv_norm(inputs, width), leaky()]
        inputs = inputs if isinstance(width, str) else width
    return Stepped([*layers, nn.Flatten(), nn.Linear(16 * inputs, hidden), leaky()], hidden, BETA, STEPS)


def resnet_18() -> nn.Module:
    """Return a ResNet-18 of width 16 for 32x32 colour images; its first convolution has stride 2."""
    blocks, inputs = [], RESNET_18[0][0]
    for width, stride in RESNET_18:
        blocks.append(BasicBlock(inputs, width, stride))
        inputs = width
    stem = [conv_norm(3, RESNET_18[0][0], 2), leaky()]
    return Stepped([*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()], inputs, BETA, STEPS)


def norse_convolutions() -> NorseSteps:
    """Norse: four convolutions with batch norm, and a loop over time."""
    layers: list[nn.Module] = []
    quick = norse.LIFParameters(tau_syn_inv=torch.tensor(NORSE_RATE), tau_mem_inv=torch.tensor(NORSE_RATE))
    for number, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), norse.LIFCell(quick)]
        layers += [nn.MaxPool2d(2)] if number < 3 else [nn.Flatten()]
    return NorseSteps(*layers, nn.Linear(9 * WIDTHS[-1], CLASSES), norse.LICell(), steps=NORSE_STEPS)


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
    "tutorial 6, 50 steps": partial(convolutions, steps=TUTORIAL_STEPS),
    "tutorial 6": partial(convolutions, steps=STEPS),
    "four convolutions": partial(four_convolutions, norm=False),
    "four convolutions, batch norm": partial(four_convolutions, norm=True),
    "SEW": sew,
    "Norse, batch norm": norse_convolutions,
    "SpikingJelly, batch norm": JellyConvolutions,
    "VGG-9": vgg_9,
    "ResNet-18": resnet_18,
}
