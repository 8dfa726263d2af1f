"""Simulation of candidates: the same spikes as in the net, within the stated memory."""

from dataclasses import replace

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional

from snn_recon_plugin.errors import DataError
from snn_recon_plugin.hidden.simulate import SimulatedLayer, simulate_layer
from snn_recon_plugin.hidden.site import Candidates, own_rows, run_rows
from snn_recon_plugin.hidden.stage import Stage
from snn_recon_plugin.networks.calls.calls import SpikeCounter
from snn_recon_plugin.networks.private.parameters import with_values
from snn_recon_plugin.networks.private.quiet import quiet
from snn_recon_plugin.networks.structure.layers import HiddenLayer

from ..helpers import parameters_of
from .tasks import NETS, make_task, spikes_of


def simulated(name):
    """A net, its task, of whose 80 samples 60 take part, and its hidden layer alone."""
    make, forward = NETS[name]
    net = make().eval()
    task = replace(make_task(net, forward, count=80, size=40), samples=torch.arange(20, 80))
    return net, task, simulate_layer(task, task.net_map.hidden[0], [task.samples])[0]


@pytest.mark.parametrize("name", NETS)
def test_candidates_do_outside_the_net_what_the_net_does_with_them(name):
    with quiet(NETS[name][0](), seed=0):
        net, task, found = simulated(name)
        before, layer = parameters_of(net), task.net_map.hidden[0]
        assert found.inputs.shape[:2] == (1, 60)  # an image at every step takes one product
        width = len(layer.synapse.weight)
        weight = 3 * torch.randn(width + 3, *layer.synapse.weight.shape[1:], generator=torch.Generator().manual_seed(0))
        candidates = Candidates(weight, torch.linspace(-0.5, 0.5, width + 3))
        emitted = found.run(candidates)
        norm = {} if layer.norm is None else {(layer.norm, "running_var"): torch.ones(width) - layer.norm.eps}  # the identity
        with with_values({(layer.synapse, "weight"): weight[3:], (layer.synapse, "bias"): candidates.bias[3:], **norm}):
            every = spikes_of(net, torch.cat([batch.inputs for batch in task.recorder.batches]), layer, task.recorder.forward)
    spikes = every[:, 20:]
    features = torch.einsum("t,tn...->n...", task.readout.filter.float(), spikes)
    assert 0.01 < float(spikes.mean()) < 0.99
    assert torch.allclose(emitted.features[:, 3:], features, atol=1e-5)
    assert torch.allclose(emitted.rate[3:], spikes.mean((0, 1)), atol=1e-6)
    assert parameters_of(net) == before


@pytest.mark.parametrize("name", NETS)
def test_more_targets_than_samples_are_refused(name):
    make, forward = NETS[name]
    with quiet(net := make(), seed=0):
        task = make_task(net, forward)
        with pytest.raises(DataError, match="400 targets for 200 samples"):
            simulate_layer(replace(task, targets=task.targets.repeat(2)), task.net_map.hidden[0], [torch.arange(200)])


def test_blocks_of_samples_are_of_limited_size_and_change_nothing(monkeypatch):
    _, _, found = simulated("loop")
    candidates = Candidates(torch.randn(30, 64, generator=torch.Generator().manual_seed(0)), torch.zeros(30))
    whole = found.run(candidates)
    monkeypatch.setattr("snn_recon_plugin.hidden.neuron._STEP_VALUES", limit := 7 * 30)
    own, sizes = SpikeCounter.add, []
    monkeypatch.setattr(SpikeCounter, "add", lambda self, spikes: sizes.append(spikes.numel()) or own(self, spikes))
    parts = found.run(candidates)
    assert torch.allclose(whole.features, parts.features, atol=1e-5)
    assert torch.allclose(whole.rate, parts.rate, atol=1e-6)
    assert 0 < max(sizes) <= limit


# -- a layer outside its net --------------------------------------------------------------------------------------------------
COUNT, SAMPLES = 5, 21
FILTERS = torch.linspace(0.2, 1, COUNT)[None].double()
WIDTH, INPUTS = 6, 7


def simulated_layer(steps=COUNT, stage=None, bias=True):
    torch.manual_seed(0)
    layer = HiddenLayer("layer", nn.Linear(INPUTS, WIDTH, bias=bias), "lif", snn.Leaky(beta=0.5, threshold=0.3))
    return SimulatedLayer(layer, stage or Stage(), torch.rand(steps, SAMPLES, INPUTS), FILTERS)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_own_rows_give_the_outputs_of_the_layer(bias):
    synapse, x = nn.Linear(INPUTS, WIDTH, bias=bias), torch.randn(4, INPUTS)
    assert torch.allclose(run_rows(x, own_rows(synapse)), synapse(x), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("steps", [COUNT, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_spikes_are_those_of_the_neuron_on_the_layers_outputs_in_any_chunks(bias, steps, monkeypatch):
    found = simulated_layer(steps, bias=bias)
    synapse, neuron = found.layer.synapse, found.layer.neuron
    membrane, expected = neuron.reset_mem(), 0
    for step in range(COUNT):
        spikes, membrane = neuron(synapse(found.inputs[min(step, steps - 1)]), membrane)
        expected = expected + float(FILTERS[0, step]) * spikes
    whole = found.run(own_rows(synapse))
    assert torch.allclose(whole.features, expected, atol=1e-5)
    assert 0 < float(whole.rate.mean()) < 1
    assert torch.allclose(found.own_currents(), synapse(found.inputs).expand(COUNT, -1, -1))
    monkeypatch.setattr("snn_recon_plugin.hidden.simulate.OWN_BYTES", 16 * COUNT * 20)
    assert (found.own_currents() is None) == (steps > 1)


@torch.no_grad()
def test_own_currents_pass_the_stage_and_a_gain_is_theirs_if_that_only_scales():
    found = simulated_layer(stage=Stage(behind=(functional.relu,)))
    assert found.scales
    assert torch.allclose(found.own_currents(), functional.relu(found.layer.synapse(found.inputs)))
    assert not simulated_layer(stage=Stage(behind=(functional.sigmoid,))).scales


@torch.no_grad()
def test_values_of_units_go_with_their_rows():
    found = simulated_layer()
    rows = own_rows(found.layer.synapse)
    whole = found.run(replace(rows, unit_values={"threshold": torch.tensor([0.3, 0.3, 0.3, 9.0, 9.0, 9.0])}))
    assert torch.equal(whole.features[:, :3], found.run(rows).features[:, :3])
    assert float(whole.rate[3:].max()) == 0


@torch.no_grad()
def test_mean_and_variance_are_of_what_reaches_the_norm():
    found = simulated_layer(stage=Stage((functional.relu,), nn.BatchNorm1d(WIDTH)))
    synapse = found.layer.synapse
    values = functional.relu(synapse(found.inputs.flatten(0, 1)) - synapse.bias)
    mean, variance = found.measure_norm(own_rows(synapse))
    assert torch.allclose(mean.float(), values.mean(0), atol=1e-5)
    assert torch.allclose(variance.float(), values.var(0, correction=0), atol=1e-5)
    chosen = Candidates(synapse.weight.detach()[:2], None)
    assert torch.allclose(found.measure_norm(chosen)[0], mean[:2])
