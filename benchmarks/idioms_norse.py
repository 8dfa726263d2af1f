"""Classifiers of 8 x 8 digits in each way in which Norse's README and tasks put a net together.

Every builder takes the output neuron, "LI" or "LIF"; what a net gives over time are the membranes of the one or the spikes of
the other, next to the states.
"""

from __future__ import annotations

from typing import Any

import lightning
import norse.torch as norse
import torch
from torch import Tensor, nn

from benchmarks.idioms_common import DIGITS, Sizes


def _cell(output: str) -> nn.Module:
    return norse.LICell() if output == "LI" else norse.LIFCell()


def _layer(output: str) -> nn.Module:
    return norse.LI() if output == "LI" else norse.LIF()


def cells(output: str, sizes: Sizes = DIGITS) -> nn.Module:
    """Cells, the time loop and the states outside."""
    return norse.SequentialState(
        nn.Linear(sizes.inputs, sizes.hidden), norse.LIFCell(), nn.Linear(sizes.hidden, sizes.classes), _cell(output)
    )


def conv_cells(output: str, sizes: Sizes = DIGITS) -> nn.Module:
    """The README's convolutional classifier."""
    return norse.SequentialState(
        nn.Conv2d(1, sizes.channels[0], 3, padding=1),
        norse.LIFCell(),
        nn.MaxPool2d(2),
        nn.Conv2d(*sizes.channels, 3),
        norse.LIFCell(),
        nn.Flatten(),
        nn.Linear(4 * sizes.channels[1], sizes.classes),
        _cell(output),
    )


def multi_step(output: str, sizes: Sizes = DIGITS) -> nn.Module:
    """Layers that take all steps at once."""
    return norse.SequentialState(
        nn.Linear(sizes.inputs, sizes.hidden), norse.LIF(), nn.Linear(sizes.hidden, sizes.classes), _layer(output)
    )


def lifted_conv(output: str, sizes: Sizes = DIGITS) -> nn.Module:
    """``Lift`` gives convolutions and pooling a time axis."""
    return norse.SequentialState(
        norse.Lift(nn.Conv2d(1, sizes.channels[0], 3, padding=1)),
        norse.LIF(),
        norse.Lift(nn.MaxPool2d(2)),
        norse.Lift(nn.Conv2d(*sizes.channels, 3)),
        norse.LIF(),
        nn.Flatten(2),
        nn.Linear(4 * sizes.channels[1], sizes.classes),
        _layer(output),
    )


def lifted_linear(output: str, sizes: Sizes = DIGITS) -> nn.Module:
    """``Lift`` around every Linear."""
    return norse.SequentialState(
        norse.Lift(nn.Linear(sizes.inputs, sizes.hidden)),
        norse.LIF(),
        norse.Lift(nn.Linear(sizes.hidden, sizes.classes)),
        _layer(output),
    )


class LiftedNet(nn.Module):
    """``Lift`` around a whole net of cells, which thereby takes all steps."""

    def __init__(self, output: str, sizes: Sizes = DIGITS) -> None:
        super().__init__()
        self.steps = sizes.steps
        self.body = norse.Lift(cells(output, sizes))

    def forward(self, x: Tensor) -> Any:
        return self.body(x.expand(self.steps, *x.shape))


class LinearCell(nn.Module):
    """Norse's MNIST task: states passed by hand, the readout's weight inside its integrator."""

    def __init__(self, _: str, sizes: Sizes = DIGITS) -> None:
        super().__init__()
        self.steps = sizes.steps
        self.fc1, self.lif1 = nn.Linear(sizes.inputs, sizes.hidden), norse.LIFCell()
        self.out = norse.LILinearCell(sizes.hidden, sizes.classes)

    def forward(self, x: Tensor) -> Tensor:
        state1 = state2 = None
        membranes = []
        for _ in range(self.steps):
            hidden, state1 = self.lif1(self.fc1(x), state1)
            membrane, state2 = self.out(hidden, state2)
            membranes.append(membrane)
        return torch.stack(membranes)


def recurrent(output: str, sizes: Sizes = DIGITS) -> nn.Module:
    """LIFRecurrent: input and recurrent weights inside the layer."""
    return norse.SequentialState(
        norse.LIFRecurrent(sizes.inputs, sizes.hidden), nn.Linear(sizes.hidden, sizes.classes), _layer(output)
    )


def adaptive(output: str, sizes: Sizes = DIGITS) -> nn.Module:
    """LSNNRecurrent, with adaptive thresholds."""
    return norse.SequentialState(
        norse.LSNNRecurrent(sizes.inputs, sizes.hidden), nn.Linear(sizes.hidden, sizes.classes), _layer(output)
    )


def recurrent_cells(output: str, sizes: Sizes = DIGITS) -> nn.Module:
    """LIFRecurrentCell and LSNNRecurrentCell, the time loop outside."""
    return norse.SequentialState(
        norse.LIFRecurrentCell(sizes.inputs, sizes.hidden),
        norse.LSNNRecurrentCell(sizes.hidden, sizes.hidden),
        nn.Linear(sizes.hidden, sizes.classes),
        _cell(output),
    )


class InLightning(lightning.LightningModule):
    """A net as part of a LightningModule."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        inputs, labels = batch
        return nn.functional.cross_entropy(self(inputs)[1].mean(0), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)
