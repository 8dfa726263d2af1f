"""Clocks, whose neurons fire one after the other; gates, which are closed at all steps but one; latches, which hold an event."""

from dataclasses import replace
from functools import partial

import norse.torch as norse
import pytest
import snntorch as snn
import torch

from snn_recon_plugin import convex_init_
from snn_recon_plugin.hidden.clock import add_latches, draw_boundaries, gate_weights, make_clock
from snn_recon_plugin.hidden.neuron import measure_excitability
from snn_recon_plugin.hidden.site import Candidates
from snn_recon_plugin.networks.libraries import library_of

from ..nets import Rows, Series
from .tasks import see


def build(neuron, steps=28, width=512, autapses=True):
    return make_clock(neuron, torch.zeros(steps, 2, 3), width, tonic=True, autapses=autapses)


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


# -- gates -----------------------------------------------------------------------------------------------------------------
STEPS, SAMPLES, WIDTH = 12, 40, 5
INPUTS = torch.rand(STEPS, SAMPLES, WIDTH, generator=torch.Generator().manual_seed(0))
LABELS = (torch.arange(SAMPLES) % 3).expand(STEPS, -1)
NEURONS = {"RLeaky": snn.RLeaky(beta=0.9, linear_features=3), "RSynaptic": snn.RSynaptic(alpha=0.7, beta=0.8, linear_features=3)}


def boundaries(name, count=50, labels=LABELS):
    response = measure_excitability(NEURONS[name], STEPS, torch.zeros(1))
    generator = torch.Generator().manual_seed(0)
    return response, draw_boundaries(partial(response.trace, INPUTS), labels, response.threshold, count=count, generator=generator)


@pytest.mark.parametrize("name", NEURONS)
def test_a_boundary_separates_two_classes_at_its_step(name):
    response, found = boundaries(name)
    here = (response.trace(INPUTS, found.samples, found.steps) * found.weight).sum(1)
    assert (here > found.middle).all()
    assert len(found.steps.unique()) > STEPS / 2
    every = torch.stack([response.trace(INPUTS, torch.full_like(found.steps, sample), found.steps) for sample in range(SAMPLES)], 1)
    there = 2 * found.middle - here
    others = (every * found.weight[:, None]).sum(2)
    other_class = LABELS[0] != LABELS[0][found.samples][:, None]
    assert ((others - there[:, None]).abs().masked_fill(~other_class, torch.inf).amin(1) < 1e-3).all()


def test_samples_of_one_class_have_no_boundary():
    assert len(boundaries("RLeaky", labels=torch.zeros_like(LABELS))[1].steps) == 0


@pytest.mark.parametrize("name", NEURONS)
def test_the_membrane_half_way_is_at_the_threshold_when_released_and_below_when_held(name, monkeypatch):
    response, found = boundaries(name)
    clock = torch.eye(STEPS)[:, None]  # received at each step in turn
    tonic, release = gate_weights(found, response, response.trace(clock, torch.zeros_like(found.steps), found.steps))
    assert (tonic < 0).all()
    monkeypatch.setattr(NEURONS[name], "threshold", torch.tensor(1e9))  # the membrane alone, without a spike
    offset = library_of(NEURONS[name]).run(NEURONS[name], clock @ release.T + tonic, torch.zeros(len(tonic))).membranes[:, 0]
    row = torch.arange(len(tonic))
    limits = torch.full((len(row),), response.threshold)
    torch.testing.assert_close(offset[found.steps, row] + found.middle, limits, rtol=1e-3, atol=1e-3)
    late = (found.steps == STEPS - 1) & (found.middle < response.threshold)
    assert (offset[STEPS - 2, late] < 0).all()


# -- latches -------------------------------------------------------------------------------------------------------------
LENGTH, HIDDEN = 20, 96


def compares():
    return Series(partial(snn.RLeaky, beta=0.8, linear_features=HIDDEN), 2, HIDDEN, 2)


def cues(count, seed):
    """Two cues, ten steps apart, each in one of two channels; the class says if they are in the same."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randint(2, (count,), generator=generator) for _ in range(2))
    x = 0.1 * torch.rand(count, LENGTH, 2, generator=generator)
    rows = torch.arange(count)
    x[rows, 3, first] += 1
    x[rows, 14 + torch.randint(3, (count,), generator=generator), second] += 1
    return x, (first == second).long()


def start(net, count=600, **options):
    x, labels = cues(count, seed=0)
    report = convex_init_(net, list(zip(x.split(100), labels.split(100), strict=True)), strength=1e-3, progress=False, **options)
    x, labels = cues(400, seed=1)
    with torch.no_grad():
        return report.layers[0].witnesses, float((net(x).mean(0).argmax(1) == labels).float().mean())


class OneWidth:
    """A user's own sampler, without a hash: rows for the layer's two inputs."""

    __hash__ = None

    def __call__(self, site, count, generator):
        return Candidates(3 * torch.randn(count, 2, generator=generator), torch.randn(count, generator=generator))


@pytest.mark.parametrize(("options", "kind"), [({}, "traces"), ({"witnesses": OneWidth()}, "custom")])
def test_two_events_are_compared_without_a_gradient(options, kind):
    """A user's own sampler draws rows of the inputs alone, beside latches."""
    witnesses, score = start(compares(), **options)
    assert {"latches", kind} <= set(witnesses.kinds)
    assert sum(witnesses.kinds.values()) == HIDDEN
    assert "a layer built on a clock and latches: held-out loss" in witnesses.reason
    assert score > 0.95
    _, random = start(compares(), hidden="keep")
    assert random < score


def test_a_latch_goes_on_to_spike_once_it_has_and_there_is_none_where_samples_do_not_differ():
    _, seen = see(Rows())
    clock = make_clock(seen.recurrent.neuron, seen.inputs, 128, tonic=True, autapses=True)
    found = add_latches(seen, clock, torch.Generator().manual_seed(0))
    assert 0 < found.latches <= 16
    assert found.kinds == ("clock",) * len(clock) + ("latches",) * found.latches
    assert torch.equal(found.spikes.float()[:, :1, : len(clock)], clock.spikes.float())
    held = found.spikes.float()[:, :, len(clock) :]
    assert (held.diff(dim=0) >= 0).all()
    assert 0 < held[-1].mean() < 1
    assert torch.equal(found.recurrent[: len(clock), : len(clock)], clock.recurrent)
    assert (found.recurrent[: len(clock), len(clock) :] == 0).all()
    alike = replace(seen, inputs=torch.ones_like(seen.inputs))
    assert add_latches(alike, clock, torch.Generator().manual_seed(0)) is None
