"""Candidates that differ in their leak: what is drawn, where it is written, and that everything comes back."""

from dataclasses import replace

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import OptionError, UnsupportedModuleError
from snn_recon_plugin.hidden import Candidates
from snn_recon_plugin.hidden.leaks import make_leak_grid, split_by_leak
from snn_recon_plugin.hidden.samplers import draw_candidates, traces
from snn_recon_plugin.hidden.simulate import run_alone

from ..helpers import HIDDEN, Conv, Loop, accuracy, assert_as_before, batches, bits, lived_in, loop_net, snapshot
from .nets import norse_net

LENGTH = 12


class Sequence(nn.Module):
    """A sequence (n, T, 4) into a hidden layer, and membranes out."""

    def __init__(self, neuron=None, hidden=24):
        torch.manual_seed(0)
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(4, hidden), snn.Leaky(beta=0.9) if neuron is None else neuron
        self.fc2, self.lif2 = nn.Linear(hidden, 3), snn.Leaky(beta=0.95, reset_mechanism="none")

    def forward(self, x):
        states, membrane, found = [], self.lif2.reset_mem(), []
        self.lif1.reset_mem()
        for step in range(x.shape[1]):
            spikes, *states = self.lif1(self.fc1(x[:, step]), *states)
            _, membrane = self.lif2(self.fc2(spikes), membrane)
            found.append(membrane)
        return torch.stack(found)


def sequences(samples=240):
    """Noise, and a pulse at one of three steps, which is the class."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(samples) % 3
    inputs = 0.3 * torch.rand(samples, LENGTH, 4, generator=generator)
    inputs[torch.arange(samples), 3 * labels, 0] += 2.0
    return list(zip(inputs.split(60), labels.split(60), strict=True))


def start(net, **options):
    return convex_init_(net, sequences(), **{"hidden": "reconstruct", "heterogeneous": True, "progress": False, **options})


NEURONS = {
    "Leaky": lambda: snn.Leaky(beta=0.9),
    "learned": lambda: snn.Leaky(beta=0.9, learn_beta=True),
    "vector": lambda: snn.Leaky(beta=torch.linspace(0.7, 0.9, 24)),
    "learned vector": lambda: snn.Leaky(beta=torch.full((24,), 0.9), learn_beta=True),
    "Synaptic": lambda: snn.Synaptic(alpha=0.5, beta=0.9),
}


# -- the grid and its sites --------------------------------------------------------------------------------------------------


def test_time_constants_reach_from_a_step_to_the_length_of_the_sequence():
    grid = make_leak_grid(100)
    assert (grid[0], grid[-1]) == (pytest.approx(0.5), pytest.approx(torch.exp(torch.tensor(-0.01)).item()))
    constants = -1 / torch.tensor(grid).log()
    assert torch.allclose(constants[1:] / constants[:-1], (constants[1] / constants[0]).expand(7), rtol=1e-3)
    assert make_leak_grid(1) == [pytest.approx(0.5)]


def test_candidates_are_split_over_the_leaks_and_drawn_for_a_neuron_of_each(make_site):
    site = split_by_leak(make_site(), snn.Leaky(beta=0.9), "beta", 20)
    grid = make_leak_grid(20)
    for variant, leak in zip(site.variants, grid, strict=True):
        torch.testing.assert_close(variant.excitability.response.kernel, leak ** torch.arange(20.0), rtol=1e-3, atol=1e-4)
    drawn = draw_candidates(traces, site, 80, torch.Generator().manual_seed(0))
    leaks, counts = drawn.unit_values["beta"].unique(return_counts=True)
    assert leaks.tolist() == pytest.approx(grid)
    assert counts.tolist() == [10] * 8


def test_traces_remember_as_the_neuron_of_each_leak(make_site):
    over_time = torch.zeros(5, 120, 8)
    over_time[0] = 1.0
    site = split_by_leak(make_site(), snn.Leaky(beta=0.9), "beta", 20)
    for variant in site.variants:
        memory = variant.leak[1]
        found = replace(variant, over_time=over_time).take_traces(torch.tensor([0]), torch.tensor([4]))
        assert float(found[0, 0]) == pytest.approx(memory**4 / sum(memory**age for age in range(5)), rel=1e-4)


def test_each_candidate_is_simulated_with_its_own_leak():
    net = Sequence()
    inputs = sequences()[0][0].transpose(0, 1)
    filters = torch.ones(1, LENGTH)
    layer = type("Layer", (), {"synapse": net.fc1, "neuron": net.lif1, "name": "fc1"})
    weight, bias = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), torch.full((30,), 0.3)
    leaks = torch.linspace(0.3, 0.99, 30)
    together = run_alone(layer, inputs, filters, Candidates(weight, bias, {"beta": leaks}))
    for number in (0, 17, 29):
        net.lif1.beta.fill_(leaks[number])
        alone = run_alone(layer, inputs, filters, Candidates(weight, bias)).take(torch.tensor([number]))
        assert torch.equal(together.features[:, [number]], alone.features)


# -- written ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NEURONS)
def test_a_rebuilt_layer_has_leaks_of_the_grid_and_undo_brings_back_its_own(kind):
    net = Sequence(NEURONS[kind]())
    before, beta = snapshot(net), net.lif1.beta
    report = start(net)
    found = report.layers[0].witnesses
    assert net.lif1.beta is beta
    assert beta.shape == (24,)
    assert len(found.leaks) > 2
    assert sum(found.leaks.values()) == found.selected == 24
    assert set(beta.tolist()) == set(found.leaks)
    assert set(beta.tolist()) <= set(torch.tensor(make_leak_grid(LENGTH)).tolist())
    assert report.exactness.max_difference < 1e-3
    assert "with leaks from" in str(report)
    report.undo()
    assert_as_before(net, before)


@pytest.mark.parametrize("learned", [True, False])
def test_the_written_net_loads_into_one_that_was_built_with_a_leak_for_each_unit(learned):
    net = Sequence(snn.Leaky(beta=0.9, learn_beta=learned))
    start(net)
    other = Sequence(snn.Leaky(beta=torch.full((24,), 0.9), learn_beta=learned))
    other.load_state_dict(net.state_dict())
    inputs = sequences()[0][0]
    assert torch.equal(other(inputs), net(inputs))


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_shape_and_bits_come_back_after_an_error(monkeypatch, learned, error):
    net = lived_in(Sequence(snn.Leaky(beta=0.9, learn_beta=learned)))
    if learned:
        net.lif1.beta.grad = torch.tensor(0.5)
    before = snapshot(net)

    def fail(*_, **__):
        assert net.lif1.beta.shape == (24,)
        raise error

    monkeypatch.setattr("snn_recon_plugin.stages.initialize.make_report", fail)
    with pytest.raises(error):
        start(net)
    assert_as_before(net, before)


def test_an_optimizer_made_before_trains_the_leaks():
    net = Sequence(snn.Leaky(beta=0.9, learn_beta=True))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    start(net)
    before = net.lif1.beta.detach().clone()
    net(sequences()[0][0]).square().mean().backward()
    optimizer.step()
    assert net.lif1.beta.grad.shape == (24,)
    assert bool((net.lif1.beta != before).any())


@pytest.mark.parametrize("learned", [True, False])
def test_a_convolution_gets_a_leak_for_each_channel(learned):
    torch.manual_seed(0)
    net = Conv()
    net.lif1 = snn.Leaky(beta=0.5, learn_beta=learned)
    before = snapshot(net)
    data = [(x.reshape(-1, 1, 8, 8), y) for x, y in batches(300)]
    report = convex_init_(net, data, hidden="reconstruct", heterogeneous=True, n_candidates=12.0)
    assert net.lif1.beta.shape == (4, 1, 1)
    assert sum(report.layers[0].witnesses.leaks.values()) == 4
    report.undo()
    assert_as_before(net, before)


def test_thresholds_go_along_with_the_rows():
    thresholds = torch.where(torch.arange(24) % 2 == 0, 0.5, 2.0)
    net = Sequence(snn.Leaky(beta=0.9, threshold=thresholds))
    report = start(net)
    assert len(report.layers[0].witnesses.leaks) > 2
    assert set(net.lif1.threshold.tolist()) <= {0.5, 2.0}


# -- where it is on -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "on"),
    [
        ("Leaky", {}, False),
        ("learned", {}, False),
        ("vector", {}, True),
        ("learned vector", {}, True),
        ("vector", {"heterogeneous": False}, False),
    ],
)
def test_by_default_leaks_differ_where_they_are_one_for_each_unit_already(kind, options, on):
    net = Sequence(NEURONS[kind]())
    report = start(net, **{"heterogeneous": None, **options})
    found = report.layers[0].witnesses
    assert bool(found and found.leaks) == on


def test_the_report_offers_the_option_where_inputs_change():
    events = [((inputs > 0.2).float(), labels) for inputs, labels in sequences()]
    for data in (sequences(), events):
        assert "heterogeneous=True may help" in str(convex_init_(Sequence(), data, hidden="reconstruct", progress=False))
    assert "heterogeneous" not in str(start(Sequence(), heterogeneous=False))
    assert "heterogeneous" not in str(convex_init_(loop_net(), batches(300), hidden="reconstruct"))


def frozen():
    neuron = snn.Leaky(beta=0.9, learn_beta=True)
    neuron.beta.requires_grad_(False)
    return neuron


@pytest.mark.parametrize(
    ("neuron", "words"),
    [(frozen, "its beta is frozen"), (lambda: snn.Lapicque(beta=0.9), "a Lapicque has no leak")],
    ids=["frozen", "Lapicque"],
)
def test_a_net_without_such_a_layer_is_refused_by_the_layers_name(neuron, words):
    net = Sequence(neuron())
    before = snapshot(net)
    with pytest.raises(UnsupportedModuleError, match=f"hidden layer 'fc1': {words}"):
        start(net)
    assert_as_before(net, before)


def test_norse_is_refused_since_its_constants_are_not_saved():
    with pytest.raises(UnsupportedModuleError, match=r"'layers\.0': a LIF keeps its time constants where state_dict"):
        convex_init_(norse_net(), batches(300), hidden="reconstruct", heterogeneous=True)


class Mixed(Loop):
    """A second hidden layer whose neuron takes no leak for each unit."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__()
        self.inner, self.lif0 = nn.Linear(HIDDEN, HIDDEN), snn.Lapicque(beta=0.9)

    def forward(self, x):
        mem1, mem2, membranes, state = self.lif1.reset_mem(), self.lif2.reset_mem(), [], self.lif0.reset_mem()
        for _ in range(self.steps):
            spikes, mem1 = self.lif1(self.fc1(x), mem1)
            spikes, state = self.lif0(self.inner(spikes), state)
            _, mem2 = self.lif2(self.fc2(spikes), mem2)
            membranes.append(mem2)
        return torch.stack(membranes)


def test_other_layers_of_the_net_keep_their_leak_and_the_report_says_why():
    net = Mixed()
    report = convex_init_(net, batches(300), hidden="reconstruct", heterogeneous=True)
    assert net.lif1.beta.shape == (HIDDEN,)
    assert net.lif0.beta.dim() == 0
    assert "a Lapicque has no leak" in report.layers[1].witnesses.note
    assert accuracy(net) > 0.8


def test_a_leak_that_two_layers_share_stays():
    leaks = torch.full((HIDDEN,), 0.9)
    net = Mixed()
    net.lif1, net.lif0 = snn.Leaky(beta=leaks), snn.Leaky(beta=leaks)
    before = bits(leaks)
    report = convex_init_(net, batches(300), hidden="reconstruct")
    assert all(layer.witnesses and not layer.witnesses.leaks for layer in report.layers)
    assert bits(leaks) == before


def test_other_values_of_the_option_are_refused():
    with pytest.raises(OptionError, match="heterogeneous='yes'"):
        start(Sequence(), heterogeneous="yes")
