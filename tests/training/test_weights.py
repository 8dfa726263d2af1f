"""Snapshots of weights, the choice between them, and their exchange."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from snn_recon_plugin.training.measure import Judgement
from snn_recon_plugin.training.weights import WeightSnapshots

from .runs import assert_equal, state


def add(module, value):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(value)


def unused():
    raise AssertionError("measured without need")


def trained_for_a_step():
    """A net after a step, with its weights saved, and an average that differs from them."""
    net, weights = nn.Sequential(nn.Linear(2, 3)), WeightSnapshots(0.9)
    weights.begin(net)
    add(net, 1)
    weights.update_average()
    weights.save_trained(net)
    return net, weights


# -- the choice ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("averaged", "chosen"), [(0.9, True), (1.0, False), (1.1, False), (math.nan, False)])
def test_the_average_is_chosen_if_it_is_better(averaged, chosen):
    net, weights = trained_for_a_step()
    trained, average = state(net), weights.average.snapshot.named(net)
    found = weights.choose_average(Judgement(1.0), lambda: Judgement(averaged))
    assert found.loss == (averaged if chosen else 1.0)
    assert weights.averaged is chosen
    assert_equal(state(net), average if chosen else trained)


def test_an_average_of_no_step_is_not_measured():
    net, weights = nn.Linear(2, 3), WeightSnapshots(0.9)
    weights.begin(net)
    assert weights.choose_average(Judgement(1.0), unused) == Judgement(1.0)
    assert not weights.averaged


@pytest.mark.parametrize(("loss", "held"), [(0.9, False), (1.0, False), (1.1, True), (math.nan, True)])
def test_the_best_weights_stay_unless_others_are_as_good(loss, held):
    net, weights = nn.Linear(2, 3), WeightSnapshots(0.9)
    assert weights.choose_best(net, Judgement(1.0), unused) == Judgement(1.0)
    assert not weights.held  # they are in the network
    best = state(net)
    add(net, 1)
    later = state(net)
    found = weights.choose_best(net, Judgement(loss), unused)
    assert weights.held is held
    assert found.loss == weights.best.judged.loss == (1.0 if held else loss)
    assert_equal(state(net), best if held else later)
    add(net, 1)
    weights.choose_best(net, Judgement(2.0), unused)  # what is worse is compared with the best
    assert_equal(state(net), best if held else later)


def test_a_recorded_start_is_evaluated_until_others_are_better():
    net, weights = nn.Linear(2, 3), WeightSnapshots(0.9)
    weights.record(net, Judgement(1.0))
    start = state(net)
    add(net, 1)
    trained = state(net)
    with weights.swapped_in():
        assert_equal(state(net), start)
    assert_equal(state(net), trained)
    weights.choose_best(net, Judgement(0.9), unused)
    with weights.swapped_in():
        assert_equal(state(net), trained)
    weights.record(net, Judgement(math.nan))
    assert weights.best is None


def test_the_trained_weights_are_evaluated_where_others_cannot_be_chosen():
    net, weights = trained_for_a_step()
    weights.choose_average(Judgement(1.0), lambda: Judgement(0.9))
    weights.record(net, Judgement(0.9))
    weights.swap_out()
    trained = state(net)
    weights.evaluate_trained()
    weights.swap_in()
    assert_equal(state(net), trained)


def test_pruned_nets_hold_no_best_weights():
    """Earlier ones were judged under other masks."""
    net, weights = nn.Sequential(nn.Linear(2, 2)), WeightSnapshots(0.9)
    weights.record(net, Judgement(1.0))
    prune.l1_unstructured(net[0], "weight", 1)
    pruned = state(net)
    assert weights.choose_best(net, Judgement(2.0), unused) == Judgement(2.0)
    assert weights.best is None
    assert_equal(state(net), pruned)


def test_nothing_is_chosen_without_an_average():
    layer, weights = nn.Linear(1, 1), WeightSnapshots(None)
    weights.begin(layer)
    weights.update_average()
    weights.record(layer, Judgement(1.0))
    assert weights.choose_average(Judgement(2.0), unused) == Judgement(2.0)
    assert weights.choose_best(layer, Judgement(2.0), unused) == Judgement(2.0)
    weights.swap_in()
    assert weights.state_dict(layer) == {}


# -- the exchange -------------------------------------------------------------------------------------------------------


def test_snapshots_go_on_from_a_checkpoint():
    """But for the judgement of the best weights, which are measured again."""
    one, first = trained_for_a_step()
    first.choose_average(Judgement(1.0), lambda: Judgement(0.9))
    first.choose_best(one, Judgement(0.9), unused)
    first.evaluate_current()
    two, second = nn.Sequential(nn.Linear(2, 3)), WeightSnapshots(0.9)
    with first.swapped_in():
        two.load_state_dict(one.state_dict())
    second.load_state_dict(two, first.state_dict(one))
    second.evaluate_current()
    second.begin(two)
    assert_equal(one.state_dict(), two.state_dict())  # the trained weights
    for weights, net in ((first, one), (second, two)):
        weights.resume_training()
        add(net, 1)
        weights.update_average()
        weights.swap_in()
    assert_equal(one.state_dict(), two.state_dict())
    assert second.best.judged is None
    found = second.choose_best(two, Judgement(2.0), lambda: Judgement(0.9))
    assert found == second.best.judged == first.choose_best(one, Judgement(2.0), unused)
    assert_equal(one.state_dict(), two.state_dict())


def test_trained_weights_come_back_bit_for_bit():
    layer = nn.Linear(3, 2)
    trained, weights = state(layer), WeightSnapshots(None)
    weights.save_trained(layer)
    add(layer, 0.1)
    evaluated = state(layer)
    weights.evaluate_current()
    assert_equal(state(layer), trained)
    for _ in range(2):
        weights.swap_in()
        weights.swap_in()  # the second one changes nothing
        assert_equal(state(layer), evaluated)
        weights.swap_out()
        weights.swap_out()
        assert_equal(state(layer), trained)
    weights.swap_in()
    weights.resume_training()
    assert_equal(state(layer), trained)
    with weights.swapped_in():
        assert_equal(state(layer), trained)  # nothing else is left to evaluate
    assert weights.state_dict(layer) == {}


def test_what_changes_during_an_evaluation_is_evaluated_again():
    layer, weights = nn.Linear(3, 2), WeightSnapshots(None)
    weights.save_trained(layer)
    weights.evaluate_current()
    weights.swap_in()
    add(layer, 1)
    changed = state(layer)
    weights.swap_out()
    weights.swap_in()
    assert_equal(state(layer), changed)
