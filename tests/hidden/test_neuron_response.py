"""Responses: the membrane that a neuron below its threshold has after some inputs."""

import norse.torch as norse
import pytest
import snntorch as snn
import torch

from snn_recon_plugin.hidden.neuron import measure_excitability
from snn_recon_plugin.networks import library_of

STEPS, SAMPLES, WIDTH = 12, 40, 5
NEURONS = {
    "Leaky": lambda: snn.Leaky(beta=0.9),
    "Synaptic": lambda: snn.Synaptic(alpha=0.7, beta=0.8),
    "Alpha": lambda: snn.Alpha(alpha=0.9, beta=0.8),
    "Norse": norse.LIFCell,
}


@pytest.fixture
def inputs():
    return torch.rand(STEPS, SAMPLES, WIDTH, generator=torch.Generator().manual_seed(0))


def response_of(neuron):
    return measure_excitability(neuron, STEPS, torch.zeros(1)).response


def membranes_of(neuron, currents):
    """The membrane at currents too small for a spike, as multiples of the currents' scale."""
    return library_of(neuron).run(neuron, 1e-3 * currents).membranes / 1e-3


@pytest.mark.parametrize("name", NEURONS)
def test_a_trace_is_what_the_membrane_holds_of_the_inputs(name, inputs):
    neuron, weight = NEURONS[name](), torch.linspace(-1, 1, WIDTH)
    currents = (inputs @ weight)[..., None]
    membranes = membranes_of(neuron, currents)
    samples, steps = torch.tensor([0, 3, 7]), torch.tensor([0, 5, STEPS - 1])
    response = response_of(neuron)
    traces = response.trace(inputs, samples, steps)
    torch.testing.assert_close(traces @ weight, membranes[steps, samples, 0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(response.respond(currents), membranes, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NEURONS)
def test_an_average_of_a_constant_input_is_that_input_once_the_membrane_has_changed(name, inputs):
    still, response = inputs[:1].expand(STEPS, -1, -1), response_of(NEURONS[name]())
    assert response.latency == (1 if name == "Alpha" else 0)
    samples = torch.arange(STEPS)
    found = response.average(still, samples, torch.arange(STEPS))
    torch.testing.assert_close(found[response.latency :], still[0, response.latency : STEPS])
    assert (found[: response.latency] == 0).all()


def test_many_samples_are_gathered_in_parts(inputs, monkeypatch):
    response = response_of(snn.Leaky(beta=0.9))
    samples, steps = torch.arange(SAMPLES), torch.arange(SAMPLES) % STEPS
    whole = response.trace(inputs, samples, steps)
    monkeypatch.setattr("snn_recon_plugin.hidden.neuron._GATHERED_BYTES", 4 * STEPS * WIDTH * 7)
    torch.testing.assert_close(response.trace(inputs, samples, steps), whole)
    assert response.trace(inputs, samples[:0], steps[:0]).shape == (0, WIDTH)
