"""Gates: boundaries at one step, closed at all others."""

import pytest
import snntorch as snn
import torch

from snn_recon_plugin.networks import library_of
from snn_recon_plugin.witnesses.gates import draw_boundaries, hold_and_release, measure_response

STEPS, SAMPLES, WIDTH = 12, 40, 5
NEURONS = {
    "RLeaky": snn.RLeaky(beta=0.9, linear_features=3),
    "RSynaptic": snn.RSynaptic(alpha=0.7, beta=0.8, linear_features=3),
}


@pytest.fixture
def inputs():
    return torch.rand(STEPS, SAMPLES, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels():
    return (torch.arange(SAMPLES) % 3).expand(STEPS, -1)


def response_of(name):
    neuron = NEURONS[name]
    return measure_response(neuron, STEPS, 0.2, torch.zeros(()))


def membranes_of(neuron, currents):
    """The membrane below a threshold that is never reached."""
    threshold = neuron.threshold
    try:
        neuron.threshold = torch.tensor(1e9)
        return library_of(neuron).run(neuron, currents, torch.zeros(currents.shape[2])).membranes
    finally:
        neuron.threshold = threshold


@pytest.mark.parametrize("name", NEURONS)
def test_a_trace_is_what_the_membrane_holds_of_the_inputs(name, inputs):
    weight = torch.linspace(-1, 1, WIDTH)
    membranes = membranes_of(NEURONS[name], (inputs @ weight)[..., None])[..., 0]
    samples, steps = torch.tensor([0, 3, 7]), torch.tensor([0, 5, STEPS - 1])
    traces = response_of(name).trace(inputs, samples, steps)
    torch.testing.assert_close(traces @ weight, membranes[steps, samples], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NEURONS)
def test_a_boundary_separates_two_classes_at_its_step(name, inputs, labels):
    response = response_of(name)
    found = draw_boundaries(inputs, labels, response, 50, torch.Generator().manual_seed(0))
    here = (response.trace(inputs, found.samples, found.steps) * found.weight).sum(1)
    assert (here > found.middle).all()
    assert len(found.steps.unique()) > STEPS / 2
    every = torch.stack([response.trace(inputs, torch.full_like(found.steps, sample), found.steps) for sample in range(SAMPLES)], 1)
    there = 2 * found.middle - here
    others = (every * found.weight[:, None]).sum(2)
    other_class = labels[0] != labels[0][found.samples][:, None]
    assert ((others - there[:, None]).abs().masked_fill(~other_class, torch.inf).amin(1) < 1e-3).all()


def test_samples_of_one_class_have_no_boundary(inputs, labels):
    found = draw_boundaries(inputs, torch.zeros_like(labels), response_of("RLeaky"), 20, torch.Generator().manual_seed(0))
    assert len(found.steps) == 0


@pytest.mark.parametrize("name", NEURONS)
def test_the_membrane_half_way_is_at_the_threshold_when_released_and_below_when_held(name, inputs, labels):
    neuron, response = NEURONS[name], response_of(name)
    found = draw_boundaries(inputs, labels, response, 30, torch.Generator().manual_seed(0))
    clock = torch.eye(STEPS)[:, None]  # heard at each step in turn
    tonic, release = hold_and_release(found, response, clock, torch.ones(STEPS, 1))
    assert (tonic < 0).all()
    currents = clock @ release.T + tonic
    offset = membranes_of(neuron, currents)[:, 0]
    row = torch.arange(len(tonic))
    torch.testing.assert_close(
        offset[found.steps, row] + found.middle, torch.full((len(row),), response.threshold), rtol=1e-3, atol=1e-3
    )
    late = (found.steps == STEPS - 1) & (found.middle < response.threshold)
    assert (offset[STEPS - 2, late] < 0).all()
