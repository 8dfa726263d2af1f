"""The choice between weights, and their exchange."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from snn_recon_plugin.training.measure import Judgement
from snn_recon_plugin.training.policy import Policy

from .runs import assert_equal, state


def add(module, value):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(value)


def policy_of(net, *losses, decay=0.9):
    """A policy that judges weights by these losses, one a call; a further call is an error."""
    numbers = iter(losses)
    policy = Policy(net, decay)
    policy.judge, policy.watch = lambda: Judgement(next(numbers)), Judgement
    return policy


def stepped(*losses):
    """A net after a step, and a policy with an average that differs from it."""
    net = nn.Sequential(nn.Linear(2, 3))
    policy = policy_of(net, *losses)
    policy.begin_average()
    add(net, 1)
    policy.before_step()
    policy.after_step([])
    return net, policy


def shown(policy):
    with policy.swapped_in():
        return state(policy.net)


@pytest.mark.parametrize(("averaged", "chosen"), [(0.9, True), (1.0, False), (1.1, False), (math.nan, False)])
def test_the_average_is_chosen_if_it_is_better(averaged, chosen):
    net, policy = stepped(1.0, averaged)
    trained, average = state(net), policy.average.snapshot.named(net)
    assert policy.choose()[1].loss == (averaged if chosen else 1.0)
    assert policy.averaged is chosen
    assert_equal(shown(policy), average if chosen else trained)
    assert_equal(state(net), trained)


def test_an_average_of_no_step_is_not_measured():
    policy = policy_of(nn.Linear(2, 3), 1.0)
    policy.begin_average()
    assert policy.choose() == (Judgement(1.0), Judgement(1.0))


@pytest.mark.parametrize(("loss", "held"), [(0.9, False), (1.0, False), (1.1, True), (math.nan, True)])
def test_the_best_weights_stay_unless_others_are_as_good(loss, held):
    net = nn.Linear(2, 3)
    policy = policy_of(net, loss, 2.0)
    policy.hold(Judgement(1.0))
    best = state(net)
    add(net, 1)
    later = state(net)
    assert_equal(shown(policy), best)
    found = policy.choose()[1]
    assert policy.held is held
    assert found.loss == policy.best_judged.loss == (1.0 if held else loss)
    assert_equal(shown(policy), best if held else later)
    add(net, 1)
    policy.choose()
    assert_equal(shown(policy), best if held else later)


def test_the_first_weights_that_are_judged_are_the_best_and_those_without_judgement_are_none():
    net = nn.Linear(2, 3)
    policy = policy_of(net, 1.0, 2.0)
    policy.choose()
    assert not policy.held  # they are in the network
    best = state(net)
    add(net, 1)
    policy.choose()
    assert_equal(shown(policy), best)
    policy.hold(Judgement(math.nan))
    assert policy.best is None


def refitting(net, before, after):
    """A refit that adds 5 to the weights, and is kept if it is better."""

    def refit(judged):
        assert judged.loss == before
        if after < before:
            add(net, 5)
        return Judgement(min(after, before)), after < before

    return refit


@pytest.mark.parametrize(
    ("after", "best", "origin"),
    [
        (0.5, 2.0, "the last refit's"),
        (2.0, 2.0, "the averaged ones"),
        (0.5, 0.4, "earlier ones"),  # though the refit is better than the net that it was made of
    ],
)
def test_a_refit_is_evaluated_until_the_next_step_if_it_is_best(after, best, origin):
    net, policy = stepped(1.0, 0.9)
    trained, average = state(net), policy.average.snapshot.named(net)
    policy.hold(Judgement(best))
    policy.choose(refitting(net, 0.9, after))
    assert_equal(state(net), trained)
    expected = {"earlier ones": trained, "the averaged ones": average}
    expected["the last refit's"] = {name: value + 5 for name, value in average.items()}
    assert policy.origin == origin
    for name, value in shown(policy).items():
        torch.testing.assert_close(value, expected[origin][name])
    policy.before_step()
    assert policy.origin == ("earlier ones" if policy.held else "the averaged ones")


def test_an_error_leaves_the_trained_weights_and_evaluates_them():
    net, policy = stepped(1.0, 0.9)
    trained = state(net)
    policy.hold(Judgement(0.8))

    def fail(_):
        add(net, 1)
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        policy.choose(fail)
    assert_equal(state(net), trained)
    assert_equal(shown(policy), trained)


@pytest.mark.parametrize(("decay", "pruned"), [(0.9, True), (None, False)])
def test_pruned_nets_and_runs_without_an_average_hold_no_best_weights(decay, pruned):
    """Earlier ones were judged under other masks."""
    net = nn.Sequential(nn.Linear(2, 2))
    policy = policy_of(net, 2.0, decay=decay)
    policy.hold(Judgement(1.0))
    if pruned:
        prune.l1_unstructured(net[0], "weight", 1)
    add(net, 1)
    later = state(net)
    assert policy.choose()[1] == Judgement(2.0)
    assert policy.best is None
    assert_equal(shown(policy), later)
