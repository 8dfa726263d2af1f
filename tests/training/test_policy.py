"""The choice between weights, their exchange, and their state in a checkpoint."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from snn_recon_plugin.training.candidates import Snapshot
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
    policy = policy_of(net, 1.0, loss, 2.0)
    policy.choose()
    assert not policy.held  # they are in the network
    best = state(net)
    add(net, 1)
    later = state(net)
    found = policy.choose()[1]
    assert policy.held is held
    assert found.loss == policy.best_judged.loss == (1.0 if held else loss)
    assert_equal(shown(policy), best if held else later)
    add(net, 1)
    policy.choose()
    assert_equal(shown(policy), best if held else later)


def test_a_start_is_evaluated_until_others_are_better():
    net = nn.Linear(2, 3)
    policy = policy_of(net, 0.9)
    policy.hold(Judgement(1.0))
    start = state(net)
    add(net, 1)
    assert_equal(shown(policy), start)
    policy.choose()
    assert_equal(shown(policy), state(net))
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


@pytest.mark.parametrize("after", [0.5, 2.0])
def test_a_kept_refit_is_evaluated_until_the_next_step(after):
    net, policy = stepped(1.0, 0.9)
    trained, average = state(net), policy.average.snapshot.named(net)
    policy.choose(refitting(net, 0.9, after))
    assert_equal(state(net), trained)
    refitted = {name: value + 5 for name, value in average.items()}
    for name, value in shown(policy).items():
        torch.testing.assert_close(value, (refitted if after < 0.9 else average)[name])
    assert policy.origin == ("the last refit's" if after < 0.9 else "the averaged ones")
    policy.before_step()
    assert policy.origin == "the averaged ones"


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


def test_pruned_nets_hold_no_best_weights():
    """Earlier ones were judged under other masks."""
    net = nn.Sequential(nn.Linear(2, 2))
    policy = policy_of(net, 2.0)
    policy.hold(Judgement(1.0))
    prune.l1_unstructured(net[0], "weight", 1)
    pruned = state(net)
    assert policy.choose()[1] == Judgement(2.0)
    assert policy.best is None
    assert_equal(shown(policy), pruned)


def test_nothing_is_chosen_without_an_average():
    net = nn.Linear(1, 1)
    policy = policy_of(net, 2.0, decay=None)
    policy.begin_average()
    policy.hold(Judgement(1.0))
    policy.choose()
    assert_equal(shown(policy), state(net))
    assert policy.average is None
    assert policy.best is None


def test_what_changes_during_an_evaluation_is_evaluated_again():
    net, policy = stepped(1.0, 0.9)
    policy.choose(refitting(net, 0.9, 0.5))
    policy.swap_in()
    policy.swap_in()  # the second one changes nothing
    add(net, 1)
    changed = state(net)
    policy.swap_out()
    policy.swap_out()
    assert_equal(shown(policy), changed)


def test_a_policy_goes_on_from_a_checkpoint():
    """But for the judgement of the best weights, which are measured again."""
    one, first = stepped(1.0, 0.9, 2.0, 3.0)
    first.choose(refitting(one, 0.9, 0.5))
    first.protection.safe, first.protection.limit, first.protection.done = Snapshot.take(one), 2.0, 4
    two = nn.Sequential(nn.Linear(2, 3))
    second = policy_of(two, 2.0, 3.0, 0.5)
    with first.swapped_in():
        two.load_state_dict(one.state_dict())
        saved = first.state_dict(one)
    second.load_state_dict(two, saved)
    assert_equal(shown(second), shown(first))
    assert (second.protection.limit, second.protection.done) == (2.0, 4)
    assert_equal(second.protection.safe.named(two), first.protection.safe.named(one))
    for policy, net in ((first, one), (second, two)):
        policy.before_step()
        add(net, 1)
        policy.average.update()
        policy.choose()
    assert_equal(state(one), state(two))
    assert_equal(shown(first), shown(second))
    assert second.best_judged == first.best_judged == Judgement(0.5)
