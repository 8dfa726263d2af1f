"""Recurrent layers: what samplers see of them, draws of a whole layer, and the whole way through an initialisation."""

import pytest
import snntorch as snn
import torch
from torch.nn.utils import parametrizations

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import SilentLayerError, UnsupportedModuleError
from snn_recon_plugin.hidden import Candidates
from snn_recon_plugin.hidden.hidden_task import TemporaryReadout
from snn_recon_plugin.hidden.recurrent import find_recurrent_layer, list_draws
from snn_recon_plugin.hidden.samplers import pairs, traces
from snn_recon_plugin.networks import HiddenLayer

from ..helpers import HIDDEN, accuracy, batches, bits, test_data
from .recurrent_nets import STEPS, NorseRows, Rows, layer_of, see


@pytest.mark.parametrize("size", [50, 64])
@pytest.mark.parametrize("make", [Rows, NorseRows])
def test_inputs_over_time_are_what_entered_the_layer(make, size):
    inputs, _ = test_data()
    seen = see(make(), size=size)[1].site
    expected = inputs[0:100:2].reshape(-1, STEPS, 8).movedim(1, 0)
    torch.testing.assert_close(seen.over_time, expected)
    torch.testing.assert_close(seen.inputs, expected.mean(0))
    assert seen.has_bias == (make is Rows)
    assert seen.row_shape == (8,)


def test_a_current_computed_once_is_the_same_at_all_steps():
    class Still(Rows):
        def forward(self, x):
            (spikes, mem1), mem2, membranes, current = self.lif1.init_rleaky(), self.lif2.reset_mem(), [], self.fc1(x[:, :8])
            for _ in range(STEPS):
                spikes, mem1 = self.lif1(current, spikes, mem1)
                _, mem2 = self.lif2(self.fc2(spikes), mem2)
                membranes.append(mem2)
            return torch.stack(membranes)

    for size in (50, 64):
        assert see(Still(), size=size)[1].site.over_time.shape == (1, 50, 8)


def test_a_step_has_the_label_of_the_next_step_that_is_fitted():
    labels = torch.arange(100 * STEPS).reshape(100, STEPS)
    steps = torch.tensor([3, STEPS - 1])
    seen = see(Rows(), temporary=TemporaryReadout(torch.ones(2, STEPS), torch.ones(2), steps), labels=labels)[1]
    expected = labels[0:100:2][:, [3] * 4 + [STEPS - 1] * (STEPS - 4)]
    assert torch.equal(seen.labels, expected.T)


def test_calls_in_no_known_order_give_no_site():
    class Halves(Rows):
        def forward(self, x):
            self.fc1(x[:, :8])
            return super().forward(x)

    assert see(Halves())[1] is None
    report = convex_init_(Halves(), batches(200), hidden="reconstruct")
    assert report.layers[0].reason == "recurrent: own weights"


def test_a_neuron_without_a_positive_threshold_gives_no_site():
    with pytest.raises(UnsupportedModuleError, match="no positive threshold"):
        see(Rows(threshold=-1.0))


def test_one_to_one_recurrence_is_no_recurrent_layer():
    net = Rows()
    assert find_recurrent_layer(HiddenLayer("fc1", net.fc1, "lif1", snn.RLeaky(beta=0.8, V=1.0, all_to_all=False))) is None


def frozen_weight(net):
    module = net.lif1.recurrent if isinstance(net, Rows) else net.layers[0]
    name = "weight" if isinstance(net, Rows) else "recurrent_weights"
    getattr(module, name).requires_grad_(False)
    return net


def frozen_bias():
    net = Rows()
    net.lif1.recurrent.bias.requires_grad_(False)
    return net


def spectral():
    net = Rows()
    parametrizations.spectral_norm(net.lif1.recurrent)
    return net


FIXED = {
    "weight": (lambda: frozen_weight(Rows()), "frozen: requires_grad=False of its recurrence's weight"),
    "Norse": (lambda: frozen_weight(NorseRows()), "frozen: requires_grad=False of its recurrence's recurrent_weights"),
    "bias": (frozen_bias, "frozen: requires_grad=False of its recurrence's bias"),
    "not learned": (lambda: Rows(learn_recurrent=False), "frozen: requires_grad=False of its recurrence's weight"),
    "spectral_norm": (spectral, "its recurrence's weight is computed by the parametrization"),
}


@pytest.mark.parametrize("hidden", ["auto", "reconstruct"])
@pytest.mark.parametrize("name", FIXED)
def test_fixed_recurrence_leaves_a_layer_its_weights_up_to_a_gain(name, hidden):
    make, words = FIXED[name]
    net = make()
    recurrence, inputs = (net.layers[0], "input_weights") if name == "Norse" else (net.lif1.recurrent, "weight")
    place = recurrence if name == "Norse" else net.fc1
    with torch.no_grad():
        getattr(place, inputs).mul_(0.05)  # any other weights would do better
    kept = {key: bits(value) for key, value in recurrence.named_parameters() if "recurrent" in key or name != "Norse"}
    own = getattr(place, inputs).detach().clone()
    report = convex_init_(net, batches(300), hidden=hidden)
    layer = report.layers[0]
    assert words in layer.reason
    assert (layer.witnesses, layer.draw) == (None, 0)
    torch.testing.assert_close(getattr(place, inputs).detach(), layer.gain * own)
    assert {key: bits(value) for key, value in recurrence.named_parameters() if key in kept} == kept


@pytest.mark.parametrize("make", [Rows, pytest.param(NorseRows, marks=pytest.mark.slow)])
def test_a_recurrent_layer_whose_rows_are_all_alike_is_replaced(make):
    """Its own weights can tell next to nothing apart at any gain."""
    net = make()
    weight = net.fc1.weight if make is Rows else net.layers[0].input_weights
    with torch.no_grad():
        weight.copy_(weight[:1].abs().expand_as(weight))
    held, before = accuracy(net), [bits(parameter) for parameter in net.parameters()]
    report = convex_init_(net, batches(600), hidden="reconstruct")
    layer = report.layers[0]
    assert layer.witnesses is not None or layer.draw > 0
    assert accuracy(net) > max(0.6, held + 0.2)
    kept = convex_init_(fresh := make(), batches(600), hidden="rescale")
    assert kept.layers[0].witnesses is None
    assert accuracy(net) > accuracy(fresh) - 0.1
    report.undo()
    assert [bits(parameter) for parameter in net.parameters()] == before


def test_the_same_seed_draws_the_same_bits():
    nets = [Rows() for _ in range(2)]
    for net in nets:
        with torch.no_grad():
            net.fc1.weight.copy_(net.fc1.weight[:1].abs().expand_as(net.fc1.weight))
        convex_init_(net, batches(300), hidden="reconstruct", seed=3)
    assert [bits(p) for p in nets[0].parameters()] == [bits(p) for p in nets[1].parameters()]


def test_a_recurrent_layer_that_no_gain_wakes_is_replaced():
    net = Rows()
    with torch.no_grad():
        net.fc1.weight.abs_().neg_()
        net.fc1.bias.abs_().neg_()
    report = convex_init_(net, batches(600), hidden="reconstruct")
    assert report.layers[0].witnesses is not None
    assert report.layers[0].stats.silent < 0.5
    assert accuracy(net) > 0.5


def test_a_recurrent_layer_that_nothing_wakes_is_an_error():
    def never(made, count, generator):
        weight = -torch.rand(count, 8, generator=generator)
        return Candidates(weight, torch.full((count,), -1.0))

    net = Rows(reset_mechanism="zero")  # which can not keep time for as many steps
    with torch.no_grad():
        net.fc1.weight.abs_().neg_()
        net.fc1.bias.abs_().neg_()
    before = [bits(parameter) for parameter in net.parameters()]
    with pytest.raises(SilentLayerError, match="nor in any of its draws"):
        convex_init_(net, batches(200), hidden="reconstruct", witnesses=never)
    assert [bits(parameter) for parameter in net.parameters()] == before


# -- draws ---------------------------------------------------------------------------------------------------------------


def draws_of(net, count, sampler=traces):
    """Return the values and rates of some draws."""
    recurrent, generator = find_recurrent_layer(layer_of(net)), torch.Generator().manual_seed(0)
    return list(list_draws(recurrent, see(net)[1].site, sampler, count, generator))


class Still(Rows):
    """Sees its first row at every step: what a reservoir adds changes all the same."""

    def forward(self, x):
        return super().forward(x.reshape(-1, STEPS, 8)[:, :1].expand(-1, STEPS, -1))


def test_an_image_at_every_step_is_stored_once_and_still_has_traces():
    seen = see(Still())[1]
    assert seen.inputs.shape == (1, 50, 8)
    assert seen.site.changes
    torch.testing.assert_close(seen.site.over_time, seen.inputs.expand(STEPS, -1, -1))


def test_a_draw_has_values_for_all_that_can_be_replaced():
    net = Rows()
    assert set(draws_of(net, 1)[0][0]) == {(net.fc1, "weight"), (net.fc1, "bias"), (net.lif1.recurrent, "weight")}


def test_draws_differ_in_rows_rates_and_recurrent_weights_and_one_keeps_the_own():
    net = Rows()
    tried = draws_of(net, 4)
    rows = [values[net_place] for values, _ in tried for net_place in values if values[net_place].shape == (HIDDEN, 8)]
    assert not torch.equal(rows[0], rows[1])
    assert len({rate for _, rate in tried}) == 3
    sizes = [[float(v.std()) for v in values.values() if v.shape == (HIDDEN, HIDDEN)] for values, _ in tried]
    assert [len(size) for size in sizes] == [1, 0, 1, 1]
    assert sizes[0][0] == pytest.approx(0.3 / HIDDEN**0.5, rel=0.1)
    assert sizes[2][0] == pytest.approx(1.0 / HIDDEN**0.5, rel=0.1)


def test_no_neuron_of_norse_feeds_itself_unless_it_may():
    for autapses in (False, True):
        tried = draws_of(NorseRows(autapses), 1)
        drawn = next(value for (_, name), value in tried[0][0].items() if name == "recurrent_weights")
        assert bool((drawn.diagonal() == 0).all()) is not autapses


def test_fewer_candidates_than_neurons_are_used_again():
    def two(made, count, generator):
        return pairs(made, 2, generator)

    net = Rows()
    tried = draws_of(net, 1, two)
    rows = next(value for value in tried[0][0].values() if value.shape == (HIDDEN, 8))
    torch.testing.assert_close(rows[2:4], rows[:2])
