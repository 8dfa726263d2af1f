"""Gates: boundaries at one step, closed at all others; and latches, which hold an event for tasks that compare two."""

from dataclasses import replace
from functools import partial

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import convex_init_
from snn_recon_plugin.hidden import Candidates
from snn_recon_plugin.hidden.clock import make_clock
from snn_recon_plugin.hidden.gates import add_latches, draw_boundaries, hold_and_release
from snn_recon_plugin.hidden.neuron import measure_excitability
from snn_recon_plugin.networks import library_of

from .recurrent_nets import STEPS as ROWS
from .recurrent_nets import Rows, see

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
    return measure_excitability(NEURONS[name], STEPS, torch.zeros(1)).response


def membranes_of(neuron, currents):
    """The membrane below a threshold that is never reached."""
    threshold = neuron.threshold
    try:
        neuron.threshold = torch.tensor(1e9)
        return library_of(neuron).run(neuron, currents, torch.zeros(currents.shape[2])).membranes
    finally:
        neuron.threshold = threshold


@pytest.mark.parametrize("name", NEURONS)
def test_a_boundary_separates_two_classes_at_its_step(name, inputs, labels):
    response = response_of(name)
    found = draw_boundaries(partial(response.trace, inputs), labels, response.threshold, 50, torch.Generator().manual_seed(0))
    here = (response.trace(inputs, found.samples, found.steps) * found.weight).sum(1)
    assert (here > found.middle).all()
    assert len(found.steps.unique()) > STEPS / 2
    every = torch.stack([response.trace(inputs, torch.full_like(found.steps, sample), found.steps) for sample in range(SAMPLES)], 1)
    there = 2 * found.middle - here
    others = (every * found.weight[:, None]).sum(2)
    other_class = labels[0] != labels[0][found.samples][:, None]
    assert ((others - there[:, None]).abs().masked_fill(~other_class, torch.inf).amin(1) < 1e-3).all()


def test_samples_of_one_class_have_no_boundary(inputs, labels):
    response = response_of("RLeaky")
    found = draw_boundaries(
        partial(response.trace, inputs), torch.zeros_like(labels), response.threshold, 20, torch.Generator().manual_seed(0)
    )
    assert len(found.steps) == 0


@pytest.mark.parametrize("name", NEURONS)
def test_the_membrane_half_way_is_at_the_threshold_when_released_and_below_when_held(name, inputs, labels):
    neuron, response = NEURONS[name], response_of(name)
    found = draw_boundaries(partial(response.trace, inputs), labels, response.threshold, 30, torch.Generator().manual_seed(0))
    clock = torch.eye(STEPS)[:, None]  # received at each step in turn
    felt = response.trace(clock, torch.zeros_like(found.steps), found.steps)
    tonic, release = hold_and_release(found, response, felt)
    assert (tonic < 0).all()
    currents = clock @ release.T + tonic
    offset = membranes_of(neuron, currents)[:, 0]
    row = torch.arange(len(tonic))
    torch.testing.assert_close(
        offset[found.steps, row] + found.middle, torch.full((len(row),), response.threshold), rtol=1e-3, atol=1e-3
    )
    late = (found.steps == STEPS - 1) & (found.middle < response.threshold)
    assert (offset[STEPS - 2, late] < 0).all()


# -- latches -------------------------------------------------------------------------------------------------------------

LENGTH, HIDDEN = 20, 96


class Compares(nn.Module):
    """Two channels in, RLeaky, and a readout by the mean membrane."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(2, HIDDEN), snn.RLeaky(**{"beta": 0.8, "linear_features": HIDDEN, **options})
        self.fc2, self.lif2 = nn.Linear(HIDDEN, 2), snn.Leaky(beta=0.95, reset_mechanism="none")

    def forward(self, x):
        (spikes, mem1), mem2, membranes = self.lif1.init_rleaky(), self.lif2.reset_mem(), []
        for step in x.movedim(1, 0):
            spikes, mem1 = self.lif1(self.fc1(step), spikes, mem1)
            _, mem2 = self.lif2(self.fc2(spikes), mem2)
            membranes.append(mem2)
        return torch.stack(membranes)


def cues(count, seed):
    """Two cues, ten steps apart, each in one of two channels; the class says if they are in the same."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randint(2, (count,), generator=generator) for _ in range(2))
    x = 0.1 * torch.rand(count, LENGTH, 2, generator=generator)
    rows = torch.arange(count)
    x[rows, 3, first] += 1
    x[rows, 14 + torch.randint(3, (count,), generator=generator), second] += 1
    return x, (first == second).long()


def score(net):
    x, labels = cues(400, seed=1)
    with torch.no_grad():
        return float((net(x).mean(0).argmax(1) == labels).float().mean())


@pytest.mark.parametrize("options", [{}, pytest.param({"learn_beta": True}, marks=pytest.mark.slow)])
def test_two_events_are_compared_without_a_gradient(options):
    net = Compares(**options)
    report = convex_init_(net, DataLoader(TensorDataset(*cues(600, seed=0)), 200), progress=False)
    witnesses = report.layers[0].witnesses
    assert witnesses.kinds["latches"] > 0
    assert sum(witnesses.kinds.values()) == HIDDEN
    assert "a layer built on a clock and latches: held-out loss" in witnesses.reason
    assert score(net) > 0.95
    random = Compares(**options)
    convex_init_(random, DataLoader(TensorDataset(*cues(600, seed=0)), 200), progress=False, hidden="keep")
    assert score(random) < score(net)


class OneWidth:
    """A user's own sampler, without a hash: rows for the layer's two inputs."""

    __hash__ = None

    def __call__(self, site, count, generator):
        return Candidates(3 * torch.randn(count, 2, generator=generator), torch.randn(count, generator=generator))


def test_a_users_sampler_draws_rows_of_the_inputs_alone_beside_latches():
    net = Compares()
    report = convex_init_(net, DataLoader(TensorDataset(*cues(300, seed=0)), 100), progress=False, witnesses=OneWidth())
    witnesses = report.layers[0].witnesses
    assert witnesses.kinds["latches"] > 0
    assert witnesses.kinds["custom"] > 0


def latched(net):
    _, seen = see(net)
    clock = make_clock(seen.recurrent.neuron, seen.inputs, 16 * ROWS, True, True)
    return clock, add_latches(seen, clock, torch.Generator().manual_seed(0))


def test_a_latch_goes_on_to_spike_once_it_has():
    clock, found = latched(Rows())
    assert 0 < found.latches <= 16
    assert found.kinds == ("clock",) * len(clock) + ("latches",) * found.latches
    assert torch.equal(found.spikes.unpack()[:, :1, : len(clock)], clock.spikes.unpack())
    held = found.spikes.unpack()[:, :, len(clock) :]
    assert (held.diff(dim=0) >= 0).all()
    assert 0 < held[-1].mean() < 1
    assert torch.equal(found.recurrent[: len(clock), : len(clock)], clock.recurrent)
    assert (found.recurrent[: len(clock), len(clock) :] == 0).all()


def test_none_where_samples_do_not_differ():
    net = Rows()
    _, seen = see(net)
    clock = make_clock(seen.recurrent.neuron, seen.inputs, 16 * ROWS, True, True)
    seen = replace(seen, inputs=torch.ones_like(seen.inputs))
    assert add_latches(seen, clock, torch.Generator().manual_seed(0)) is None
