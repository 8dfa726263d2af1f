"""Nets as scripts with Norse have them: cells and layers, encoders, voltages decoded by their maximum, recurrence."""

from __future__ import annotations

from typing import Any

import norse.torch as norse
import torch
from torch import Tensor, nn

from benchmarks.user_nets_common import (
    CLASSES,
    STEPS,
    UserNet,
    as_doubles,
    as_events,
    as_images,
    as_pixels,
    as_rate_code,
    as_row_steps,
    by_score,
    own_test,
)

HIDDEN = 64
PARAMETERS = norse.LIFParameters(v_th=torch.tensor(0.4))


class Notebook(nn.Module):
    """The MNIST notebook: encoder, recurrent cells and a leaky integrator stepped in forward, the largest voltage decoded."""

    def __init__(self, recurrent: bool) -> None:
        super().__init__()
        self.encoder = norse.ConstantCurrentLIFEncoder(seq_length=32)
        self.recurrent = recurrent
        self.hidden = norse.LIFRecurrentCell(64, HIDDEN, p=PARAMETERS) if recurrent else norse.LIFCell(p=PARAMETERS)
        self.fc_in = nn.Identity() if recurrent else nn.Linear(64, HIDDEN)
        self.fc_out, self.out = nn.Linear(HIDDEN, CLASSES, bias=False), norse.LICell()

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.encoder(4 * x)
        state, out_state, voltages = None, None, []
        for step in range(spikes.size(0)):
            z, state = self.hidden(self.fc_in(spikes[step].flatten(1)), state)
            voltage, out_state = self.out(self.fc_out(z), out_state)
            voltages.append(voltage)
        largest, _ = torch.max(torch.stack(voltages), 0)
        return nn.functional.log_softmax(largest, dim=1)


class ConvNet(nn.Module):
    """Norse's own convolutional net: cells, pooling, an integrator with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 8, 3, padding=1), norse.LIFCell(p=PARAMETERS)
        self.conv2, self.lif2 = nn.Conv2d(8, 16, 3), norse.LIFCell(p=PARAMETERS)
        self.out = norse.LILinearCell(16 * 2 * 2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        s1 = s2 = so = None
        voltages = []
        for _ in range(2 * STEPS):
            z, s1 = self.lif1(5 * self.conv1(x), s1)
            z, s2 = self.lif2(5 * self.conv2(nn.functional.max_pool2d(z, 2)), s2)
            voltage, so = self.out(z.flatten(1), so)
            voltages.append(voltage)
        return torch.stack(voltages)


def cells(output: nn.Module, hidden: nn.Module | None = None) -> norse.SequentialState:
    """A SequentialState of cells, stepped from outside."""
    return norse.SequentialState(
        nn.Linear(64, HIDDEN), norse.LIFCell(p=PARAMETERS) if hidden is None else hidden, nn.Linear(HIDDEN, CLASSES), output
    )


def layers(first: nn.Module, second: nn.Module, output: nn.Module) -> norse.SequentialState:
    """A SequentialState of layers that take all steps at once."""
    return norse.SequentialState(first, second, nn.Linear(HIDDEN, CLASSES), output)


def lifted() -> norse.SequentialState:
    """Convolutions lifted over time."""
    return norse.SequentialState(
        norse.Lift(nn.Conv2d(2, 8, 3, padding=1)),
        norse.LIF(p=PARAMETERS),
        norse.Lift(nn.MaxPool2d(2)),
        nn.Flatten(2),
        nn.Linear(8 * 4 * 4, CLASSES),
        norse.LI(),
    )


class FirstOutput(nn.Module):
    """A module around a SequentialState that leaves its state out, decoded by the sum."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.drop = body, nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        values, _ = self.body(self.drop(x))
        return values.sum(0)


def stepped(net: nn.Module, x: Tensor, steps: int) -> Tensor:
    """The script's loop, the state handed on."""
    state, outputs = None, []
    for _ in range(steps):
        out, state = net(x, state)
        outputs.append(out)
    return torch.stack(outputs)


def by_steps(decode: Any, steps: int = 2 * STEPS) -> Any:
    def predict(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        data, targets = batch
        return decode(stepped(net, data, steps)).argmax(1), targets

    return own_test(predict)


def by_values(decode: Any) -> Any:
    """Of a net that takes all steps and returns values and states."""

    def predict(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        data, targets = batch
        return decode(net(data)[0]).argmax(1), targets

    return own_test(predict)


def largest(values: Tensor) -> Tensor:
    return values.max(dim=0).values


def by_largest(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    data, targets = batch
    return largest(net(data)).argmax(1), targets


OVER = "convex_init_(net, loader, forward=over_time(20))"
OVER_MAX = 'convex_init_(net, loader, forward=over_time(20), readout="membrane_max")'

NETS = (
    UserNet(
        "MNIST notebook, recurrent cells, NLLLoss",
        lambda: Notebook(recurrent=True),
        as_images,
        own_test(by_score),
        "convex_init_(net, loader, loss=nn.NLLLoss())",
        rebuilds=False,
    ),
    UserNet(
        "MNIST notebook, dense cells, NLLLoss",
        lambda: Notebook(recurrent=False),
        as_images,
        own_test(by_score),
        "convex_init_(net, loader, loss=nn.NLLLoss())",
    ),
    UserNet(
        "convolutional cells, LILinearCell, maximum",
        ConvNet,
        as_images,
        own_test(by_largest),
        'convex_init_(net, loader, readout="membrane_max")',
    ),
    UserNet("cells, the script's loop, maximum", lambda: cells(norse.LICell()), as_pixels, by_steps(largest), OVER_MAX),
    UserNet("cells, the script's loop, mean", lambda: cells(norse.LICell()), as_pixels, by_steps(lambda v: v.mean(0)), OVER),
    UserNet(
        "cells, last voltage",
        lambda: cells(norse.LICell()),
        as_pixels,
        by_steps(lambda v: v[-1]),
        'convex_init_(net, loader, forward=over_time(20), readout="membrane_last")',
    ),
    UserNet("cells, spikes counted", lambda: cells(norse.LIFCell()), as_pixels, by_steps(lambda z: z.sum(0)), OVER),
    UserNet(
        "box cells, spikes counted",
        lambda: cells(norse.LIFBoxCell(), norse.LIFBoxCell()),
        as_pixels,
        by_steps(lambda z: z.sum(0)),
        OVER,
    ),
    UserNet(
        "layers on a rate code, last voltage",
        lambda: layers(nn.Linear(64, HIDDEN), norse.LIF(p=PARAMETERS), norse.LI()),
        as_rate_code,
        by_values(lambda v: v[-1]),
        'convex_init_(net, loader, readout="membrane_last")',
    ),
    UserNet(
        "recurrent layer, a row a step",
        lambda: norse.SequentialState(norse.LIFRecurrent(8, HIDDEN, p=PARAMETERS), nn.Linear(HIDDEN, CLASSES), norse.LI()),
        as_row_steps,
        by_values(lambda v: v.mean(0)),
        rebuilds=False,
    ),
    UserNet(
        "adaptive recurrent layer, a row a step",
        lambda: norse.SequentialState(norse.LSNNRecurrent(8, HIDDEN), nn.Linear(HIDDEN, CLASSES), norse.LI()),
        as_row_steps,
        by_values(lambda v: v.mean(0)),
        rebuilds=False,
    ),
    UserNet("lifted convolutions on events", lifted, as_events, by_values(lambda v: v.mean(0))),
    UserNet(
        "a module that returns the sum, dropout",
        lambda: FirstOutput(layers(nn.Linear(64, HIDDEN), norse.LIF(p=PARAMETERS), norse.LI())),
        as_rate_code,
        own_test(by_score),
    ),
    UserNet(
        "adaptive cells under an integrator",
        lambda: cells(norse.LICell(), norse.LIFAdExCell()),
        as_pixels,
        by_steps(lambda v: v.mean(0)),
        OVER,
        rebuilds=False,
    ),
    UserNet(
        "cells in double precision",
        lambda: cells(norse.LICell()).double(),
        as_doubles,
        by_steps(lambda v: v.mean(0)),
        OVER,
    ),
)
