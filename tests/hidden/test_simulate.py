"""Simulation of candidates: the same spikes as in the net, within the stated memory."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from snn_recon_plugin.errors import DataError
from snn_recon_plugin.hidden.simulate import make_simulator
from snn_recon_plugin.hidden.site import Candidates
from snn_recon_plugin.networks.capture import neuron_spikes
from snn_recon_plugin.networks.private.parameters import with_values
from snn_recon_plugin.networks.private.quiet import quiet

from ..helpers import STEPS, parameters_of
from .tasks import NETS, make_task


def simulated(name):
    """A net, its task, of whose 80 samples 60 take part, and the simulator of its hidden layer."""
    make, forward = NETS[name]
    net = make().eval()
    task = replace(make_task(net, forward, count=80, size=40), samples=torch.arange(20, 80))
    return net, task, make_simulator(task, task.net_map.hidden[0])


@pytest.mark.parametrize("name", NETS)
def test_candidates_do_outside_the_net_what_the_net_does_with_them(name):
    with quiet(NETS[name][0](), seed=0):
        net, task, found = simulated(name)
        before, layer = parameters_of(net), task.net_map.hidden[0]
        assert found.alone is not None
        assert len(found.over_time) == 1  # an image at every step takes one product
        assert len(found.inputs) == 60
        width = len(layer.synapse.weight)
        weight = 3 * torch.randn(width + 3, *layer.synapse.weight.shape[1:], generator=torch.Generator().manual_seed(0))
        candidates = Candidates(weight, torch.linspace(-0.5, 0.5, width + 3))
        emitted = found.run(candidates)
        norm = {} if layer.norm is None else {(layer.norm, "running_var"): torch.ones(width) - layer.norm.eps}  # the identity
        with with_values({(layer.synapse, "weight"): weight[3:], (layer.synapse, "bias"): candidates.bias[3:], **norm}):
            every = neuron_spikes(net, task.batches, layer, task.forward)
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
            make_simulator(replace(task, targets=task.targets.repeat(2)), task.net_map.hidden[0])


def test_chunks_change_nothing(monkeypatch):
    _, _, found = simulated("loop")
    candidates = Candidates(torch.randn(30, 64, generator=torch.Generator().manual_seed(0)), torch.zeros(30))
    whole = found.run(candidates)
    monkeypatch.setattr("snn_recon_plugin.hidden.layer_alone.CHUNK_BYTES", 7 * 16 * STEPS * 60)
    assert torch.allclose(whole.features, found.run(candidates).features, atol=1e-5)


MEASURE = """
import sys
from pathlib import Path
import norse.torch as norse
import snntorch as snn
import torch
from snn_recon_plugin.networks import HiddenLayer
from snn_recon_plugin.hidden import Candidates
from snn_recon_plugin.hidden.layer_alone import LayerAlone
from snn_recon_plugin.hidden.stage import Stage

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

torch.set_num_threads(2)
neuron = snn.Leaky(beta=0.9) if sys.argv[1] == "snntorch" else norse.LIF()
layer = HiddenLayer("fc1", torch.nn.Linear(50, 100), "lif1", neuron)
recorded = (torch.rand(100, 500, 50) < 0.2).to(torch.uint8)
filters = torch.full((1, 100), 0.01, dtype=torch.float64)
made = Candidates(torch.randn(2000, 50), torch.zeros(2000))
alone = LayerAlone(layer, Stage(), recorded, filters)
alone.run(made.take(torch.arange(5)))  # libraries load and threads start
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
alone.run(made)
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from Linux's /proc")
@pytest.mark.parametrize("library", ["snntorch", "norse"])
def test_candidates_are_simulated_within_what_is_stated(library):
    """docs/evidence/hidden.md: 256 MiB, beside what enters the layer in float32 and what candidates emit, twice."""
    done = subprocess.run([sys.executable, "-c", MEASURE, library], capture_output=True, text=True, check=True)
    steps, samples, inputs, candidates = 100, 500, 50, 2000
    stated = 256 * 2**20 + 4 * steps * samples * inputs + 2 * 4 * samples * candidates
    assert 8 * steps * samples * candidates > 2 * stated  # all at once, or chunks would be no matter
    assert 0 < int(done.stdout) <= stated
