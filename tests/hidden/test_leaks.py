"""Candidates that differ in their leak: what is drawn, where it is written, and that everything comes back."""

from dataclasses import replace
from functools import partial

import pytest
import snntorch as snn
import torch

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.hidden.samplers import draw_candidates, make_leak_grid, split_by_leak, traces
from snn_recon_plugin.hidden.simulate import SimulatedLayer
from snn_recon_plugin.hidden.site import Candidates
from snn_recon_plugin.hidden.stage import Stage
from snn_recon_plugin.networks.calls.forward import over_time
from snn_recon_plugin.networks.structure.layers import HiddenLayer

from ..helpers import HIDDEN, accuracy, assert_as_before, batches, bits, conv_net, loop_net, one_line, snapshot
from ..nets import Deep, Series
from .tasks import make_site, norse_net

pytestmark = pytest.mark.usefixtures("two_rates")
LENGTH = 12


def sequences(samples=240):
    """Noise, and a pulse at one of three steps, which is the class."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(samples) % 3
    inputs = 0.3 * torch.rand(samples, LENGTH, 4, generator=generator)
    inputs[torch.arange(samples), 3 * labels, 0] += 2.0
    return list(zip(inputs.split(60), labels.split(60), strict=True))


def recurrent_net():
    """A recurrent layer of another width than its inputs, too narrow for a clock."""
    return Series(partial(snn.RLeaky, beta=0.9, linear_features=24))


def start(net, data=None, **options):
    given = sequences() if data is None else data
    return convex_init_(
        net, given, **{"hidden": "reconstruct", "heterogeneous": True, "strength": 1e-3, "progress": False, **options}
    )


def still():
    """The same noise at every step, from which the class can be told."""
    return [(inputs[:, :1].expand(-1, LENGTH, -1) + torch.eye(3, 4)[labels][:, None], labels) for inputs, labels in sequences()]


NEURONS = {
    "Leaky": partial(snn.Leaky, beta=0.9),
    "learned": partial(snn.Leaky, beta=0.9, learn_beta=True),
    "vector": lambda: snn.Leaky(beta=torch.linspace(0.7, 0.9, 24)),
    "learned vector": lambda: snn.Leaky(beta=torch.full((24,), 0.9), learn_beta=True),
    "Synaptic": partial(snn.Synaptic, alpha=0.5, beta=0.9),
    "two thresholds": lambda: snn.Leaky(beta=0.9, threshold=torch.tensor([0.5, 2.0]).repeat(12)),
}


# -- the grid and its sites --------------------------------------------------------------------------------------------------
def test_time_constants_reach_from_a_step_to_the_length_of_the_sequence():
    grid = make_leak_grid(100)
    assert (grid[0], grid[-1]) == (pytest.approx(0.5), pytest.approx(torch.exp(torch.tensor(-0.01)).item()))
    constants = -1 / torch.tensor(grid).log()
    assert torch.allclose(constants[1:] / constants[:-1], (constants[1] / constants[0]).expand(7), rtol=1e-3)
    assert make_leak_grid(1) == [pytest.approx(0.5)]


def test_candidates_are_split_over_the_leaks_and_drawn_for_a_neuron_of_each():
    site, grid = split_by_leak(make_site(), snn.Leaky(beta=0.9), "beta", 20), make_leak_grid(20)
    over_time = torch.zeros(5, 120, 8)
    over_time[0] = 1.0
    for variant, leak in zip(site.variants, grid, strict=True):
        torch.testing.assert_close(variant.excitability.kernel, leak ** torch.arange(20.0), rtol=1e-3, atol=1e-4)
        found = replace(variant, over_time=over_time).take_traces(torch.tensor([0]), torch.tensor([4]))
        assert float(found[0, 0]) == pytest.approx(leak**4 / sum(leak**age for age in range(5)), rel=1e-4)
    drawn = draw_candidates(traces, site, 80, torch.Generator().manual_seed(0))
    leaks, counts = drawn.unit_values["beta"].unique(return_counts=True)
    assert leaks.tolist() == pytest.approx(grid)
    assert counts.tolist() == [10] * 8


def test_each_candidate_is_simulated_with_its_own_leak():
    net = Series()
    layer = HiddenLayer("fc1", net.fc1, "lif1", net.lif1)
    run = SimulatedLayer(layer, Stage(), sequences()[0][0].transpose(0, 1), torch.ones(1, LENGTH)).run
    weight, bias = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), torch.full((30,), 0.3)
    leaks = torch.linspace(0.3, 0.99, 30)
    together = run(Candidates(weight, bias, {"beta": leaks}))
    for number in (0, 17, 29):
        net.lif1.beta.fill_(leaks[number])
        assert torch.equal(together.features[:, number], run(Candidates(weight, bias)).features[:, number])


# -- written ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in ("learned", "vector") else kind for kind in NEURONS]
)
def test_a_rebuilt_layer_has_leaks_of_the_grid_and_undo_brings_back_its_own(kind):
    net = Series(NEURONS[kind])
    before, beta, thresholds = snapshot(net), net.lif1.beta, set(net.lif1.threshold.flatten().tolist())
    report = start(net)
    found = report.layers[0].witnesses
    assert net.lif1.beta is beta
    assert beta.shape == (24,)
    assert len(found.leaks) > 2
    assert sum(found.leaks.values()) == found.selected == 24
    assert set(beta.tolist()) == set(found.leaks) <= set(torch.tensor(make_leak_grid(LENGTH)).tolist())
    assert set(net.lif1.threshold.flatten().tolist()) <= thresholds  # which go along with the rows
    assert report.exactness.max_difference < 1e-3
    assert "with leaks from" in one_line(report)
    report.undo()
    assert_as_before(net, before)


@pytest.mark.parametrize("learned", [True, False])
def test_a_net_built_with_a_leak_for_each_unit_loads_the_written_ones(learned):
    net = Series(partial(snn.Leaky, beta=0.9, learn_beta=learned))
    start(net)
    other = Series(lambda: snn.Leaky(beta=torch.full((24,), 0.9), learn_beta=learned))
    other.load_state_dict(net.state_dict())
    inputs = sequences()[0][0]
    assert torch.equal(other(inputs), net(inputs))


def test_convolutions_keep_their_leaks():
    with pytest.raises(UnsupportedModuleError, match="the rows of a convolution stay"):
        start(conv_net(), batches(300))


# -- where it is on -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "data", "options", "differ", "offered"),
    [
        (Series, sequences, {}, False, True),
        (Series, lambda: [((inputs > 0.2).float(), labels) for inputs, labels in sequences()], {}, False, True),
        (partial(Series, NEURONS["learned vector"]), sequences, {}, True, False),
        (partial(Series, NEURONS["vector"]), sequences, {"heterogeneous": False}, False, False),
        (Series, sequences, {"heterogeneous": True}, True, False),
        (recurrent_net, sequences, {}, False, True),
        (recurrent_net, sequences, {"hidden": "auto"}, False, True),
        (recurrent_net, still, {}, False, False),
        (Series, sequences, {"hidden": "rescale"}, False, False),
        (loop_net, lambda: batches(300), {}, False, False),
    ],
    ids=["values", "events", "learned vector", "off", "on", "recurrent", "kept", "still", "rescaled", "constant"],
)
def test_leaks_differ_by_default_where_they_do_already_and_are_offered_where_inputs_change(make, data, options, differ, offered):
    report = start(make(), data(), **{"heterogeneous": None, **options})
    found = report.layers[0].witnesses
    assert bool(found and found.leaks) == differ
    assert [hint.name for hint in report.hints] == (["heterogeneous"] if offered else [])
    assert ("heterogeneous=True" in str(report)) is offered


def frozen(make=snn.Leaky, **options):
    neuron = make(beta=0.9, learn_beta=True, **options)
    neuron.beta.requires_grad_(False)
    return neuron


@pytest.mark.parametrize(
    ("net", "data", "words"),
    [
        (Series(frozen), sequences(), "hidden layer 'fc1': its beta is frozen"),
        (Series(partial(snn.Lapicque, beta=0.9)), sequences(), "hidden layer 'fc1': a Lapicque has no leak"),
        (norse_net(), batches(300), r"'0': a LIF keeps its time constants where state_dict"),
    ],
    ids=["frozen", "Lapicque", "Norse"],
)
def test_a_net_without_such_a_layer_is_refused_by_the_layers_name(net, data, words):
    before = snapshot(net)
    with pytest.raises(UnsupportedModuleError, match=words):
        start(net, data, **({"forward": over_time(8)} if "LIF" in words else {}))
    assert_as_before(net, before)


def test_other_layers_of_the_net_keep_their_leak_and_the_report_says_why():
    net = Deep(neuron=snn.Lapicque(beta=0.9))
    report = start(net, batches(300))
    assert net.lif1.beta.shape == (HIDDEN,)
    assert net.lif0.beta.dim() == 0
    assert "a Lapicque has no leak" in report.layers[1].witnesses.note
    assert accuracy(net) > 0.8


def test_a_recurrent_layer_says_why_its_leaks_are_alike():
    net = Deep(neuron=frozen(snn.RLeaky, linear_features=HIDDEN))
    witnesses = start(net, batches(300)).layers[1].witnesses
    assert (witnesses.note, witnesses.leaks) == ("its beta is frozen", {})


def test_a_leak_that_two_layers_share_stays():
    leaks = torch.full((HIDDEN,), 0.9)
    net = Deep(neuron=snn.Leaky(beta=leaks))
    net.lif1 = snn.Leaky(beta=leaks)
    before = bits(leaks)
    report = start(net, batches(300), heterogeneous=None)
    assert all(layer.witnesses and not layer.witnesses.leaks for layer in report.layers)
    assert bits(leaks) == before
