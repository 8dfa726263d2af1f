"""Snapshots of weights, and their exchange."""

import torch
from torch import nn
from torch.nn.utils import prune

from snn_recon_plugin.training.weights import WeightSnapshots

from .runs import assert_equal, state


def add(module, value):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(value)


def test_candidates_go_on_from_a_checkpoint():
    one, two = nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 3))
    first, second = WeightSnapshots(0.9), WeightSnapshots(0.9)
    first.begin(one)
    for _ in range(5):
        add(one, 1)
        first.update_average()
    first.write_best_or_record(one, 1.0)
    first.average.better = True
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
    assert second.best.judged == 1.0
    assert_equal(first.state_dict(one)["best"], second.state_dict(two)["best"])


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


def test_pruned_nets_hold_no_best_weights():
    """Earlier ones were judged under other masks."""
    net, weights = nn.Sequential(nn.Linear(2, 2)), WeightSnapshots(0.9)
    weights.write_best_or_record(net, 1.0)
    assert weights.best is not None
    prune.l1_unstructured(net[0], "weight", 1)
    weights.write_best_or_record(net, 2.0)
    assert weights.best is None


def test_nothing_is_exchanged_without_an_average():
    layer, weights = nn.Linear(1, 1), WeightSnapshots(None)
    weights.begin(layer)
    weights.update_average()
    weights.write_best_or_record(layer, 1.0)
    weights.swap_in()
    assert weights.state_dict(layer) == {}
