"""The catalogue of convolutional nets for images, as users write them.

A net shows an image (B, C, H, W) at every step, and returns membranes of its readout, (T, B, 10), or their mean over time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import snntorch as snn
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from benchmarks import nets
from benchmarks.nets import Stepped, Steps, convolutions

STEPS = 4
BETA, CLASSES = 0.5, 10
WIDTHS = (1, 16, 32, 32, 32)  # channels of four convolutions; the first three are pooled
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


def sew(channels: int = 16, blocks: int = 2) -> nn.Module:
    """Return a SEW net for grey images."""
    stem = [conv_norm(1, channels), leaky(), nn.MaxPool2d(2)]
    return Stepped([*stem, *(SewBlock(channels) for _ in range(blocks)), nn.AvgPool2d(2), nn.Flatten()], 49 * channels, BETA, STEPS)


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
    "tutorial 6": partial(convolutions, steps=STEPS),
    "four convolutions": partial(four_convolutions, norm=False),
    "four convolutions, batch norm": partial(four_convolutions, norm=True),
    "SEW": sew,
    "SpikingJelly, batch norm": JellyConvolutions,
}
