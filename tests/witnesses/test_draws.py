"""Draws of a whole recurrent layer."""

import pytest
import torch

from snn_recon_plugin.witnesses.draws import list_draws
from snn_recon_plugin.witnesses.recurrent import find_recurrent_layer
from snn_recon_plugin.witnesses.samplers import pairs, traces

from ..helpers import HIDDEN
from .recurrent_nets import NorseRows, Rows, layer_of, see


def draws_of(net, count, sampler=traces):
    """Return the values and rates of some draws."""
    recurrent, generator = find_recurrent_layer(layer_of(net)), torch.Generator().manual_seed(0)
    return list(list_draws(recurrent, see(net)[1].site, sampler, count, generator))


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
