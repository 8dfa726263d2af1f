"""A layer alone on recorded inputs: the spikes of the net, in any chunks, with gains, and what its rows give a norm."""

from dataclasses import replace

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional

from snn_recon_plugin.hidden.layer_alone import LayerAlone, own_rows, run_rows
from snn_recon_plugin.hidden.site import Candidates
from snn_recon_plugin.hidden.stage import Stage
from snn_recon_plugin.networks.structure.layers import HiddenLayer

STEPS, SAMPLES = 5, 21
FILTERS = torch.linspace(0.2, 1, STEPS)[None].double()
WIDTH, INPUTS = 6, 7


def alone(steps=STEPS, stage=None, bias=True):
    torch.manual_seed(0)
    layer = HiddenLayer("layer", nn.Linear(INPUTS, WIDTH, bias=bias), "lif", snn.Leaky(beta=0.5, threshold=0.3))
    return LayerAlone(layer, stage or Stage(), torch.rand(steps, SAMPLES, INPUTS), FILTERS)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_own_rows_give_the_outputs_of_the_layer(bias):
    synapse, x = nn.Linear(INPUTS, WIDTH, bias=bias), torch.randn(4, INPUTS)
    assert torch.allclose(run_rows(x, own_rows(synapse)), synapse(x), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("steps", [STEPS, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_spikes_are_those_of_the_neuron_on_the_layers_outputs_in_any_chunks(bias, steps, monkeypatch):
    found = alone(steps, bias=bias)
    synapse, neuron = found.layer.synapse, found.layer.neuron
    membrane, expected = neuron.reset_mem(), 0
    for step in range(STEPS):
        spikes, membrane = neuron(synapse(found.inputs[min(step, steps - 1)]), membrane)
        expected = expected + float(FILTERS[0, step]) * spikes
    whole = found.run(own_rows(synapse))
    assert torch.allclose(whole.features, expected, atol=1e-5)
    assert 0 < float(whole.rate.mean()) < 1
    (again,) = found.run_own([1.0])
    assert torch.allclose(again.features, whole.features, atol=1e-5)
    monkeypatch.setattr("snn_recon_plugin.hidden.layer_alone.CHUNK_BYTES", 16 * STEPS * 20)
    parts = found.run(own_rows(synapse))
    assert torch.allclose(parts.features, whole.features, atol=1e-5)
    assert torch.allclose(parts.rate, whole.rate, atol=1e-6)


@torch.no_grad()
def test_gains_are_those_of_the_weights():
    found = alone(stage=Stage(behind=(functional.relu,)))
    assert found.scales
    synapse = found.layer.synapse
    plain, doubled = found.run_own([1.0, 2.0])
    rows = own_rows(synapse)
    expected = found.run(replace(rows, weight=2 * rows.weight, bias=2 * rows.bias))
    assert torch.allclose(doubled.features, expected.features, atol=1e-5)
    assert not torch.allclose(plain.features, doubled.features, atol=1e-2)


@torch.no_grad()
def test_values_of_units_go_with_their_rows():
    found = alone()
    rows = own_rows(found.layer.synapse)
    whole = found.run(replace(rows, unit_values={"threshold": torch.tensor([0.3, 0.3, 0.3, 9.0, 9.0, 9.0])}))
    assert torch.equal(whole.features[:, :3], found.run(rows).features[:, :3])
    assert float(whole.rate[3:].max()) == 0


@torch.no_grad()
def test_mean_and_variance_are_of_what_reaches_the_norm():
    found = alone(stage=Stage((functional.relu,), nn.BatchNorm1d(WIDTH)))
    synapse = found.layer.synapse
    values = functional.relu(synapse(found.inputs.flatten(0, 1)) - synapse.bias)
    mean, variance = found.measure_norm(own_rows(synapse))
    assert torch.allclose(mean.float(), values.mean(0), atol=1e-5)
    assert torch.allclose(variance.float(), values.var(0, correction=0), atol=1e-5)
    chosen = Candidates(synapse.weight.detach()[:2], None)
    assert torch.allclose(found.measure_norm(chosen)[0], mean[:2])
