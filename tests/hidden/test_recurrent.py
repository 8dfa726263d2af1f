"""Recurrent layers: what samplers see of them, and the whole way through an initialisation."""

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn.utils import parametrizations

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import SilentLayerError, UnsupportedModuleError
from snn_recon_plugin.hidden.hidden_task import TemporaryReadout
from snn_recon_plugin.hidden.recurrent import list_draws
from snn_recon_plugin.hidden.samplers import pairs, traces
from snn_recon_plugin.hidden.site import Candidates

from ..helpers import HIDDEN, STEPS, accuracy, batches, test_data, values
from ..nets import NorseRows, Rows, Still
from .tasks import negative, recurrent_layer, see


@pytest.mark.parametrize("size", [50, 64])
@pytest.mark.parametrize("make", [Rows, NorseRows])
def test_inputs_over_time_are_what_entered_the_layer(make, size):
    seen = see(make(), size=size)[1].site
    expected = test_data()[0][0:100:2].reshape(-1, STEPS, 8).movedim(1, 0)
    torch.testing.assert_close(seen.over_time, expected)
    torch.testing.assert_close(seen.inputs, expected.mean(0))
    assert seen.has_bias == (make is Rows)
    assert seen.row_shape == (8,)


class CurrentOnce(Rows):
    """Computes the current of the first row once, outside the time loop."""

    def forward(self, x):
        state, current = self.lif1.reset_mem(), self.fc1(x[:, :8])
        for _ in range(STEPS):
            state = self.lif1(current, *state)
        return self.lif2(self.fc2(state[0]))[1]


@pytest.mark.parametrize("size", [50, 64])
def test_inputs_that_do_not_change_are_stored_once_and_an_image_at_every_step_still_has_traces(size):
    """What a reservoir adds changes all the same; a current computed once can't."""
    still = Still(lambda: snn.RLeaky(beta=0.8, linear_features=HIDDEN), 8, HIDDEN, 10)
    for net, steps in ((still, STEPS), (CurrentOnce(), 1)):
        seen = see(net, size=size)[1]
        assert seen.inputs.shape == (1, 50, 8)
        assert seen.site.changes == (net is still)
        torch.testing.assert_close(seen.site.over_time, seen.inputs.expand(steps, -1, -1))


def test_a_step_has_the_label_of_the_next_step_that_is_fitted():
    labels = torch.arange(100 * STEPS).reshape(100, STEPS)
    steps = torch.tensor([3, STEPS - 1])
    seen = see(Rows(), temporary=TemporaryReadout(torch.ones(2, STEPS), torch.ones(2), steps), labels=labels)[1]
    assert torch.equal(seen.labels, labels[0:100:2][:, [3] * 4 + [STEPS - 1] * (STEPS - 4)].T)


class Halves(Rows):
    """Calls its layer once too often."""

    def forward(self, x):
        self.fc1(x[:, :8])
        return super().forward(x)


def factor():
    net = Rows()
    net.lif1.register_forward_pre_hook(lambda _, args: (3 * args[0], *args[1:]))
    return net


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Halves, "recurrent, and its currents are the outputs of its synapse in no known order of time and samples"),
        (factor, "recurrent, with a function between its synapse and its neuron"),
    ],
)
def test_currents_that_the_synapse_does_not_return_give_no_site_and_the_report_says_why(make, words):
    with pytest.raises(UnsupportedModuleError, match=words):
        see(make())
    (layer,) = convex_init_(make(), batches(200), hidden="reconstruct", strength=1e-3).layers
    assert layer.witnesses is None
    assert layer.reason.startswith(words)


def frozen(make, name):
    net = make()
    getattr(net.lif1.recurrent if make is Rows else net.layers[0], name).requires_grad_(False)
    return net


def spectral():
    net = Rows()
    parametrizations.spectral_norm(net.lif1.recurrent)
    return net


FROZEN = "frozen: requires_grad=False of its recurrence's "
FIXED = {
    "weight": (lambda: frozen(Rows, "weight"), FROZEN + "weight"),
    "Norse": (lambda: frozen(NorseRows, "recurrent_weights"), FROZEN + "recurrent_weights"),
    "bias": (lambda: frozen(Rows, "bias"), FROZEN + "bias"),
    "not learned": (lambda: Rows(learn_recurrent=False), FROZEN + "weight"),
    "spectral_norm": (spectral, "its recurrence's weight is computed by the parametrization"),
}


@pytest.mark.usefixtures("two_rates")
@pytest.mark.parametrize(("name", "hidden"), [*((name, "reconstruct") for name in FIXED), ("weight", "auto"), ("Norse", "auto")])
def test_fixed_recurrence_leaves_a_layer_its_weights_up_to_a_gain(name, hidden):
    make, words = FIXED[name]
    net = make()
    weight = net.layers[0].input_weights if name == "Norse" else net.fc1.weight
    weight.data.mul_(0.05)  # any other weights would do better
    own, kept = weight.detach().clone(), {key: value for key, value in values(net).items() if "recurrent" in key}
    (layer,) = convex_init_(net, batches(100), hidden=hidden, strength=1e-3).layers
    assert words in layer.reason
    assert layer.witnesses is None
    torch.testing.assert_close(weight.detach(), layer.gain * own)
    assert {key: value for key, value in values(net).items() if "recurrent" in key} == kept


def alike(weight):
    """Give a layer rows that are all alike, which tell next to nothing apart at any gain."""
    weight.data.copy_(weight[:1].abs().expand_as(weight))


@pytest.mark.parametrize(
    ("make", "spoil"),
    [
        pytest.param(Rows, lambda net: alike(net.fc1.weight), id="rows alike"),
        pytest.param(Rows, lambda net: negative(net.fc1), id="no gain wakes it"),
        pytest.param(NorseRows, lambda net: alike(net.layers[0].input_weights), id="Norse", marks=pytest.mark.slow),
    ],
)
def test_a_recurrent_layer_that_no_gain_helps_is_replaced(make, spoil):
    net = make()
    spoil(net)
    before = values(net)
    report = convex_init_(net, batches(600), hidden="reconstruct")
    assert report.layers[0].witnesses is not None
    assert report.layers[0].stats.silent < 0.5
    assert accuracy(net) > 0.6
    report.undo()
    assert values(net) == before


def test_a_recurrent_layer_that_nothing_wakes_is_an_error():
    def never(made, count, generator):
        return Candidates(-torch.rand(count, 8, generator=generator), torch.full((count,), -1.0))

    net = Rows(reset_mechanism="zero")  # which can not keep time for as many steps
    negative(net.fc1)
    before = values(net)
    with pytest.raises(SilentLayerError, match="nor with built ones"):
        convex_init_(net, batches(200), hidden="reconstruct", witnesses=never)
    assert values(net) == before


@pytest.mark.parametrize("bias", [True, False])
def test_a_tonic_current_is_written_once(bias):
    net = Rows()
    net.fc1 = net.fc1 if bias else nn.Linear(8, HIDDEN, bias=False)
    recurrent, tonic = recurrent_layer(net), torch.rand(HIDDEN)
    written = recurrent.make_values(*recurrent.take(HIDDEN)[:2], tonic)
    assert torch.equal(sum(value for (_, name), value in written.items() if name == "bias"), tonic)


# -- draws ---------------------------------------------------------------------------------------------------------------
def draws_of(net, count, sampler=traces):
    """The values and rates of some draws."""
    generator = torch.Generator().manual_seed(0)
    return list(list_draws(recurrent_layer(net), see(net)[1].site, sampler, count=count, generator=generator))


def test_draws_differ_in_rows_rates_and_recurrent_weights_and_one_keeps_the_own():
    net = Rows()
    tried, rates = zip(*draws_of(net, 4), strict=True)
    rows, recurrent = (net.fc1, "weight"), (net.lif1.recurrent, "weight")
    assert set(tried[0]) == {rows, (net.fc1, "bias"), recurrent}
    assert not torch.equal(tried[0][rows], tried[1][rows])
    assert len(set(rates)) == 3
    assert [recurrent in values for values in tried] == [True, False, True, True]
    for number, size in ((0, 0.3), (2, 1.0)):
        assert float(tried[number][recurrent].std()) == pytest.approx(size / HIDDEN**0.5, rel=0.1)


@pytest.mark.parametrize("autapses", [True, False])
def test_no_neuron_of_norse_feeds_itself_unless_it_may(autapses):
    net = NorseRows(autapses)
    ((values, _),) = draws_of(net, 1)
    assert bool((values[net.layers[0], "recurrent_weights"].diagonal() == 0).all()) is not autapses


def test_fewer_candidates_than_neurons_are_used_again():
    net = Rows()
    ((values, _),) = draws_of(net, 1, lambda made, count, generator: pairs(made, 2, generator))
    rows = values[net.fc1, "weight"]
    torch.testing.assert_close(rows[2:4], rows[:2])
