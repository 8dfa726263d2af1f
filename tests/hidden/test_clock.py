"""Clocks: neurons that fire one after the other, found by simulating the layer's own neuron."""

import norse.torch as norse
import pytest
import snntorch as snn
import torch

from snn_recon_plugin.hidden.clock import make_clock


def build(neuron, steps=28, width=512, autapses=True):
    return make_clock(neuron, torch.zeros(steps, 2, 3), width, True, autapses)


def rleaky(units=4, **options):
    return snn.RLeaky(**{"beta": 0.9, "linear_features": units, **options})


@pytest.mark.parametrize(
    ("neuron", "autapses"),
    [
        pytest.param(rleaky(beta=0.5), True, id="forgetful"),
        pytest.param(rleaky(beta=0.99), True, id="remembers long"),
        pytest.param(rleaky(reset_mechanism="zero"), True, id="reset to zero"),
        pytest.param(snn.RSynaptic(alpha=0.8, beta=0.9, linear_features=4), True, id="with a synapse"),
        pytest.param(norse.LIFRecurrentCell(3, 4), False, id="Norse"),
        pytest.param(norse.LIFRecurrent(3, 4), False, id="Norse layer"),
        pytest.param(norse.LSNNRecurrentCell(3, 4), False, id="adaptive"),
    ],
)
def test_every_neuron_spikes_once_in_turn_up_to_the_end(neuron, autapses):
    clock = build(neuron, autapses=autapses)
    spikes = clock.spikes.float()
    assert (spikes.sum(0) == 1).all()
    at = spikes[:, 0].argmax(0)
    (delay,) = at.diff().unique()
    assert int(at[-1]) >= 28 - int(delay)
    assert autapses or (clock.recurrent.diagonal()[1:] == 0).all()
    assert (clock.tonic[1:] == 0).all()


@pytest.mark.parametrize("steps", [28, 60])
def test_the_clock_runs_in_a_net_that_holds_its_weights(steps):
    """On no input at all, at the neurons' own calls."""
    clock = build(rleaky(), steps)
    neuron = rleaky(len(clock))
    with torch.no_grad():
        neuron.recurrent.weight.copy_(clock.recurrent)
        neuron.recurrent.bias.copy_(clock.tonic)
        spikes, membrane, seen = torch.zeros(1, len(clock)), torch.zeros(1, len(clock)), []
        for _ in range(steps):
            spikes, membrane = neuron(torch.zeros(1, len(clock)), spikes, membrane)
            seen.append(spikes[0])
    torch.testing.assert_close(torch.stack(seen), clock.spikes.float()[:, 0])


@pytest.mark.parametrize(("steps", "width"), [(60, 256), (28, 128), (100, 512)])
def test_a_long_sequence_has_phases_of_several_steps_that_cover_it(steps, width):
    clock = build(rleaky(), steps, width)
    assert 1 < len(clock) <= width // 16
    spikes = clock.spikes.float()[:, 0]
    assert spikes.any(1).all()
    assert (spikes.argmax(0).diff() > 0).all()
    assert (spikes.sum(1) <= 2).all()  # one hands over to the next


def test_a_single_step_takes_one_neuron_and_a_layer_too_narrow_gets_none():
    assert build(rleaky(), 1, 64).spikes.float().tolist() == [[[1.0]]]
    assert build(rleaky(), 28, 16) is None
    assert build(rleaky(reset_mechanism="zero"), 100, 256) is None
    assert build(norse.LIFRecurrentCell(3, 4), 100, 256, autapses=False) is None
