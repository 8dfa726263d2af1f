"""Draws of a whole recurrent layer: the best, where it beats the layer's own weights."""

import math

import pytest
import torch

from snn_recon_plugin.witnesses import LayerGain
from snn_recon_plugin.witnesses.draws import choose_draw
from snn_recon_plugin.witnesses.recurrent import find_recurrent_layer
from snn_recon_plugin.witnesses.samplers import pairs, traces

from ..helpers import HIDDEN
from .recurrent_nets import NorseRows, Rows, layer_of, see


def own(loss):
    return LayerGain("fc1", 2.0, 0.0, 0.1, {1.0: loss + 1, 2.0: loss})


def draws_of(net, losses, own_loss, sampler=traces):
    """The decision with these losses, and what was tried."""
    tried = []

    def evaluate(values, rate):
        tried.append((values, rate))
        return 3.0, losses[len(tried) - 1]

    recurrent, generator = find_recurrent_layer(layer_of(net)), torch.Generator().manual_seed(0)
    return choose_draw(recurrent, see(net)[1].site, own(own_loss), sampler, len(losses), generator, evaluate), tried


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


def test_fewer_candidates_than_neurons_are_used_again():
    def two(made, count, generator):
        return pairs(made, 2, generator)

    net = Rows()
    _, tried = draws_of(net, [1.0], own_loss=2.0, sampler=two)
    rows = next(value for value in tried[0][0].values() if value.shape == (HIDDEN, 8))
    torch.testing.assert_close(rows[2:4], rows[:2])
