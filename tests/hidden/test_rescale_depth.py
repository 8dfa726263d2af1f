"""Layers before the last are evaluated at the readout, through the layers above."""

import math
from functools import partial

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.hidden import change_layers, rescale, scale_parameters
from snn_recon_plugin.hidden.hidden_task import CrossValidation
from snn_recon_plugin.networks import over_time, quiet, trying

from ..helpers import HIDDEN, parameters_of, train_data
from .nets import choose, make_task, rates_of, try_gains

pytestmark = pytest.mark.usefixtures("two_rates")

STEPS = 6
SIZES = (64, HIDDEN, HIDDEN, HIDDEN)


class Deep(nn.Module):
    """Hidden layers of Leaky neurons, whose spikes two branches may read."""

    def __init__(self, layers=2, divisors=(1.0, 1.0, 1.0), wide=False):
        super().__init__()
        torch.manual_seed(0)
        self.synapses = nn.ModuleList(nn.Linear(SIZES[k], SIZES[k + 1]) for k in range(layers))
        self.neurons = nn.ModuleList(snn.Leaky(beta=0.9) for _ in range(layers))
        self.fc, self.lif = nn.Linear(HIDDEN * (layers if wide else 1), 10), snn.Leaky(beta=0.9, reset_mechanism="none")
        self.wide = wide
        with torch.no_grad():
            for synapse, divisor in zip(self.synapses, divisors, strict=False):
                for parameter in synapse.parameters():
                    parameter.div_(divisor)

    def forward(self, x):
        states, membrane, membranes = [neuron.reset_mem() for neuron in self.neurons], self.lif.reset_mem(), []
        for _ in range(STEPS):
            value, seen = x, []
            for number, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                value, states[number] = neuron(synapse(value), states[number])
                seen.append(value)
            _, membrane = self.lif(self.fc(torch.cat(seen, dim=1) if self.wide else value), membrane)
            membranes.append(membrane)
        return torch.stack(membranes)


def entering(net, inputs, readout):
    """Inputs of a layer at each step, recorded by a hook of this test's own, ``[T, n, P]``."""
    seen = []
    handle = readout.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach().clone()))
    with torch.no_grad():
        net(inputs)
    handle.remove()
    return torch.stack(seen)


@pytest.fixture
def evaluated(monkeypatch):
    """The features that were evaluated, apart from the spikes of a last layer."""
    features, evaluate = [], CrossValidation.evaluate_features

    def watch(self, given):
        features.append(self.readout.take_features(given).clone())
        return evaluate(self, given)

    monkeypatch.setattr(CrossValidation, "evaluate_features", watch)
    return features


def test_the_layers_above_relay_what_is_evaluated(evaluated, monkeypatch):
    monkeypatch.setattr(rescale, "RATES", (0.12,))
    net = Deep(divisors=(20.0, 20.0))
    (first, _), net_map = choose(net)
    assert len(evaluated) == len(first.heldout_loss) == 2
    # With its own weights the layer is silent; with the gain, those above fire at the fixed rate, and reach the readout.
    # Biases alone make the layer above fire, alike for all samples.
    assert torch.equal(evaluated[0], evaluated[0][:1].expand_as(evaluated[0]))
    assert first.heldout_loss[1.0] == math.inf
    assert evaluated[1].shape == (200, HIDDEN)
    with torch.no_grad():
        for (module, name), value in scale_parameters(net_map.hidden[0], first.gain).items():
            getattr(module, name).copy_(value)
        inputs = train_data(200)[0]
        currents = net.synapses[1](entering(net, inputs, net.synapses[1]))
        gains = [2.0 ** (k / 16) for k in range(160)]
        rates = {gain: float(spiking(currents[:, :64], gain).mean()) for gain in gains}
        nearest = min(gains, key=lambda gain: abs(rates[gain] - rescale.RATE_ABOVE))
        # The readout's filter: the mean of a membrane that decays by 0.9 a step.
        weights = torch.tensor([sum(0.9 ** (s - t) for s in range(t, STEPS)) / STEPS for t in range(STEPS)])
        expected = torch.einsum("t,tnp->np", weights, spiking(currents, nearest))
    assert float((evaluated[1] - expected).abs().mean()) < 0.1 * float(expected.abs().mean())


def spiking(currents, gain):
    mem, spikes = torch.zeros_like(currents[0]), []
    for current in currents:
        mem = 0.9 * mem + gain * current - (mem > 1).float()
        spikes.append((mem > 1).float())
    return torch.stack(spikes)


def test_three_silent_layers_are_revived():
    net = Deep(3, (20.0, 40.0, 80.0))
    decisions, net_map = choose(net)
    assert [decision.name for decision in decisions] == [layer.name for layer in net_map.hidden]
    assert all(decision.gain > 1 for decision in decisions)
    assert all(0.005 < rate < 0.35 for rate in rates_of(net, net_map, decisions))
    assert decisions[-1].heldout_loss[decisions[-1].gain] < 0.8 * math.log(10)


def test_branches_are_evaluated_on_all_that_enters_the_readout(evaluated):
    net = Deep(wide=True)
    choose(net, count=100)
    assert {features.shape for features in evaluated} == {(100, 2 * HIDDEN)}


def test_scores_at_every_step(evaluated):
    decisions, _ = choose(Deep(), kind="membrane_per_step", count=100)
    assert {features.shape for features in evaluated} == {(100, HIDDEN)}
    assert all(math.isfinite(min(decision.heldout_loss.values())) for decision in decisions)


def test_nothing_changes_below_or_above():
    net = Deep(3)
    before = parameters_of(net)
    try_gains(net, count=100)
    assert parameters_of(net) == before


def test_a_layer_above_that_cannot_spike_is_an_infinite_loss():
    net = Deep(divisors=(20.0, 1.0))
    with torch.no_grad():
        net.synapses[1].weight.abs_().neg_()
        net.synapses[1].bias.abs_().neg_()
    with quiet(net, seed=0):
        outcome, _ = rescale.choose_gain(make_task(net, count=100), 0)
    assert len(outcome.heldout_loss) > 1
    assert all(loss == math.inf for loss in outcome.heldout_loss.values())


def test_multi_step_layers():
    torch.manual_seed(0)
    net = norse.SequentialState(
        nn.Linear(64, HIDDEN), norse.LIF(), nn.Linear(HIDDEN, HIDDEN), norse.LIF(), nn.Linear(HIDDEN, 10), norse.LI()
    )
    decisions, net_map = choose(net, over_time(20))
    assert all(0.005 < rate < 0.35 for rate in rates_of(net, net_map, decisions, over_time(20)))


def test_layers_are_written_into_the_net_and_the_old_values_can_be_tried_again():
    net = Deep(2, (20.0, 40.0))
    inputs = train_data(50)[0]
    with quiet(net, seed=0):
        scores = net(inputs)
        decisions, before = change_layers((task := make_task(net, count=100)), partial(rescale.choose_gain, task))
        assert set(before) == {(synapse, name) for synapse in net.synapses for name in ("weight", "bias")}
        for synapse, decision in zip(net.synapses, decisions, strict=True):
            assert torch.equal(synapse.weight, before[synapse, "weight"] * decision.gain)
        assert not torch.equal(net(inputs), scores)
        with trying(before):
            assert torch.equal(net(inputs), scores)
