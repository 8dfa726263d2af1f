import dataclasses
import functools
from typing import NamedTuple

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.errors import DataError
from snn_recon_plugin.networks import (
    LabelledCurrents,
    calibrate,
    inspect_network,
    over_time,
    own_scores,
    plain_forward,
    readout_currents,
    resolve_readout,
    trying,
)

STEPS, SAMPLES, UNITS, CLASSES = 25, 160, 40, 4


class Readout(nn.Module):
    """A net whose hidden layer passes spikes through, so that a test can set them."""

    def __init__(self, neuron, returns):
        super().__init__()
        self.lif, self.fc = snn.Leaky(beta=0.0, reset_mechanism="none"), nn.Linear(UNITS, CLASSES)
        self.out, self.returns = neuron, returns

    def forward(self, x):
        m1, m2, spk, mem = self.lif.reset_mem(), self.out.reset_mem(), [], []
        for step in x:
            z, m1 = self.lif(2 * step, m1)
            s, m2 = self.out(self.fc(z), m2)
            spk.append(s)
            mem.append(m2)
        return self.returns(torch.stack(spk), torch.stack(mem))


@pytest.fixture
def spikes():
    """Spikes [T, n, P] of four classes, and their labels."""
    return drawn(0.12)


def drawn(more):
    """The same, where units of a sample's class fire by so much more."""
    targets = torch.arange(SAMPLES) % CLASSES
    rates = 0.08 + more * nn.functional.one_hot(targets, CLASSES).repeat_interleave(UNITS // CLASSES, 1)
    return torch.bernoulli(rates.expand(STEPS, -1, -1)), targets


def solved():
    """A linear solution for such spikes: each class sums its own units."""
    weight = torch.full((CLASSES, UNITS), -0.05)
    for label in range(CLASSES):
        weight[label, label * 10 : label * 10 + 10] = 0.2
    return weight, torch.linspace(-0.1, 0.1, CLASSES)


def prepared(neuron, returns, kind, x):
    net = Readout(neuron, returns)
    net_map = inspect_network(net, x[:, :5], plain_forward)
    return net, net_map, resolve_readout(net, net_map, x[:, :5], plain_forward, kind)


def agreement(readout, scores, x):
    """The share of the samples on which scores decide as the linear score does."""
    return float((scores.argmax(1) == readout.linear_scores(readout_currents(x, *solved())).argmax(1)).float().mean())


def written(net, calibration, x):
    """Run the net with the calibrated readout."""
    weight, bias = solved()
    values = {
        (net.fc, "weight"): weight * calibration.scale,
        (net.fc, "bias"): bias * calibration.scale + calibration.shift,
    }
    with torch.no_grad(), trying(values):
        return net(x)


@pytest.mark.parametrize("kind", ["spike_count", "spike_rate", "first_spike"])
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_spikes_decide_as_the_linear_score(kind, reset, spikes):
    x, targets = spikes
    neuron = snn.Leaky(beta=0.9, reset_mechanism=reset)
    net, net_map, readout = prepared(neuron, lambda spk, mem: spk, kind, x)
    assert (readout.kind, readout.exactness) == (kind, "surrogate")
    currents = readout_currents(x.to(torch.uint8), *solved())
    found = calibrate(readout, net_map.readout.neuron, LabelledCurrents(currents, targets))
    scores = readout.scores(written(net, found, x))
    assert torch.equal(scores, own_scores(readout, net_map.readout.neuron, found.scale * currents + found.shift))
    accuracy, linear = (float((some.argmax(1) == targets).float().mean()) for some in (scores, readout.linear_scores(currents)))
    assert linear > 0.9
    if kind != "first_spike":  # few of the spikes are left to decide by
        assert accuracy >= linear - 0.05
        assert agreement(readout, scores, x) >= 0.93


def test_the_output_neuron_compares_once_and_is_left_as_found(spikes, monkeypatch):
    x, targets = spikes
    neuron, fired = snn.Leaky(beta=0.9), []
    _, net_map, readout = prepared(neuron, lambda spk, mem: spk, "spike_count", x)
    home = next(kind for kind in snn.Leaky.__mro__ if "fire" in vars(kind))
    own, before = home.fire, dict(vars(neuron))

    @functools.wraps(own)
    def fire(self, membrane):
        fired.append(self)
        return own(self, membrane)

    monkeypatch.setattr(home, "fire", fire)
    calibrate(readout, net_map.readout.neuron, LabelledCurrents(readout_currents(x, *solved()), targets))
    assert not fired
    assert vars(neuron) == before
    neuron(x[0])
    assert fired  # where nobody only looks


def test_a_shift_upwards_that_gains_nothing_is_not_taken():
    """Shifted outputs spike more, and training that goes on from there loses accuracy."""
    x, targets = drawn(0.3)
    _, net_map, readout = prepared(snn.Leaky(beta=0.9), lambda spk, mem: (spk, mem), "spike_count", x)
    found = calibrate(readout, net_map.readout.neuron, LabelledCurrents(readout_currents(x, *solved()), targets))
    assert found.shift <= 0


def test_a_shift_is_taken_if_outputs_would_not_spike_without_it():
    x, targets = drawn(0.3)
    _, net_map, readout = prepared(snn.Leaky(beta=0.9), lambda spk, mem: (spk, mem), "spike_count", x)
    weight, _ = solved()
    silent = readout_currents(x, weight, torch.full((CLASSES,), -100.0))
    found = calibrate(readout, net_map.readout.neuron, LabelledCurrents(silent, targets))
    assert found.shift > 0
    right = own_scores(readout, net_map.readout.neuron, found.scale * silent + found.shift).argmax(1) == targets
    assert right.float().mean() > 0.9


@pytest.mark.parametrize("more", [0.12, 0.3])
def test_of_scales_that_decide_as_well_the_clearest_membranes_win(more):
    x, targets = drawn(more)
    net, net_map, readout = prepared(snn.Leaky(beta=0.9), lambda spk, mem: (spk, mem), "spike_count", x)
    currents = readout_currents(x, *solved())
    wanted = torch.einsum("t,tmc->mc", readout.filter.float(), currents).argmax(1)
    found = calibrate(readout, net_map.readout.neuron, LabelledCurrents(currents, targets))

    def value_and_loss(scale, shift):
        spk, mem = written(net, dataclasses.replace(found, scale=scale, shift=shift), x)
        scores = spk.sum(0)
        top = (scores == scores.amax(1, keepdim=True)).float()
        credit = top / top.sum(1, keepdim=True)
        shares = [credit.gather(1, rows[:, None]).mean() for rows in (wanted, targets)]
        loss = float(nn.functional.cross_entropy(mem.flatten(0, 1), targets.repeat(STEPS)))
        return float(sum(shares)) / 2 - 0.005 * (shift > 0), loss  # a shift upwards has to gain half a point

    value, loss = value_and_loss(found.scale, found.shift)
    others = [
        value_and_loss(found.scale * f, found.shift * f + d) for f in (0.005, 0.25, 0.5, 0.7, 1.4, 2) for d in (-0.05, 0, 0.05)
    ]
    assert value >= max(other for other, _ in others) - 0.0021
    better = [other for other, less in others if less < 0.97 * loss]
    assert all(other < value for other in better)
    assert any(other >= value - 0.01 and more > 1.1 * loss for other, more in others)  # there was something to choose from


@pytest.mark.parametrize("kind", ["membrane_mean", "membrane_sum", "membrane_last"])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_membranes_that_never_reset_are_the_linear_score(kind, reset, spikes):
    x, targets = spikes
    net, net_map, readout = prepared(snn.Leaky(beta=0.9, reset_mechanism=reset), lambda spk, mem: mem, kind, x)
    assert (readout.kind, readout.exactness) == (kind, "surrogate")
    found = calibrate(readout, net_map.readout.neuron, LabelledCurrents(readout_currents(x, *solved()), targets))
    assert found.difference < 0.01
    # The same softmax: only a number common to all classes was added.
    linear = torch.einsum("t,tmc->mc", readout.filter.float(), readout_currents(x, *solved()))
    scores = readout.scores(written(net, found, x))
    assert agreement(readout, scores, x) == 1.0
    assert torch.allclose(scores.softmax(1), (found.scale * linear).softmax(1), atol=0.02)


def test_a_maximum_over_time(spikes):
    x, targets = spikes
    net, net_map, readout = prepared(snn.Leaky(beta=0.8, reset_mechanism="none"), lambda spk, mem: mem.amax(0), "auto", x)
    assert (readout.kind, readout.exactness) == ("membrane_max", "majorised")
    found = calibrate(readout, net_map.readout.neuron, LabelledCurrents(readout_currents(x, *solved()), targets))
    assert found.scale == 1.0
    assert agreement(readout, readout.scores(written(net, found, x)), x) >= 0.9


def test_norse_layers_spike_too(spikes):
    x, targets = spikes
    net = norse.SequentialState(nn.Linear(UNITS, UNITS), norse.LIF(), nn.Linear(UNITS, CLASSES), norse.LIF())
    with torch.no_grad():
        net[0].weight.copy_(40 * torch.eye(UNITS))
        net[0].bias.zero_()
    forward = over_time(STEPS, time_dim=0)
    net_map = inspect_network(net, x[:, :5], forward)
    readout = resolve_readout(net, net_map, x[:, :5], forward)
    assert (readout.kind, readout.exactness) == ("spike_count", "surrogate")
    with torch.no_grad():
        hidden = net[1](net[0](x))[0]
    currents = readout_currents(hidden, *solved())
    found = calibrate(readout, net_map.readout.neuron, LabelledCurrents(currents, targets))
    scores = own_scores(readout, net_map.readout.neuron, found.scale * currents + found.shift)
    assert agreement(readout, scores, hidden) > 0.85


def test_without_a_bias_there_is_no_shift(spikes):
    x, targets = spikes
    _, net_map, readout = prepared(snn.Leaky(beta=0.9), lambda spk, mem: spk, "auto", x)
    weight, _ = solved()
    found = calibrate(
        readout, net_map.readout.neuron, LabelledCurrents(readout_currents(x, weight, None), targets), with_bias=False
    )
    assert found.shift == 0.0


def late(returned):
    """Spikes after the fifth step, which is no readout that the package knows."""
    return (returned["spikes"] if isinstance(returned, dict) else returned[0])[5:].sum(0)


class Steps(NamedTuple):
    spikes: list
    membranes: torch.Tensor


class Output(dict):
    """A mapping whose items are attributes too."""

    def __getattr__(self, name):
        return self[name]


RETURNS = {
    "mapping with attributes": lambda spk, mem: Output(spikes=spk, membranes=mem),
    "tuple": lambda spk, mem: (spk, mem),
    "dict": lambda spk, mem: {"spikes": spk, "membranes": mem},
    "named tuple with a list of steps": lambda spk, mem: Steps(list(spk), mem),
}


@pytest.mark.parametrize("shape", [(3, 0, 2), (3, 5, 1)])
def test_currents_that_decide_nothing(shape, spikes):
    x, _ = spikes
    _, net_map, readout = prepared(snn.Leaky(beta=0.9), lambda spk, mem: spk, "auto", x)
    with pytest.raises(DataError, match="two outputs"):
        calibrate(readout, net_map.readout.neuron, LabelledCurrents(torch.zeros(shape), torch.zeros(shape[1])))
