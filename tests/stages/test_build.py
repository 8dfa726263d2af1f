"""Hidden layers in an initialisation: how many samples choose their rows, and what is written where layers share a weight."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.stages import build

from ..helpers import STEPS, batches, sequential_net


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({}, 800),  # all of them
        ({"_SELECT_SAMPLES": 200}, 200),
        ({"_SELECT_STEPS": 300 * STEPS}, 300),
        ({"_SELECT_BYTES": 4 * 64 * STEPS * 400}, 400),
        ({"_SELECT_STEPS": STEPS}, 100),  # no fewer than the least
    ],
    ids=["all", "samples", "steps", "bytes", "least"],
)
def test_samples_that_choose_rows(bounds, expected, monkeypatch):
    monkeypatch.setattr(build, "_MIN_SELECT_SAMPLES", 100)
    for name, value in bounds.items():
        monkeypatch.setattr(build, name, value)
    seen, whole = [], build.rebuild_layer

    def watched(task, *options):
        seen.append(len(task.targets))
        return whole(task, *options)

    monkeypatch.setattr(build, "rebuild_layer", watched)
    convex_init_(sequential_net(), batches(800), forward=over_time(STEPS), hidden="reconstruct", n_candidates=1.0, progress=False)
    assert seen == [expected]  # of its one hidden layer


class Tied(nn.Module):
    """Two hidden layers that share their weight."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.fc2.weight = self.fc1.weight
        self.neurons = nn.ModuleList(snn.Leaky(beta=0.9, reset_mechanism=kind) for kind in ("subtract", "subtract", "none"))

    def forward(self, x):
        states, membranes = [neuron.init_leaky() for neuron in self.neurons], []
        for _ in range(STEPS):
            value = x
            for number, layer in enumerate((self.fc1, self.fc2, self.fc3)):
                value, states[number] = self.neurons[number](layer(value), states[number])
            membranes.append(states[-1])
        return torch.stack(membranes).mean(0)


def test_layers_that_share_a_weight_are_written_as_they_were_verified():
    options = {"allow_tied": True, "progress": False}
    kept = convex_init_(Tied(), batches(300), hidden="keep", **options)
    net = Tied()
    report = convex_init_(net, batches(300), hidden="rescale", **options)
    assert report.accuracy_before == kept.accuracy_before
    assert any(layer.gain != 1 for layer in report.layers)
    assert net.fc2.weight is net.fc1.weight
    report.undo()
    assert torch.equal(net.fc1.weight, Tied().fc1.weight)
