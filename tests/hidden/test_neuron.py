"""Neurons of hidden layers: currents they need, membranes below the threshold, and values that go along with a unit."""

import contextlib

import norse.torch as norse
import pytest
import snntorch as snn
import torch

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.hidden.neuron import (
    average_units,
    measure_excitability,
    merge_units,
    place_unit_values,
    read_unit_values,
    record_spikes,
    split_in_blocks,
)
from snn_recon_plugin.hidden.site import Candidates
from snn_recon_plugin.networks.libraries import library_of

from ..helpers import HIDDEN, accuracy, batches, bits, loop_net, values

pytestmark = pytest.mark.usefixtures("one_rate")

STEPS, SAMPLES, WIDTH = 25, 40, 5
INPUTS = torch.rand(STEPS, SAMPLES, WIDTH, generator=torch.Generator().manual_seed(0))
NEURONS = {
    "Leaky": lambda: snn.Leaky(beta=0.9),
    "high threshold": lambda: snn.Leaky(beta=0.5, threshold=3.0),
    "Synaptic": lambda: snn.Synaptic(alpha=0.7, beta=0.8),
    "Alpha": lambda: snn.Alpha(alpha=0.9, beta=0.8),
    "LIFCell": norse.LIFCell,
    "LIF": norse.LIF,
}


def measured(name):
    neuron = NEURONS[name]()
    return neuron, measure_excitability(neuron, STEPS, torch.zeros(1))


def run(neuron, currents):
    return library_of(neuron).run(neuron, currents)


def count(neuron, current):
    return float(run(neuron, torch.full((STEPS, 1, 1), current)).spikes.sum())


@pytest.mark.parametrize("name", NEURONS)
def test_the_rheobase_and_the_current_of_half_the_rate_are_the_neurons(name):
    neuron, found = measured(name)
    most = count(neuron, 1e4)
    assert count(neuron, found.rheobase) >= 1
    assert count(neuron, 0.9 * found.rheobase) == 0
    assert count(neuron, found.half_rate) >= most / 2
    assert count(neuron, 0.9 * found.half_rate) < most / 2
    assert 0 < found.rheobase < found.half_rate


def test_a_relay_spikes_about_as_often_as_what_feeds_it():
    for neuron in (snn.Leaky(beta=0.9), norse.LIFCell()):
        found = measure_excitability(neuron, 50, torch.zeros(1))
        train = (torch.rand(50, 100, 1, generator=torch.Generator().manual_seed(5)) < 0.15).float()
        passed = run(neuron, found.relay_weight * train).spikes
        assert float(passed.mean()) == pytest.approx(float(train.mean()), rel=0.25)


@pytest.mark.parametrize(
    ("neuron", "words"),
    [(norse.LICell(), "no positive threshold"), (snn.Leaky(beta=torch.full((7,), 0.9)), "different parameters for each unit")],
)
def test_neurons_that_no_current_can_be_chosen_for_are_refused(neuron, words):
    with pytest.raises(UnsupportedModuleError, match=words):
        measure_excitability(neuron, STEPS, torch.zeros(1))


def test_a_unit_of_a_recurrent_neuron_is_measured_as_one_without_recurrence():
    _, expected = measured("Leaky")
    found = measure_excitability(snn.RLeaky(beta=0.9, linear_features=3), STEPS, torch.zeros(1))
    for name in ("rheobase", "half_rate", "relay_weight"):
        assert getattr(found, name) == getattr(expected, name)
    assert torch.equal(found.kernel, expected.kernel)


# -- the membrane below the threshold ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NEURONS)
def test_a_trace_is_what_the_membrane_holds_of_the_inputs(name):
    neuron, found = measured(name)
    weight = torch.linspace(-1, 1, WIDTH)
    currents = (INPUTS @ weight)[..., None]
    membranes = run(neuron, 1e-3 * currents).membranes / 1e-3  # no spike
    samples, steps = torch.tensor([0, 3, 7]), torch.tensor([0, 5, STEPS - 1])
    torch.testing.assert_close(found.trace(INPUTS, samples, steps) @ weight, membranes[steps, samples, 0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.respond(currents), membranes, rtol=1e-3, atol=1e-3)
    if name != "Alpha":  # whose membrane overshoots before it settles
        assert found.threshold == pytest.approx(found.rheobase * float(found.kernel.sum()))
        assert found.threshold == pytest.approx(3.0 if name == "high threshold" else 1.0, rel=0.06)  # within the grid of currents


@pytest.mark.parametrize("name", NEURONS)
def test_an_average_of_a_constant_input_is_that_input_once_the_membrane_has_changed(name):
    still, response = INPUTS[:1].expand(STEPS, -1, -1), measured(name)[1]
    assert response.latency == (1 if name == "Alpha" else 0)
    found = response.average(still, torch.arange(STEPS), torch.arange(STEPS))
    torch.testing.assert_close(found[response.latency :], still[0, response.latency : STEPS])
    assert (found[: response.latency] == 0).all()


def test_many_samples_are_gathered_in_parts(monkeypatch):
    response, samples = measured("Leaky")[1], torch.arange(SAMPLES)
    whole = response.trace(INPUTS, samples, samples % STEPS)
    monkeypatch.setattr("snn_recon_plugin.hidden.neuron._GATHERED_BYTES", 4 * STEPS * WIDTH * 7)
    torch.testing.assert_close(response.trace(INPUTS, samples, samples % STEPS), whole)
    assert response.trace(INPUTS, samples[:0], samples[:0]).shape == (0, WIDTH)


# -- simulation of a recurrent neuron ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("size", "dtype"), [(1.0, torch.uint8), (torch.tensor([0.5, 1.0, 3.0]), torch.float32)])
def test_recorded_spikes_are_bytes_unless_they_are_graded(size, dtype):
    neuron, currents = snn.RLeaky(beta=0.9, linear_features=3, spike_grad=lambda over: size * (over > 0)), INPUTS[:, :, :3]
    spikes = record_spikes(neuron, currents, torch.zeros(3))
    assert spikes.dtype == dtype
    expected = library_of(neuron).run(neuron, currents, torch.zeros(3)).spikes
    assert float(expected.mean()) > 0
    assert torch.equal(spikes.float(), expected)


@pytest.mark.parametrize(
    ("samples", "steps", "widest", "most"),
    [(10, 8, 2**15, 2**16), (3, 8, 2**20, 2**16), (9000, 8, 10, 2**16), (100, 2**9, 2**10, 2**12)],  # long trains at last
)
def test_blocks_cover_the_samples_and_are_of_limited_size(samples, steps, widest, most):
    blocks = split_in_blocks(samples, steps, widest)
    sizes = [block.stop - block.start for block in blocks]
    assert [number for block in blocks for number in range(block.start, block.stop)] == list(range(samples))
    assert all(size == 1 or size * widest <= most for size in sizes)
    assert len(blocks) == 1 or (sizes[0] + 1) * widest > most  # no smaller than needed


# -- values of single units ----------------------------------------------------------------------------------------------------
def mixed_neuron(shape=(HIDDEN,), learned=True):
    """Leaks from 0.3 to 0.99 and two thresholds."""
    leaks = torch.linspace(0.3, 0.99, shape[0]).reshape(shape)
    limits = torch.where(torch.arange(shape[0]) % 2 == 0, 0.5, 2.0).reshape(shape)
    return snn.Leaky(beta=leaks, threshold=limits, learn_beta=learned, learn_threshold=learned)


def pairs_of(neuron):
    return list(zip(neuron.beta.flatten().tolist(), neuron.threshold.flatten().tolist(), strict=True))


def start(net, count=300, **options):
    return convex_init_(net, batches(count), **{"hidden": "reconstruct", "heterogeneous": False, "strength": 1e-3, **options})


def test_the_values_of_units_are_found_and_no_others():
    neuron, spiking = mixed_neuron(), snn.Leaky(beta=0.9, init_hidden=True)
    spiking(torch.zeros(5))
    found = read_unit_values(neuron, HIDDEN)
    assert {name: bits(value) for name, value in found.items()} == {
        name: bits(getattr(neuron, name)) for name in ("beta", "threshold")
    }
    assert list(read_unit_values(snn.Leaky(beta=torch.full((5,), 0.9)), 5)) == ["beta"]  # not learned, and a buffer
    assert read_unit_values(mixed_neuron((4, 1, 1)), 4)["beta"].shape == (4,)
    for other, width in ((neuron, HIDDEN + 1), (snn.Leaky(beta=0.9, learn_beta=True), 1), (spiking, 5)):  # a membrane at last
        assert read_unit_values(other, width) == {}


@pytest.mark.parametrize("learned", [True, False])
def test_units_are_alike_for_a_while_and_then_what_they_were(learned):
    neuron = mixed_neuron(learned=learned)
    before = {name: (id(value), bits(value)) for name, value in neuron.state_dict(keep_vars=True).items()}
    mean = float(neuron.beta.detach().mean())
    with contextlib.suppress(ZeroDivisionError), average_units(neuron, HIDDEN):
        assert float(neuron.beta) == pytest.approx(mean)
        assert float(neuron.threshold) == pytest.approx(1.25)
        assert run(neuron, torch.ones(3, 1, 7)).spikes.shape == (3, 1, 7)
        raise ZeroDivisionError
    after = {name: (id(value), bits(value)) for name, value in neuron.state_dict(keep_vars=True).items()}
    assert (after, list(after)) == (before, list(before))


def test_values_that_are_equal_for_all_units_are_one_for_a_while():
    neuron = snn.Leaky(beta=torch.full((3,), 0.5), threshold=torch.tensor([1.0, 1.0, 2.0]), learn_beta=True)
    beta, threshold = neuron.beta, neuron.threshold
    with contextlib.suppress(KeyboardInterrupt), merge_units(neuron, 3):
        assert neuron.beta.dim() == 0
        assert neuron.threshold is threshold  # its units differ
        raise KeyboardInterrupt
    assert (neuron.beta is beta, neuron.threshold is threshold) == (True, True)


def test_some_units_take_other_values_in_the_shape_of_the_neuron():
    for neuron in (mixed_neuron((4,)), mixed_neuron((4, 1, 1)), snn.Leaky(beta=0.9)):
        before = neuron.beta.detach().flatten().expand(4).tolist()
        ((place, placed),) = place_unit_values(neuron, {"beta": torch.tensor([0.25, 0.75])}, torch.tensor([2, 0]), 4).items()
        assert place == (neuron, "beta")
        assert placed.flatten().tolist() == pytest.approx([0.75, before[1], 0.25, before[3]])
        assert placed.shape == (neuron.beta.shape or (4,))


@pytest.mark.parametrize("learned", [True, False])
def test_a_rebuilt_layer_has_pairs_of_leak_and_threshold_that_were_there(learned):
    net = loop_net()
    net.lif1 = mixed_neuron((HIDDEN,), learned)
    before, objects, names = pairs_of(net.lif1), (net.lif1.beta, net.lif1.threshold), list(dict(net.named_buffers()))
    report = start(net, n_candidates=12.0)
    after = pairs_of(net.lif1)
    assert report.layers[0].witnesses is not None
    assert set(after) <= set(before)
    assert after != before
    assert accuracy(net) > 0.8
    assert (net.lif1.beta.shape, net.lif1.beta.requires_grad) == ((HIDDEN,), learned)
    assert (net.lif1.beta is objects[0], net.lif1.threshold is objects[1]) == (True, True)
    assert list(dict(net.named_buffers())) == names
    report.undo()
    assert pairs_of(net.lif1) == before


def test_every_row_comes_with_the_unit_that_it_was_simulated_with():
    """The sampler marks each candidate by its own bias; which unit that was simulated with is known by its place."""

    def marked(site, count, generator):
        return Candidates(torch.randn(count, 64, generator=generator) * 0.1, 0.5 + 0.001 * torch.arange(count))

    net = loop_net(hidden_neuron=mixed_neuron())
    before = pairs_of(net.lif1)
    start(net, witnesses=marked, n_candidates=100)
    places = ((net.fc1.bias.detach() - 0.5) / 0.001).round().long().tolist()
    assert [before[place % HIDDEN] for place in places] == pairs_of(net.lif1)


def test_leaks_that_two_layers_share_are_not_written():
    leaks = torch.linspace(0.3, 0.99, HIDDEN)
    net = loop_net(hidden_neuron=snn.Leaky(beta=leaks))
    net.other = snn.Leaky(beta=leaks)
    before = values(net)
    with pytest.raises(UnsupportedModuleError, match=r"'lif1\.beta' is tied to other\.beta"):
        start(net)
    assert values(net) == before


@pytest.mark.parametrize("hidden", ["auto", "reconstruct"])
def test_values_that_have_an_axis_for_samples_leave_the_layer_its_weights(hidden):
    net = loop_net()
    net.lif1 = snn.Leaky(beta=torch.linspace(0.3, 0.9, HIDDEN).reshape(1, HIDDEN))
    (layer,) = start(net, 200, hidden=hidden, heterogeneous=None).layers
    assert layer.witnesses is None
    assert "give each unit one value" in layer.reason


@pytest.mark.parametrize("learned", [False, True])
def test_units_with_the_same_value_each_are_averaged_units(learned):
    one, each = (
        loop_net(hidden_neuron=snn.Leaky(beta=beta, threshold=threshold, learn_beta=learned))
        for beta, threshold in ((0.9, 1.0), (torch.full((HIDDEN,), 0.9), torch.ones(HIDDEN)))
    )
    held = each.lif1.beta, each.lif1.threshold
    reports = [start(some, heterogeneous=None) for some in (one, each)]
    assert reports[1].layers[0].witnesses == reports[0].layers[0].witnesses
    assert all(torch.equal(getattr(each, name).weight, getattr(one, name).weight) for name in ("fc1", "fc2"))
    assert (each.lif1.beta is held[0], each.lif1.threshold is held[1]) == (True, True)
