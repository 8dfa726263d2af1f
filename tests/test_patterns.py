"""Weights from spike patterns: a teacher's spikes are reproduced, and what can't be solved is refused."""

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based import neuron as jelly
from torch import nn

from snn_recon_plugin.errors import DataError, OptionError, UnsupportedModuleError
from snn_recon_plugin.patterns import weights_from_patterns

from .helpers import values

T, SAMPLES, INPUTS, NEURONS = 8, 15, 6, 3
DATA = torch.randn(T, SAMPLES, INPUTS, generator=torch.Generator().manual_seed(0))
NOTHING = torch.zeros(T, SAMPLES, 2)


def leaky(**options):
    return snn.Leaky(beta=0.9, **options)


def run(neuron, currents):
    if isinstance(neuron, (norse.LIF, norse.LIFRecurrent)):
        return neuron(currents)[0].detach()
    if isinstance(neuron, jelly.BaseNode):
        functional.reset_net(neuron)
        return neuron(currents).detach()
    state = neuron.reset_mem() if isinstance(neuron, (snn.Leaky, snn.RLeaky)) else None
    recurrent, spikes = isinstance(neuron, snn.RLeaky), []
    for current in currents:
        spike, state = neuron(current, *state) if recurrent else neuron(current, state)
        state = (spike, state) if recurrent else state
        spikes.append(spike)
    return torch.stack(spikes).detach()


FORWARD = {
    "subtract": leaky,
    "zero": lambda: leaky(reset_mechanism="zero"),
    "none": lambda: leaky(reset_mechanism="none"),
    "LIFCell": norse.LIFCell,
    "LIF": norse.LIF,
    "LIFNode": lambda: jelly.LIFNode(v_reset=None, step_mode="m"),
    "ParametricLIFNode": lambda: jelly.ParametricLIFNode(step_mode="m"),
}


@pytest.mark.parametrize("name", FORWARD)
def test_a_teachers_spikes_are_reproduced(name):
    neuron, generator = FORWARD[name](), torch.Generator().manual_seed(1)
    gain = 20.0 if name in ("LIFCell", "LIF") else 1.0
    weight, bias = gain * torch.randn(NEURONS, INPUTS, generator=generator), gain * 0.3 * torch.randn(NEURONS, generator=generator)
    patterns = run(neuron, DATA @ weight.T + bias)
    assert 0.05 < float(patterns.mean()) < 0.95
    found = weights_from_patterns(neuron, DATA, patterns)
    assert found.separable.all()
    assert float(found.mismatch.max()) == 0
    assert torch.equal(run(neuron, DATA @ found.weight.float().T + found.bias.float()), patterns)
    assert found.recurrent is None


@pytest.mark.parametrize("make", [snn.RLeaky, norse.LIFRecurrent, norse.LIFRecurrentCell])
def test_a_recurrent_teachers_spikes_are_reproduced(make):
    generator, snntorch = torch.Generator().manual_seed(2), make is snn.RLeaky
    layer = make(beta=0.8, linear_features=NEURONS) if snntorch else make(INPUTS, NEURONS)
    weight = torch.randn(NEURONS, INPUTS, generator=generator)
    matrix = torch.randn(NEURONS, NEURONS, generator=generator)
    with torch.no_grad():
        if snntorch:
            layer.recurrent.weight.copy_(0.7 * matrix)
            assert bool((layer.recurrent.bias != 0).all())  # left as it is, and made up for in the layer's bias
        else:
            layer.input_weights.copy_(20 * weight)
            layer.recurrent_weights.copy_(10 * matrix.fill_diagonal_(0))
    patterns = run(layer, DATA @ weight.T if snntorch else DATA)
    before = values(layer)
    assert 0.05 < float(patterns.mean()) < 0.95
    found = weights_from_patterns(layer, DATA, patterns, bias=snntorch)
    assert found.separable.all()
    assert float(found.mismatch.max()) == 0
    assert found.recurrent.shape == (NEURONS, NEURONS)
    assert snntorch or bool((found.recurrent.diagonal() == 0).all())
    assert values(layer) == before


def test_patterns_that_no_weights_give_are_told_with_the_share_that_misses():
    patterns = torch.zeros(2, 20, 2)
    patterns[:, ::2, 0] = 1  # equal samples that should do different things
    patterns[:, :, 1] = 1
    found = weights_from_patterns(leaky(), torch.ones(2, 20, 1), patterns)
    assert found.separable.tolist() == [False, True]
    assert float(found.mismatch[0]) >= 0.25
    assert float(found.mismatch[1]) == 0


def test_the_seed_of_nothing_matters_and_the_neuron_is_left_alone():
    neuron = leaky()
    patterns = (torch.rand(T, SAMPLES, 2, generator=torch.Generator().manual_seed(3)) < 0.3).float()
    before = neuron.mem.clone()
    one, two = (weights_from_patterns(neuron, DATA, patterns, progress=False) for _ in range(2))
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(neuron.mem, before)


@pytest.mark.parametrize(
    ("inputs", "patterns", "message"),
    [
        (DATA[0], NOTHING, "time first"),
        (DATA * float("nan"), NOTHING, "finite"),
        (DATA, NOTHING + 0.5, "spikes"),
        (DATA, NOTHING[:, :, :0], "none empty"),
        (DATA.numpy(), NOTHING, "a ndarray"),
    ],
)
def test_bad_input_is_refused(inputs, patterns, message):
    with pytest.raises(DataError, match=message):
        weights_from_patterns(leaky(), inputs, patterns)


REFUSED = {
    "no neuron": (nn.ReLU, UnsupportedModuleError, "Leaky"),
    "two states": (lambda: snn.Synaptic(alpha=0.9, beta=0.8), UnsupportedModuleError, "Leaky"),
    "immediate reset": (lambda: leaky(reset_delay=False), UnsupportedModuleError, "Leaky"),
    "graded spikes": (lambda: leaky(graded_spikes_factor=2.0), UnsupportedModuleError, "Leaky"),
    "units that differ": (lambda: snn.Leaky(beta=torch.tensor([0.5, 0.9])), UnsupportedModuleError, "Leaky"),
    "one to one": (lambda: snn.RLeaky(beta=0.8, all_to_all=False), UnsupportedModuleError, "Leaky"),
    "reset to zero": (lambda: snn.RLeaky(beta=0.8, linear_features=2, reset_mechanism="zero"), UnsupportedModuleError, "Leaky"),
    "not all neurons": (lambda: snn.RLeaky(beta=0.8, linear_features=3), DataError, "whole layer"),
    "no bias": (lambda: snn.RLeaky(beta=0.8, linear_features=2), OptionError, "bias=True"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_neurons_and_recurrences_that_cannot_be_solved_for_are_refused(name):
    make, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        weights_from_patterns(make(), DATA, NOTHING, bias=name != "no bias")
