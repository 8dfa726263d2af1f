"""A layer alone on recorded inputs: the spikes of the net, in any chunks, with gains, and what its rows give a norm."""

from dataclasses import replace

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional

from snn_recon_plugin.hidden import Candidates
from snn_recon_plugin.hidden.layer_alone import LayerAlone, own_rows, run_synapse
from snn_recon_plugin.hidden.stage import Stage
from snn_recon_plugin.networks import HiddenLayer

STEPS, SAMPLES = 5, 21
FILTERS = torch.linspace(0.2, 1, STEPS)[None].double()
CONVOLUTIONS = {
    "1d": (nn.Conv1d(2, 6, 3, stride=2), (2, 12)),
    "2d in groups": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 6, 6)),
    "2d, circular padding": (nn.Conv2d(2, 6, 3, padding=1, padding_mode="circular"), (2, 6, 6)),
    "3d without a bias": (nn.Conv3d(1, 6, 2, bias=False), (1, 4, 4, 4)),
    "dense": (nn.Linear(7, 6), (7,)),
}


def alone(name, steps=STEPS, stage=None, neuron=None):
    torch.manual_seed(0)
    synapse, shape = CONVOLUTIONS[name]
    layer = HiddenLayer("layer", synapse, "lif", neuron or snn.Leaky(beta=0.5, threshold=0.3))
    return LayerAlone(layer, stage or Stage(), torch.rand(steps, SAMPLES, *shape), FILTERS)


@torch.no_grad()
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_own_rows_give_the_outputs_of_the_layer(name):
    synapse, shape = CONVOLUTIONS[name]
    x = torch.randn(4, *shape)
    assert torch.allclose(run_synapse(synapse, x, own_rows(synapse)), synapse(x), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("steps", [STEPS, 1])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_spikes_are_those_of_the_neuron_on_the_layers_outputs_in_any_chunks(name, steps, monkeypatch):
    found = alone(name, steps)
    synapse, neuron = found.layer.synapse, found.layer.neuron
    membrane, expected = neuron.reset_mem(), 0
    for step in range(STEPS):
        spikes, membrane = neuron(synapse(found.inputs[min(step, steps - 1)]), membrane)
        expected = expected + float(FILTERS[0, step]) * spikes
    whole = found.run(own_rows(synapse))
    axes = expected.dim() - 2
    pooled = (functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d, functional.adaptive_avg_pool3d)
    size = (9, 3, 2)
    expected = pooled[axes - 1](expected, size[axes - 1]).flatten(2) if axes else expected[:, :, None]
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
    found = alone("2d in groups", stage=Stage(behind=(lambda value: functional.max_pool2d(value, 2),)))
    assert found.scales
    synapse = found.layer.synapse
    plain, doubled = found.run_own([1.0, 2.0])
    rows = own_rows(synapse)
    expected = found.run(replace(rows, weight=2 * rows.weight, bias=2 * rows.bias))
    assert torch.allclose(doubled.features, expected.features, atol=1e-5)
    assert not torch.allclose(plain.features, doubled.features, atol=1e-2)


@torch.no_grad()
def test_values_of_units_go_with_their_rows():
    found = alone("1d")
    rows = own_rows(found.layer.synapse)
    whole = found.run(replace(rows, unit_values={"threshold": torch.tensor([0.3, 0.3, 0.3, 9.0, 9.0, 9.0])}))
    assert torch.equal(whole.features[:, :3], found.run(rows).features[:, :3])
    assert float(whole.rate[3:].max()) == 0


@torch.no_grad()
def test_mean_and_variance_are_of_what_reaches_the_norm():
    norm = nn.BatchNorm2d(6)
    found = alone("2d in groups", stage=Stage((lambda value: functional.avg_pool2d(value, 2),), norm))
    synapse = found.layer.synapse
    values = functional.avg_pool2d(synapse(found.inputs.flatten(0, 1)) - synapse.bias[:, None, None], 2).movedim(1, 0).flatten(1)
    mean, variance = found.measure_norm(own_rows(synapse))
    assert torch.allclose(mean.float(), values.mean(1), atol=1e-5)
    assert torch.allclose(variance.float(), values.var(1, correction=0), atol=1e-5)
    chosen = Candidates(synapse.weight.detach()[:2], None, groups=torch.zeros(2, dtype=torch.long))
    assert torch.allclose(found.measure_norm(chosen)[0], mean[:2])
