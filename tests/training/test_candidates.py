"""Snapshots of weights, and their exchange."""

import torch
from torch import nn
from torch.nn.utils import prune

from snn_recon_plugin.training.candidates import Candidates
from snn_recon_plugin.training.measure import Judgement

from .runs import assert_equal, state


def add(module, value):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(value)


def test_candidates_go_on_from_a_checkpoint():
    one, two = nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 3))
    first, second = Candidates(0.9), Candidates(0.9)
    first.begin(one)
    for _ in range(5):
        add(one, 1)
        first.update()
    first.write_best_or_record(one, Judgement(1.0, 0.5))
    first.average.better = True
    with first.swapped_in():
        two.load_state_dict(one.state_dict())
    second.load_state_dict(two, first.state_dict(one))
    second.settle()
    second.begin(two)
    assert_equal(one.state_dict(), two.state_dict())  # the trained weights
    for candidates, net in ((first, one), (second, two)):
        candidates.discard()
        add(net, 1)
        candidates.update()
        candidates.swap_in()
    assert_equal(one.state_dict(), two.state_dict())
    assert second.best.judged == Judgement(1.0, 0.5)
    assert_equal(first.state_dict(one)["best"], second.state_dict(two)["best"])


def test_trained_weights_come_back_bit_for_bit():
    layer = nn.Linear(3, 2)
    trained, candidates = state(layer), Candidates(None)
    candidates.open(layer)
    add(layer, 0.1)
    evaluated = state(layer)
    candidates.settle()
    assert_equal(state(layer), trained)
    for _ in range(2):
        candidates.swap_in()
        candidates.swap_in()  # the second one changes nothing
        assert_equal(state(layer), evaluated)
        candidates.swap_out()
        candidates.swap_out()
        assert_equal(state(layer), trained)
    candidates.swap_in()
    candidates.discard()
    assert_equal(state(layer), trained)
    with candidates.swapped_in():
        assert_equal(state(layer), trained)  # nothing else is left to evaluate
    assert candidates.state_dict(layer) == {}


def test_what_changes_during_an_evaluation_is_evaluated_again():
    layer, candidates = nn.Linear(3, 2), Candidates(None)
    candidates.open(layer)
    candidates.settle()
    candidates.swap_in()
    add(layer, 1)
    changed = state(layer)
    candidates.swap_out()
    candidates.swap_in()
    assert_equal(state(layer), changed)


def test_pruned_nets_hold_no_best_weights():
    """Earlier ones were judged under other masks."""
    net, candidates = nn.Sequential(nn.Linear(2, 2)), Candidates(0.9)
    candidates.write_best_or_record(net, Judgement(1.0, 0.5))
    assert candidates.best is not None
    prune.l1_unstructured(net[0], "weight", 1)
    candidates.write_best_or_record(net, Judgement(2.0, 0.4))
    assert candidates.best is None


def test_nothing_is_exchanged_without_an_average():
    layer, candidates = nn.Linear(1, 1), Candidates(None)
    candidates.begin(layer)
    candidates.update()
    candidates.write_best_or_record(layer, Judgement(1.0, 0.5))
    candidates.swap_in()
    assert candidates.state_dict(layer) == {}
