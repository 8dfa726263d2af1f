"""The callback's choice of a start: it makes one where training alone learns slowly, or not at all."""

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import ConvexInitializer
from snn_recon_plugin.demo import build_network
from tests.training.runs import MARKS, STEPS, Module, callback, data_set, fit, validation

pytestmark = MARKS


class Rows(nn.Module):
    """A net that reads a row of the image at each step."""

    def __init__(self, recurrent):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 32), nn.Linear(32, 10)
        self.lif1 = snn.RLeaky(beta=0.9, linear_features=32) if recurrent else snn.Leaky(beta=0.9)
        self.lif2, self.recurrent = snn.Leaky(beta=0.9, reset_mechanism="none"), recurrent

    def forward(self, x):
        state = self.lif1.init_rleaky() if self.recurrent else (self.lif1.init_leaky(),)
        membrane, membranes = self.lif2.init_leaky(), []
        for row in x.unbind(1):
            out = self.lif1(self.fc1(row), *state)
            state = out if self.recurrent else out[1:]
            membrane = self.lif2(self.fc2(out[0]), membrane)[1]
            membranes.append(membrane)
        return torch.stack(membranes)


def rows(loader_or_set):
    inputs, labels = loader_or_set.tensors
    return DataLoader(TensorDataset(inputs.view(-1, 8, 8), labels), 50, shuffle=True)


def silent():
    net = build_network(64, 48, 10, STEPS)
    with torch.no_grad():
        net.fc1.weight.zero_()
        net.fc1.bias.zero_()
    return net


@pytest.mark.parametrize(
    ("make", "over_time", "reason"),
    [
        (lambda: build_network(64, 48, 10, STEPS), False, ""),
        (lambda: Rows(False), True, "the input changes over time"),
        (lambda: Rows(True), True, "hidden layer 'fc1' is recurrent"),
        (silent, False, "hidden layer 'fc1' does not spike"),
    ],
    ids=["still images", "rows", "recurrent", "silent"],
)
def test_a_start_is_made_where_training_alone_learns_slowly(make, over_time, reason, capsys):
    train, val = data_set(), validation().dataset
    loaders = (rows(train), rows(val)) if over_time else (DataLoader(train, 50, shuffle=True), DataLoader(val, 50))
    made = callback(at_start=None, of=ConvexInitializer(strength=0.01, progress=False))
    fit(made, Module(net=make()), train=loaders[0], val=loaders[1], epochs=1, enable_progress_bar=True)
    printed = capsys.readouterr().out
    assert (f"start, as {reason}:" in printed) == bool(reason)
    assert len(made.reports) == 1 + bool(reason)


@pytest.mark.parametrize("at_start", [True, False])
def test_a_start_can_be_forced_or_left_out(at_start):
    made = callback(at_start=at_start, of=ConvexInitializer(strength=0.01, progress=False))
    train, val = rows(data_set()), rows(validation().dataset)
    fit(made, Module(net=Rows(True)), train=train, val=val, epochs=1)
    assert len(made.reports) == 1 + at_start
