"""Nets as scripts with Norse write them: cells and layers, encoders, recurrence.

Builders of idioms take the output neuron, "LI" or "LIF"; the net gives membranes of the one or spikes of the other, and states.
"""

from __future__ import annotations

from functools import partial

import norse.torch as norse
import torch
from torch import nn
from torch.nn.functional import log_softmax, max_pool2d

from .data import CLASSES, HIDDEN, STEPS
from .record import DIGITS, Sizes

PARAMETERS = norse.LIFParameters(v_th=torch.tensor(0.4))
LIF_CELL = partial(norse.LIFCell, p=PARAMETERS)
SCRIPT, ROWS = Sizes(hidden=HIDDEN), Sizes(inputs=8, hidden=HIDDEN)


class Notebook(nn.Module):
    """The MNIST notebook: encoder, recurrent cells and a leaky integrator stepped in forward, the largest voltage decoded."""

    def __init__(self, recurrent):
        super().__init__()
        self.encoder = norse.ConstantCurrentLIFEncoder(seq_length=32)
        self.recurrent = recurrent
        self.hidden = norse.LIFRecurrentCell(64, HIDDEN, p=PARAMETERS) if recurrent else LIF_CELL()
        self.fc_in = nn.Identity() if recurrent else nn.Linear(64, HIDDEN)
        self.fc_out, self.out = nn.Linear(HIDDEN, CLASSES, bias=False), norse.LICell()

    def forward(self, x):
        synapses = lambda spikes: self.fc_in(spikes.flatten(1)), self.fc_out
        largest, _ = torch.max(step_cells(self.encoder(4 * x), synapses, (self.hidden, self.out)), 0)
        return log_softmax(largest, dim=1)


def step_cells(inputs, synapses, cells):
    """Outputs of the last cell over time; the script hands all states from step to step."""
    states, record = [None] * len(cells), []
    for x in inputs:
        z = x
        for layer, (synapse, cell) in enumerate(zip(synapses, cells, strict=True)):
            z, states[layer] = cell(synapse(z), states[layer])
        record.append(z)
    return torch.stack(record)


class ConvNet(nn.Module):
    """Norse's own convolutional net: cells, pooling, an integrator with weights of its own."""

    def __init__(self):
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 8, 3, padding=1), LIF_CELL()
        self.conv2, self.lif2 = nn.Conv2d(8, 16, 3), LIF_CELL()
        self.out = norse.LILinearCell(16 * 2 * 2, CLASSES)

    def forward(self, x):
        synapses = (lambda x: 5 * self.conv1(x), lambda z: 5 * self.conv2(max_pool2d(z, 2)), nn.Flatten())
        return step_cells([x] * 2 * STEPS, synapses, (self.lif1, self.lif2, self.out))


class LinearCell(nn.Module):
    """Norse's MNIST task: states passed by hand, the readout's weight inside its integrator."""

    def __init__(self, _: str, sizes: Sizes = DIGITS):
        super().__init__()
        self.steps = sizes.steps
        self.fc1, self.lif1 = nn.Linear(sizes.inputs, sizes.hidden), norse.LIFCell()
        self.out = norse.LILinearCell(sizes.hidden, sizes.classes)

    def forward(self, x):
        return step_cells([x] * self.steps, (self.fc1, nn.Identity()), (self.lif1, self.out))


def sequential(hidden, output, sizes: Sizes, lift=lambda linear: linear):
    """Cells that are stepped from outside, or layers that take all steps at once."""
    first, last = nn.Linear(sizes.inputs, sizes.hidden), nn.Linear(sizes.hidden, sizes.classes)
    return norse.SequentialState(lift(first), hidden, lift(last), output)


def recurrent(kind, output, sizes: Sizes, **options):
    return norse.SequentialState(kind(sizes.inputs, sizes.hidden, **options), nn.Linear(sizes.hidden, sizes.classes), output)


# -- of scripts -----------------------------------------------------------------------------------------------------------
def cells(output=norse.LICell, hidden=LIF_CELL):
    return sequential(hidden(), output(), SCRIPT)


def layers():
    return sequential(norse.LIF(p=PARAMETERS), norse.LI(), SCRIPT)


def recurrent_rows():
    return recurrent(norse.LIFRecurrent, norse.LI(), ROWS, p=PARAMETERS)


def adaptive_rows():
    return recurrent(norse.LSNNRecurrent, norse.LI(), ROWS)


def lifted_on_events():
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

    def __init__(self):
        super().__init__()
        self.body, self.drop = layers(), nn.Dropout(0.1)

    def forward(self, x):
        values, _ = self.body(self.drop(x))
        return values.sum(0)


def stepped(net, x):
    state, outputs = None, []
    for _ in range(2 * STEPS):
        out, state = net(x, state)
        outputs.append(out)
    return torch.stack(outputs)


# -- of idioms ------------------------------------------------------------------------------------------------------------
CELLS = {"LI": norse.LICell, "LIF": norse.LIFCell}
LAYERS = {"LI": norse.LI, "LIF": norse.LIF}


def dense_cells(output: str, sizes: Sizes = DIGITS):
    return sequential(norse.LIFCell(), CELLS[output](), sizes)


def multi_step(output: str, sizes: Sizes = DIGITS):
    return sequential(norse.LIF(), LAYERS[output](), sizes)


def lifted_linear(output: str, sizes: Sizes = DIGITS):
    """``Lift`` around every Linear."""
    return sequential(norse.LIF(), LAYERS[output](), sizes, norse.Lift)


def conv_cells(output: str, sizes: Sizes = DIGITS, neurons=CELLS, lift=lambda layer: layer, flatten=1):
    """The README's convolutional classifier."""
    return norse.SequentialState(
        lift(nn.Conv2d(1, sizes.channels[0], 3, padding=1)),
        neurons["LIF"](),
        lift(nn.MaxPool2d(2)),
        lift(nn.Conv2d(*sizes.channels, 3)),
        neurons["LIF"](),
        nn.Flatten(flatten),
        nn.Linear(4 * sizes.channels[1], sizes.classes),
        neurons[output](),
    )


def lifted_conv(output: str, sizes: Sizes = DIGITS):
    """``Lift`` gives convolutions and pooling a time axis."""
    return conv_cells(output, sizes, LAYERS, norse.Lift, flatten=2)


class LiftedNet(nn.Module):
    """``Lift`` around a whole net of cells, which thereby takes all steps."""

    def __init__(self, output: str, sizes: Sizes = DIGITS):
        super().__init__()
        self.steps = sizes.steps
        self.body = norse.Lift(dense_cells(output, sizes))

    def forward(self, x):
        return self.body(x.expand(self.steps, *x.shape))


def recurrent_layer(output: str, sizes: Sizes = DIGITS):
    return recurrent(norse.LIFRecurrent, LAYERS[output](), sizes)


def adaptive_layer(output: str, sizes: Sizes = DIGITS):
    return recurrent(norse.LSNNRecurrent, LAYERS[output](), sizes)


def recurrent_cells(output: str, sizes: Sizes = DIGITS):
    """LIFRecurrentCell and LSNNRecurrentCell, the time loop outside."""
    return norse.SequentialState(
        norse.LIFRecurrentCell(sizes.inputs, sizes.hidden),
        norse.LSNNRecurrentCell(sizes.hidden, sizes.hidden),
        nn.Linear(sizes.hidden, sizes.classes),
        CELLS[output](),
    )
