"""Neurons of hidden layers: the currents that they need, and leaks or thresholds that candidates take along with a unit."""

import contextlib

import norse.torch as norse
import pytest
import snntorch as snn
import torch

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.hidden import Candidates
from snn_recon_plugin.hidden.neuron import (
    average_units,
    measure_excitability,
    merge_units,
    place_unit_values,
    read_unit_values,
)
from snn_recon_plugin.networks import library_of

from ..helpers import HIDDEN, Conv, accuracy, assert_as_before, batches, bits, conv_net, loop_net, snapshot, values

pytestmark = pytest.mark.usefixtures("one_rate")

STEPS = 10


def counts(neuron, current, steps=STEPS):
    """Spikes within some steps at a constant current."""
    return float(library_of(neuron).run(neuron, torch.full((steps, 1, 1), current)).spikes.sum())


@pytest.mark.parametrize(
    "make",
    [lambda: snn.Leaky(beta=0.9), lambda: snn.Leaky(beta=0.5, threshold=3.0), norse.LIFCell, norse.LIF],
    ids=["Leaky", "high threshold", "LIFCell", "LIF"],
)
def test_the_rheobase_and_the_current_of_half_the_rate_are_the_neurons(make):
    neuron = make()
    found = measure_excitability(neuron, 25, torch.zeros(1))
    most = counts(neuron, 1e4, 25)
    assert counts(neuron, found.rheobase, 25) >= 1
    assert counts(neuron, 0.9 * found.rheobase, 25) == 0
    assert counts(neuron, found.half_rate, 25) >= most / 2
    assert counts(neuron, 0.9 * found.half_rate, 25) < most / 2
    assert 0 < found.rheobase < found.half_rate


def test_a_relay_spikes_about_as_often_as_what_feeds_it():
    for neuron in (snn.Leaky(beta=0.9), norse.LIFCell()):
        found = measure_excitability(neuron, 50, torch.zeros(1))
        train = (torch.rand(50, 100, 1, generator=torch.Generator().manual_seed(5)) < 0.15).float()
        passed = library_of(neuron).run(neuron, found.relay_weight * train).spikes
        assert float(passed.mean()) == pytest.approx(float(train.mean()), rel=0.25)


@pytest.mark.parametrize(
    "make",
    [norse.LICell, lambda: snn.Leaky(beta=torch.full((7,), 0.9))],
    ids=["never spikes", "own parameters"],
)
def test_neurons_that_no_current_can_be_chosen_for_are_refused(make):
    with pytest.raises(UnsupportedModuleError):
        measure_excitability(make(), STEPS, torch.zeros(1))


def test_a_unit_of_a_recurrent_neuron_is_measured_as_one_without_recurrence():
    alone, recurrent = snn.Leaky(beta=0.9), snn.RLeaky(beta=0.9, linear_features=3)
    found, expected = (measure_excitability(neuron, STEPS, torch.zeros(1)) for neuron in (recurrent, alone))
    for name in ("rheobase", "half_rate", "relay_weight"):
        assert getattr(found, name) == getattr(expected, name)
    assert torch.equal(found.response.kernel, expected.response.kernel)


@pytest.mark.parametrize("make", [lambda: snn.Leaky(beta=0.9), lambda: snn.Synaptic(alpha=0.7, beta=0.8), norse.LIFCell, norse.LIF])
def test_the_response_is_the_membrane_after_a_pulse_and_reaches_the_threshold_at_the_rheobase(make):
    neuron = make()
    found = measure_excitability(neuron, 25, torch.zeros(1))
    pulse = torch.zeros(25, 1, 1)
    pulse[0] = 0.02 * found.rheobase
    membranes = library_of(neuron).run(neuron, pulse).membranes[:, 0, 0]
    torch.testing.assert_close(found.response.kernel, membranes / pulse[0, 0, 0], rtol=1e-3, atol=1e-4)
    assert found.response.threshold == pytest.approx(found.rheobase * float(found.response.kernel.sum()))
    assert found.response.threshold == pytest.approx(1.0, rel=0.06)  # that of the neuron, within the grid of currents


def mixed_neuron(shape=(HIDDEN,), learned=True):
    """Leaks from 0.3 to 0.99 and two thresholds."""
    leaks = torch.linspace(0.3, 0.99, shape[0]).reshape(shape)
    limits = torch.where(torch.arange(shape[0]) % 2 == 0, 0.5, 2.0).reshape(shape)
    return snn.Leaky(beta=leaks, threshold=limits, learn_beta=learned, learn_threshold=learned)


def mixed_net(learned=True):
    return loop_net(hidden_neuron=mixed_neuron(learned=learned))


def pairs_of(net):
    """The (leak, threshold) of every hidden unit."""
    return list(zip(net.lif1.beta.tolist(), net.lif1.threshold.tolist(), strict=True))


def test_the_values_of_units_are_found_and_no_others():
    neuron = mixed_neuron()
    found = read_unit_values(neuron, HIDDEN)
    assert {name: value.tolist() for name, value in found.items()} == {
        "beta": neuron.beta.tolist(),
        "threshold": neuron.threshold.tolist(),
    }
    assert read_unit_values(neuron, HIDDEN + 1) == {}
    assert read_unit_values(snn.Leaky(beta=0.9, learn_beta=True), 1) == {}
    assert list(read_unit_values(snn.Leaky(beta=torch.full((5,), 0.9)), 5)) == ["beta"]  # not learned, and a buffer
    spiking = snn.Leaky(beta=0.9, init_hidden=True)
    spiking(torch.zeros(5))
    assert read_unit_values(spiking, 5) == {}  # a membrane is no parameter
    assert {name: value.shape for name, value in read_unit_values(mixed_neuron((4, 1, 1)), 4).items()} == {
        "threshold": (4,),
        "beta": (4,),
    }


@pytest.mark.parametrize("learned", [True, False])
def test_units_are_alike_for_a_while_and_then_what_they_were(learned):
    neuron = mixed_neuron(learned=learned)
    before = {name: (id(value), bits(value)) for name, value in neuron.state_dict(keep_vars=True).items()}
    mean = float(neuron.beta.detach().mean())
    for error in (None, ZeroDivisionError()):
        with contextlib.suppress(ZeroDivisionError), average_units(neuron, HIDDEN):
            assert float(neuron.beta) == pytest.approx(mean)
            assert float(neuron.threshold) == pytest.approx(1.25)
            assert library_of(neuron).run(neuron, torch.ones(3, 1, 7)).spikes.shape == (3, 1, 7)
            if error:
                raise error
    after = {name: (id(value), bits(value)) for name, value in neuron.state_dict(keep_vars=True).items()}
    assert after == before
    assert list(after) == list(before)


def test_some_units_take_other_values_in_the_shape_of_the_neuron():
    for shape, axes in (((4,), 0), ((4, 1, 1), 2)):
        neuron = mixed_neuron(shape)
        before = neuron.beta.flatten().tolist()
        placed = place_unit_values(neuron, {"beta": torch.tensor([0.25, 0.75])}, torch.tensor([2, 0]), 4, axes)
        assert placed[neuron, "beta"].flatten().tolist() == [0.75, before[1], 0.25, before[3]]
        assert {key: value.shape for key, value in placed.items()} == {(neuron, "beta"): shape}


def test_a_shared_value_becomes_one_for_each_unit():
    neuron = snn.Leaky(beta=0.9)
    placed = place_unit_values(neuron, {"beta": torch.tensor([0.25])}, torch.tensor([1]), 3, 2)[neuron, "beta"]
    assert placed.flatten().tolist() == pytest.approx([0.9, 0.25, 0.9])
    assert placed.shape == (3, 1, 1)


@pytest.mark.parametrize("learned", [True, False])
def test_a_rebuilt_layer_has_pairs_of_leak_and_threshold_that_were_there(learned):
    net = mixed_net(learned)
    before, objects = pairs_of(net), (net.lif1.beta, net.lif1.threshold)
    report = convex_init_(net, batches(), hidden="reconstruct", heterogeneous=False)
    after = pairs_of(net)
    assert set(after) <= set(before)
    assert after != before
    assert len(set(after)) > 5
    assert accuracy(net) > 0.9
    assert net.lif1.beta.requires_grad == learned
    assert (net.lif1.beta is objects[0], net.lif1.threshold is objects[1]) == (True, True)
    assert ("lif1.beta" in dict(net.named_buffers())) != learned
    report.undo()
    assert pairs_of(net) == before


def test_leaks_that_are_not_learned_come_back_after_an_error(monkeypatch):
    net = mixed_net(learned=False)
    before = snapshot(net)
    monkeypatch.setattr("snn_recon_plugin.stages.initialize.make_report", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convex_init_(net, batches(200), hidden="reconstruct", heterogeneous=False)
    assert_as_before(net, before)


def test_leaks_that_two_layers_share_are_not_written():
    leaks = torch.linspace(0.3, 0.99, HIDDEN)
    net = loop_net(hidden_neuron=snn.Leaky(beta=leaks))
    net.other = snn.Leaky(beta=leaks)
    before = values(net)
    with pytest.raises(UnsupportedModuleError, match=r"'lif1\.beta' is tied to other\.beta"):
        convex_init_(net, batches(200), hidden="reconstruct", heterogeneous=False)
    assert values(net) == before


@pytest.mark.parametrize("learned", [True, False])
def test_every_row_comes_with_the_unit_that_it_was_simulated_with(learned):
    """The sampler marks each candidate by its own bias; which unit that was simulated with is known by its place."""

    def marked(site, count, generator):
        weight = torch.randn(count, 64, generator=generator) * 0.1
        return Candidates(weight, 0.5 + 0.001 * torch.arange(count))

    net = mixed_net(learned)
    before = pairs_of(net)
    convex_init_(net, batches(300), hidden="reconstruct", heterogeneous=False, witnesses=marked, n_candidates=100)
    places = ((net.fc1.bias.detach() - 0.5) / 0.001).round().long().tolist()
    assert [before[place % HIDDEN] for place in places] == pairs_of(net)


def test_a_convolution_takes_them_along_too():
    torch.manual_seed(0)
    net = Conv()
    channels = net.conv.out_channels
    net.lif1 = mixed_neuron((channels, 1, 1))
    before = {tuple(part) for part in zip(net.lif1.beta.flatten().tolist(), net.lif1.threshold.flatten().tolist(), strict=True)}
    data = [(x.reshape(-1, 1, 8, 8) if x.dim() == 2 else x, y) for x, y in batches(300)]
    report = convex_init_(net, data, hidden="reconstruct", heterogeneous=False)
    after = set(zip(net.lif1.beta.flatten().tolist(), net.lif1.threshold.flatten().tolist(), strict=True))
    assert after <= before
    assert net.lif1.beta.shape == (channels, 1, 1)
    assert report.layers[0].witnesses is not None


@pytest.mark.parametrize("hidden", ["auto", "reconstruct"])
def test_values_that_have_an_axis_for_samples_leave_the_layer_its_weights(hidden):
    net = conv_net()
    net.lif1 = snn.Leaky(beta=torch.linspace(0.3, 0.9, 4).reshape(1, 4, 1, 1))
    report = convex_init_(net, batches(200), hidden=hidden)
    assert report.layers[0].witnesses is None
    assert "give each unit one value" in report.layers[0].reason


@pytest.mark.parametrize("learnt", [False, True])
def test_units_with_the_same_value_each_are_averaged_units(learnt):
    def net(beta, threshold):
        torch.manual_seed(3)
        return loop_net(hidden_neuron=snn.Leaky(beta=beta, threshold=threshold, learn_beta=learnt))

    one, each = net(0.9, 1.0), net(torch.full((HIDDEN,), 0.9), torch.ones(HIDDEN))
    held = dict(each.lif1.named_buffers()) | dict(each.lif1.named_parameters())
    reports = [convex_init_(some, batches(300), hidden="reconstruct") for some in (one, each)]
    assert reports[1].layers[0].witnesses == reports[0].layers[0].witnesses
    for name in ("fc1", "fc2"):
        assert torch.equal(getattr(each, name).weight, getattr(one, name).weight)
    now = dict(each.lif1.named_buffers()) | dict(each.lif1.named_parameters())
    assert all(now[name] is held[name] for name in ("beta", "threshold"))


def test_one_for_all_gives_back_what_it_took():
    neuron = snn.Leaky(beta=torch.full((3,), 0.5), threshold=torch.tensor([1.0, 1.0, 2.0]), learn_beta=True)
    beta, threshold = neuron.beta, neuron.threshold
    with contextlib.suppress(KeyboardInterrupt), merge_units(neuron, 3):
        assert neuron.beta.dim() == 0
        assert neuron.threshold is threshold  # its units differ
        raise KeyboardInterrupt
    assert neuron.beta is beta
    assert neuron.threshold is threshold
