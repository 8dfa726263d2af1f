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

STEPS, PIXELS, HIDDEN, CLASSES = 25, 64, 256, 10
CHANNELS = (12, 64)  # of two convolutions, which leave 64 channels of 2 x 2 pixels


def _cell(output: str) -> nn.Module:
    return norse.LICell() if output == "LI" else norse.LIFCell()


def _layer(output: str) -> nn.Module:
    return norse.LI() if output == "LI" else norse.LIF()


def cells(output: str) -> nn.Module:
    """Cells, the time loop and the states outside."""
    return norse.SequentialState(nn.Linear(PIXELS, HIDDEN), norse.LIFCell(), nn.Linear(HIDDEN, CLASSES), _cell(output))


def conv_cells(output: str) -> nn.Module:
    """The README's convolutional classifier."""
    return norse.SequentialState(
        nn.Conv2d(1, CHANNELS[0], 3, padding=1),
        norse.LIFCell(),
        nn.MaxPool2d(2),
        nn.Conv2d(*CHANNELS, 3),
        norse.LIFCell(),
        nn.Flatten(),
        nn.Linear(4 * CHANNELS[1], CLASSES),
        _cell(output),
    )


def multi_step(output: str) -> nn.Module:
    """Layers that take all steps at once."""
    return norse.SequentialState(nn.Linear(PIXELS, HIDDEN), norse.LIF(), nn.Linear(HIDDEN, CLASSES), _layer(output))


def lifted_conv(output: str) -> nn.Module:
    """``Lift`` gives convolutions and pooling a time axis."""
    return norse.SequentialState(
        norse.Lift(nn.Conv2d(1, CHANNELS[0], 3, padding=1)),
        norse.LIF(),
        norse.Lift(nn.MaxPool2d(2)),
        norse.Lift(nn.Conv2d(*CHANNELS, 3)),
        norse.LIF(),
        nn.Flatten(2),
        nn.Linear(4 * CHANNELS[1], CLASSES),
        _layer(output),
    )


def lifted_linear(output: str) -> nn.Module:
    """``Lift`` around every Linear."""
    return norse.SequentialState(
        norse.Lift(nn.Linear(PIXELS, HIDDEN)), norse.LIF(), norse.Lift(nn.Linear(HIDDEN, CLASSES)), _layer(output)
    )


class LiftedNet(nn.Module):
    """``Lift`` around a whole net of cells, which thereby takes all steps."""

    def __init__(self, output: str) -> None:
        super().__init__()
        self.body = norse.Lift(cells(output))

    def forward(self, x: Tensor) -> Any:
        return self.body(x.expand(STEPS, *x.shape))


class LinearCell(nn.Module):
    """Norse's MNIST task: states passed by hand, the readout's weight inside its integrator."""

    def __init__(self, _: str) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(PIXELS, HIDDEN), norse.LIFCell()
        self.out = norse.LILinearCell(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state1 = state2 = None
        membranes = []
        for _ in range(STEPS):
            hidden, state1 = self.lif1(self.fc1(x), state1)
            membrane, state2 = self.out(hidden, state2)
            membranes.append(membrane)
        return torch.stack(membranes)


def recurrent(output: str) -> nn.Module:
    """LIFRecurrent: input and recurrent weights inside the layer."""
    return norse.SequentialState(norse.LIFRecurrent(PIXELS, HIDDEN), nn.Linear(HIDDEN, CLASSES), _layer(output))


def adaptive(output: str) -> nn.Module:
    """LSNNRecurrent, with adaptive thresholds."""
    return norse.SequentialState(norse.LSNNRecurrent(PIXELS, HIDDEN), nn.Linear(HIDDEN, CLASSES), _layer(output))


def recurrent_cells(output: str) -> nn.Module:
    """LIFRecurrentCell and LSNNRecurrentCell, the time loop outside."""
    return norse.SequentialState(
        norse.LIFRecurrentCell(PIXELS, HIDDEN), norse.LSNNRecurrentCell(HIDDEN, HIDDEN), nn.Linear(HIDDEN, CLASSES), _cell(output)
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
