"""The contract is enough: a net of a library that only the tests know is read, solved and rebuilt."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.networks import inspect_network, libraries, resolve_readout
from snn_recon_plugin.networks.libraries import Dynamics, Library

STEPS, INPUTS, HIDDEN, CLASSES, SAMPLES = 5, 6, 12, 3, 60


class Neuron(nn.Module):
    """A leaky integrator, which fires above 1 and is reset to 0 if it has a threshold."""

    __module__ = "toy.neurons"

    def __init__(self, fires):
        super().__init__()
        self.fires, self.v = fires, None

    def forward(self, current):
        self.v = current if self.v is None else 0.8 * self.v + current
        if not self.fires:
            return self.v
        spikes = (self.v > 1).float()
        self.v = self.v * (1 - spikes)
        return spikes


class Toy(Library):
    name = "toy"
    packages = ("toy.neurons",)
    known_dynamics = "a Neuron"

    def takes_sequences(self, neuron):
        return False

    def integrates(self, neuron):
        return not neuron.fires

    def keeps_state(self, neuron):
        return True

    def unit_thresholds(self, neuron):
        return torch.tensor(1.0) if neuron.fires else None

    def dynamics(self, neuron):
        return Dynamics(0.8, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, recurrent=False, autapses=False)

    def synapse(self, neuron):
        return None

    def recurrence(self, neuron):
        return None

    def _simulate(self, neuron, currents, visit):
        neuron.v = None
        for current in currents:
            visit(neuron.forward(current), neuron.v)

    def reset(self, neuron):
        neuron.v = None

    def membrane(self, neuron, output):
        return neuron.v


@pytest.fixture
def toy(monkeypatch):
    known = (*libraries.LIBRARIES, Toy())
    monkeypatch.setattr(libraries, "LIBRARIES", known)
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), Neuron(True), nn.Linear(HIDDEN, CLASSES), Neuron(False))


def data():
    labels = torch.arange(SAMPLES) % CLASSES
    return 3 * torch.eye(CLASSES).repeat(1, 2)[labels] + 0.3 * torch.rand(SAMPLES, INPUTS), labels


def test_a_net_of_another_library_is_read(toy):
    inputs, forward = data()[0], over_time(STEPS)
    net_map = inspect_network(toy, inputs, forward)
    assert (net_map.library, net_map.num_steps) == ("toy", STEPS)
    assert [layer.neuron_name for layer in net_map.hidden] == ["1"]
    assert resolve_readout(toy, net_map, inputs, forward).exactness == "exact"


@pytest.mark.parametrize("hidden", ["rescale", "reconstruct"])
def test_a_net_of_another_library_is_solved(toy, hidden):
    inputs, labels = data()
    report = convex_init_(toy, DataLoader(TensorDataset(inputs, labels), 20), forward=over_time(STEPS), hidden=hidden)
    assert report.certificate.relative_gap < 1e-2
    scores = over_time(STEPS)(toy, inputs).mean(0)
    assert float((scores.argmax(1) == labels).float().mean()) > 0.9


def test_without_the_library_it_is_refused():
    net = nn.Sequential(nn.Linear(INPUTS, HIDDEN), Neuron(True), nn.Linear(HIDDEN, CLASSES), Neuron(False))
    with pytest.raises(UnsupportedModuleError, match="no spiking neuron"):
        inspect_network(net, data()[0], over_time(STEPS))
