"""Recurrent layers: their own weights, or the best of some draws of the whole layer."""

import math

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import SilentLayerError
from snn_recon_plugin.networks import HiddenLayer, StoredBatch, plain_forward
from snn_recon_plugin.witnesses import Candidates, HiddenTask, LayerGain
from snn_recon_plugin.witnesses.hidden_task import TemporaryReadout
from snn_recon_plugin.witnesses.recurrent import choose_draw, find_recurrent_layer, make_recurrent_site
from snn_recon_plugin.witnesses.samplers import pairs, traces

from ..helpers import HIDDEN, accuracy, batches, bits, test_data

pytestmark = pytest.mark.usefixtures("one_rate")

STEPS = 8


class Rows(nn.Module):
    """Reads an 8x8 image row by row: what a neuron remembers matters."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(8, HIDDEN), snn.RLeaky(beta=0.8, linear_features=HIDDEN, **options)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, 10), snn.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x):
        (spikes, mem1), mem2, membranes = self.lif1.init_rleaky(), self.lif2.reset_mem(), []
        for row in x.reshape(-1, STEPS, 8).movedim(1, 0):
            spikes, mem1 = self.lif1(self.fc1(row), spikes, mem1)
            _, mem2 = self.lif2(self.fc2(spikes), mem2)
            membranes.append(mem2)
        return torch.stack(membranes)


class NorseRows(nn.Module):
    """The same in Norse, whose recurrent layer holds its input weights itself; time first, or second."""

    def __init__(self, autapses=False):
        super().__init__()
        torch.manual_seed(0)
        self.layers = norse.SequentialState(norse.LIFRecurrent(8, HIDDEN, autapses=autapses), nn.Linear(HIDDEN, 10), norse.LI())

    def forward(self, x):
        return self.layers(x.reshape(-1, STEPS, 8).movedim(1, 0))[0]


def layer_of(net):
    if isinstance(net, Rows):
        return HiddenLayer("fc1", net.fc1, "lif1", net.lif1)
    return HiddenLayer("layers.0", net.layers[0], "layers.0", net.layers[0])


def site(net, count=100, size=50):
    """The last batch holds more samples than count."""
    inputs, labels = test_data()
    parts = [StoredBatch(inputs[i : i + size], slice(i, min(i + size, count))) for i in range(0, count, size)]
    temporary = TemporaryReadout(torch.ones(1, STEPS), torch.ones(1))
    task = HiddenTask(net, parts, labels[:count], None, None, plain_forward, temporary, None, samples=torch.arange(0, count, 2))
    return make_recurrent_site(task, find_recurrent_layer(layer_of(net)))


def own(loss):
    return LayerGain("fc1", 2.0, 0.0, 0.1, {1.0: loss + 1, 2.0: loss})


def draws_of(net, losses, own_loss, sampler=traces):
    """The decision with these losses, and what was tried."""
    tried = []

    def evaluate(values, rate):
        tried.append((values, rate))
        return 3.0, losses[len(tried) - 1]

    recurrent, generator = find_recurrent_layer(layer_of(net)), torch.Generator().manual_seed(0)
    return choose_draw(recurrent, site(net), own(own_loss), sampler, len(losses), generator, evaluate), tried


@pytest.mark.parametrize("size", [50, 64])
@pytest.mark.parametrize("make", [Rows, NorseRows])
def test_inputs_over_time_are_what_entered_the_layer(make, size):
    inputs, _ = test_data()
    seen = site(make(), size=size)
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
        assert site(Still(), size=size).over_time.shape == (1, 50, 8)


def test_calls_in_no_known_order_give_no_site():
    class Halves(Rows):
        def forward(self, x):
            self.fc1(x[:, :8])
            return super().forward(x)

    assert site(Halves()) is None
    report = convex_init_(Halves(), batches(200), hidden="reconstruct")
    assert report.layers[0].reason == "recurrent: own weights"


def test_the_best_draw_is_taken_with_its_gain_and_only_where_it_beats_the_own_weights():
    net = Rows()
    (decision, values), tried = draws_of(net, [0.9, 0.6, 0.4, math.inf], own_loss=0.5)
    assert (decision.draw, decision.draw_losses, decision.gain) == (3, (0.9, 0.6, 0.4, math.inf), 1.0)
    assert decision.rate_after == tried[2][1]
    assert "draw 3 of 4" in decision.reason
    drawn = tried[2][0]
    assert set(values) == set(drawn) == {(net.fc1, "weight"), (net.fc1, "bias"), (net.lif1.recurrent, "weight")}
    torch.testing.assert_close(values[net.lif1.recurrent, "weight"], drawn[net.lif1.recurrent, "weight"])
    for name in ("weight", "bias"):
        torch.testing.assert_close(values[net.fc1, name], 3.0 * drawn[net.fc1, name])
    assert draws_of(Rows(), [0.9, 0.6], own_loss=0.5)[0] is None
    assert draws_of(Rows(), [0.49], own_loss=0.5)[0] is None  # a tie
    assert draws_of(Rows(), [0.9], own_loss=math.inf)[0] is not None


def test_draws_differ_in_rows_rates_and_recurrent_weights_and_one_keeps_the_own():
    net = Rows()
    _, tried = draws_of(net, [1.0] * 4, own_loss=2.0)
    rows = [values[net_place] for values, _ in tried for net_place in values if values[net_place].shape == (HIDDEN, 8)]
    assert not torch.equal(rows[0], rows[1])
    assert len({rate for _, rate in tried}) == 3
    sizes = [[float(v.std()) for v in values.values() if v.shape == (HIDDEN, HIDDEN)] for values, _ in tried]
    assert [len(size) for size in sizes] == [1, 0, 1, 1]
    assert sizes[0][0] == pytest.approx(0.3 / HIDDEN**0.5, rel=0.1)
    assert sizes[2][0] == pytest.approx(1.0 / HIDDEN**0.5, rel=0.1)


def test_no_neuron_of_norse_feeds_itself_unless_it_may():
    for autapses in (False, True):
        _, tried = draws_of(NorseRows(autapses), [1.0], own_loss=2.0)
        drawn = next(value for (_, name), value in tried[0][0].items() if name == "recurrent_weights")
        assert bool((drawn.diagonal() == 0).all()) is not autapses


def test_frozen_and_one_to_one_recurrence_stays_as_it_is():
    net = Rows(learn_recurrent=False)
    assert find_recurrent_layer(layer_of(net)).recurrent_weight is None
    assert find_recurrent_layer(HiddenLayer("fc1", net.fc1, "lif1", snn.RLeaky(beta=0.8, V=1.0, all_to_all=False))) is None


def test_fewer_candidates_than_neurons_are_used_again():
    def two(made, count, generator):
        return pairs(made, 2, generator)

    net = Rows()
    _, tried = draws_of(net, [1.0], own_loss=2.0, sampler=two)
    rows = next(value for value in tried[0][0].values() if value.shape == (HIDDEN, 8))
    torch.testing.assert_close(rows[2:4], rows[:2])


@pytest.mark.parametrize("make", [Rows, NorseRows])
def test_a_recurrent_layer_whose_rows_are_all_alike_is_drawn_anew(make):
    """Its own weights can tell next to nothing apart at any gain."""
    net = make()
    weight = net.fc1.weight if make is Rows else net.layers[0].input_weights
    with torch.no_grad():
        weight.copy_(weight[:1].abs().expand_as(weight))
    held, before = accuracy(net), [bits(parameter) for parameter in net.parameters()]
    report = convex_init_(net, batches(600), hidden="reconstruct")
    layer = report.layers[0]
    assert layer.draw > 0
    assert f"draw {layer.draw} of 3" in str(report)
    assert accuracy(net) > max(0.6, held + 0.2)
    kept = convex_init_(fresh := make(), batches(600), hidden="rescale")
    assert kept.layers[0].draw == 0
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


def test_own_weights_are_not_drawn_where_they_are_asked_for():
    report = convex_init_(Rows(), batches(200), hidden="reconstruct", witnesses="own")
    assert report.layers[0].reason == "recurrent: own weights"


def test_a_recurrent_layer_that_no_gain_wakes_is_drawn():
    net = Rows()
    with torch.no_grad():
        net.fc1.weight.abs_().neg_()
        net.fc1.bias.abs_().neg_()
    report = convex_init_(net, batches(600), hidden="reconstruct")
    assert report.layers[0].draw > 0
    assert report.layers[0].stats.silent < 0.5
    assert accuracy(net) > 0.5


def test_a_recurrent_layer_that_nothing_wakes_is_an_error():
    def never(made, count, generator):
        weight = -torch.rand(count, 8, generator=generator)
        return Candidates(weight, torch.full((count,), -1.0))

    net = Rows()
    with torch.no_grad():
        net.fc1.weight.abs_().neg_()
        net.fc1.bias.abs_().neg_()
    before = [bits(parameter) for parameter in net.parameters()]
    with pytest.raises(SilentLayerError, match="nor in any of its draws"):
        convex_init_(net, batches(200), hidden="reconstruct", witnesses=never)
    assert [bits(parameter) for parameter in net.parameters()] == before
