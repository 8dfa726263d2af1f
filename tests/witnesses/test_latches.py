"""Latches: neurons of a recurrent layer that hold an event, for tasks that compare two events."""

from dataclasses import replace

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import convex_init_
from snn_recon_plugin.witnesses.first_generation import make_clock
from snn_recon_plugin.witnesses.latches import add_latches
from snn_recon_plugin.witnesses.recurrent import find_recurrent_layer

from .recurrent_nets import STEPS, Rows, layer_of, see

LENGTH, WIDTH = 20, 96


class Compares(nn.Module):
    """Two channels in, RLeaky, and a readout by the mean membrane."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(2, WIDTH), snn.RLeaky(**{"beta": 0.8, "linear_features": WIDTH, **options})
        self.fc2, self.lif2 = nn.Linear(WIDTH, 2), snn.Leaky(beta=0.95, reset_mechanism="none")

    def forward(self, x):
        (spikes, mem1), mem2, membranes = self.lif1.init_rleaky(), self.lif2.reset_mem(), []
        for step in x.movedim(1, 0):
            spikes, mem1 = self.lif1(self.fc1(step), spikes, mem1)
            _, mem2 = self.lif2(self.fc2(spikes), mem2)
            membranes.append(mem2)
        return torch.stack(membranes)


def cues(count, seed):
    """Two cues, ten steps apart, each in one of two channels; the class says if they are in the same."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randint(2, (count,), generator=generator) for _ in range(2))
    x = 0.1 * torch.rand(count, LENGTH, 2, generator=generator)
    rows = torch.arange(count)
    x[rows, 3, first] += 1
    x[rows, 14 + torch.randint(3, (count,), generator=generator), second] += 1
    return x, (first == second).long()


def score(net):
    x, labels = cues(400, seed=1)
    with torch.no_grad():
        return float((net(x).mean(0).argmax(1) == labels).float().mean())


@pytest.mark.parametrize("options", [{}, {"learn_beta": True}])
def test_two_events_are_compared_without_a_gradient(options):
    net = Compares(**options)
    report = convex_init_(net, DataLoader(TensorDataset(*cues(600, seed=0)), 200), progress=False)
    witnesses = report.layers[0].witnesses
    assert witnesses.kinds["latches"] > 0
    assert sum(witnesses.kinds.values()) == WIDTH
    assert "a layer built on a clock and latches: held-out loss" in witnesses.reason
    assert score(net) > 0.95
    random = Compares(**options)
    convex_init_(random, DataLoader(TensorDataset(*cues(600, seed=0)), 200), progress=False, witnesses="draws")
    assert score(random) < score(net)


def latched(net, width=64):
    _, seen = see(net)
    recurrent = find_recurrent_layer(layer_of(net))
    clock = make_clock(recurrent.layer.neuron, seen.inputs, STEPS, 16 * STEPS, True, True)
    return clock, add_latches(recurrent.layer.neuron, seen, clock, width, torch.Generator().manual_seed(0))


def test_a_latch_goes_on_to_spike_once_it_has():
    clock, found = latched(Rows())
    assert 0 < found.latches <= 16
    assert found.kinds == ("clock",) * len(clock) + ("latches",) * found.latches
    assert torch.equal(found.spikes[:, :1, : len(clock)], clock.spikes)
    held = found.spikes[:, :, len(clock) :]
    assert (held.diff(dim=0) >= 0).all()
    assert 0 < held[-1].mean() < 1
    assert torch.equal(found.recurrent[: len(clock), : len(clock)], clock.recurrent)
    assert (found.recurrent[: len(clock), len(clock) :] == 0).all()


def test_none_where_samples_do_not_differ():
    net = Rows()
    _, seen = see(net)
    recurrent = find_recurrent_layer(layer_of(net))
    clock = make_clock(recurrent.layer.neuron, seen.inputs, STEPS, 16 * STEPS, True, True)
    seen = replace(seen, inputs=torch.ones_like(seen.inputs))
    assert add_latches(recurrent.layer.neuron, seen, clock, 64, torch.Generator().manual_seed(0)) is None
