"""Clocks: neurons that fire one after the other, found by simulating the layer's own neuron."""

import norse.torch as norse
import pytest
import snntorch as snn
import torch

from snn_recon_plugin.hidden.clock import make_clock

WIDTH = 512


def build(neuron, steps, width, autapses=True):
    return make_clock(neuron, torch.zeros(steps, 2, 3), width, True, autapses)


def rleaky(units=4, **options):
    return snn.RLeaky(**{"beta": 0.9, "linear_features": units, **options})


NEURONS = {
    "forgetful": lambda: (rleaky(beta=0.5), True),
    "usual": lambda: (rleaky(), True),
    "remembers long": lambda: (rleaky(beta=0.99), True),
    "reset to zero": lambda: (rleaky(reset_mechanism="zero"), True),
    "with a synapse": lambda: (snn.RSynaptic(alpha=0.8, beta=0.9, linear_features=4), True),
    "Norse": lambda: (norse.LIFRecurrentCell(3, 4), False),
    "Norse layer": lambda: (norse.LIFRecurrent(3, 4), False),
    "adaptive": lambda: (norse.LSNNRecurrentCell(3, 4), False),
}


@pytest.mark.parametrize("name", NEURONS)
def test_every_neuron_spikes_once_in_turn_up_to_the_end(name):
    neuron, autapses = NEURONS[name]()
    clock = build(neuron, 28, WIDTH, autapses)
    spikes = clock.spikes.unpack()
    assert (spikes.sum(0) == 1).all()
    at = spikes[:, 0].argmax(0)
    delay = at.diff().unique()
    assert len(delay) == 1
    assert int(at[-1]) >= 28 - int(delay)
    assert autapses or (clock.recurrent.diagonal()[1:] == 0).all()
    assert (clock.tonic[1:] == 0).all()


@pytest.mark.parametrize("steps", [28, 60])
def test_the_clock_runs_in_a_net_that_holds_its_weights(steps):
    """On no input at all, at the neurons' own calls."""
    clock = build(rleaky(), steps, WIDTH)
    neuron = rleaky(len(clock))
    with torch.no_grad():
        neuron.recurrent.weight.copy_(clock.recurrent)
        neuron.recurrent.bias.copy_(clock.tonic)
        spikes, membrane = torch.zeros(1, len(clock)), torch.zeros(1, len(clock))
        seen = []
        for _ in range(steps):
            spikes, membrane = neuron(torch.zeros(1, len(clock)), spikes, membrane)
            seen.append(spikes[0])
    torch.testing.assert_close(torch.stack(seen), clock.spikes.unpack()[:, 0])


@pytest.mark.parametrize(("steps", "width"), [(60, 256), (28, 128), (100, 512)])
def test_a_long_sequence_has_phases_of_several_steps_that_cover_it(steps, width):
    clock = build(rleaky(), steps, width)
    assert 1 < len(clock) <= width // 16
    spikes = clock.spikes.unpack()[:, 0]
    assert spikes.any(1).all()
    assert (spikes.argmax(0).diff() > 0).all()
    assert (spikes.sum(1) <= 2).all()  # one hands over to the next


@pytest.mark.parametrize(
    ("neuron", "steps", "width", "autapses"),
    [(rleaky(), 28, 16, True), (rleaky(reset_mechanism="zero"), 100, 256, True), (norse.LIFRecurrentCell(3, 4), 100, 256, False)],
)
def test_a_layer_too_narrow_for_its_neuron_gets_none(neuron, steps, width, autapses):
    assert build(neuron, steps, width, autapses) is None


def test_a_single_step_takes_one_neuron():
    assert build(rleaky(), 1, 64).spikes.unpack().tolist() == [[[1.0]]]
