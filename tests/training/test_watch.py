"""The choice between weights, and their exchange."""

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from snn_recon_plugin.errors import OptionError
from snn_recon_plugin.training.measure import Judgement
from snn_recon_plugin.training.watch import Watch

from .runs import assert_equal, state


def add(module, value):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(value)


def watch_of(net, *losses, best_weights=True):
    """A watch that judges weights by these losses, one a call; a further call is an error."""
    numbers = iter(losses)
    watch = Watch(net, best_weights)
    watch.judge = SimpleNamespace(validates=True, measure=lambda: Judgement(next(numbers)), watch=Judgement)
    return watch


def stepped(*losses):
    """A net after a step, and its watch."""
    net = nn.Sequential(nn.Linear(2, 3))
    watch = watch_of(net, *losses)
    watch.begin(damping=1.0, fast=False)
    add(net, 1)
    watch.before_step()
    watch.after_step([])
    return net, watch


def shown(watch):
    with watch.swapped_in():
        return state(watch.net)


REASON = SimpleNamespace(reason="it counts", is_outside=False, remove=lambda: None)


def refused():
    raise OptionError("a compiled network", "another one", "leave out fast_steps")


@pytest.mark.parametrize("fast", [None, True])
def test_faster_steps_that_can_not_be_taken_are_named_where_they_were_asked_for(fast):
    watch = watch_of(nn.Linear(2, 3))
    watch.judge.install_fast_steps = lambda: REASON
    with pytest.warns(UserWarning, match="Linear: it counts") if fast else contextlib.nullcontext():
        watch.begin(damping=1.0, fast=fast)
    watch.judge.install_fast_steps = refused
    with pytest.raises(OptionError, match="compiled") if fast else contextlib.nullcontext():
        watch.begin(damping=1.0, fast=fast)


def test_a_step_that_loses_what_was_solved_is_taken_back():
    net = nn.Sequential(nn.Linear(2, 3))
    watch, solved = watch_of(net), state(net)
    watch.begin(damping=1.0, fast=False)
    watch.protection.begin(net, Judgement(own=0.2, zero=2.3), Judgement(own=0.2))
    watch.judge.watch = lambda: Judgement(own=9.0)
    watch.before_step()
    add(net, 1)
    assert watch.after_step([])
    assert_equal(state(net), solved)


@pytest.mark.parametrize(("loss", "held"), [(0.9, False), (1.0, False), (1.1, True), (math.nan, True)])
def test_the_best_weights_stay_unless_others_are_as_good(loss, held):
    net = nn.Linear(2, 3)
    watch = watch_of(net, loss, 2.0)
    watch.hold(Judgement(1.0))
    best = state(net)
    add(net, 1)
    later = state(net)
    assert_equal(shown(watch), best)
    found = watch.choose()[1]
    assert watch.held is held
    assert found.loss == watch.best_judged.loss == (1.0 if held else loss)
    assert_equal(shown(watch), best if held else later)
    add(net, 1)
    watch.choose()
    assert_equal(shown(watch), best if held else later)


def test_the_first_weights_that_are_judged_are_the_best_and_those_without_judgement_are_none():
    net = nn.Linear(2, 3)
    watch = watch_of(net, 1.0, 2.0)
    watch.choose()
    assert not watch.held  # they are in the network
    best = state(net)
    add(net, 1)
    watch.choose()
    assert_equal(shown(watch), best)
    watch.hold(Judgement(math.nan))
    assert watch.best is None


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
        (2.0, 2.0, "the trained ones"),
        (0.5, 0.4, "earlier ones"),  # though the refit is better than the net that it was made of
    ],
)
def test_a_refit_is_evaluated_until_the_next_step_if_it_is_best(after, best, origin):
    net, watch = stepped(1.0)
    trained = state(net)
    watch.hold(Judgement(best))
    watch.choose(refitting(net, 1.0, after))
    assert_equal(state(net), trained)
    expected = {"earlier ones": trained, "the trained ones": trained}
    expected["the last refit's"] = {name: value + 5 for name, value in trained.items()}
    assert watch.origin == origin
    for name, value in shown(watch).items():
        torch.testing.assert_close(value, expected[origin][name])
    watch.before_step()
    assert watch.origin == ("earlier ones" if watch.held else "the trained ones")


@pytest.mark.parametrize(("sizes", "held"), [((0.1, 0.1, 0.1), False), ((3.0, -2.9, 0.2), True), ((-0.1, -0.1, -0.1), True)])
def test_earlier_weights_stay_unless_few_samples_agree_that_later_ones_are_better(sizes, held):
    earlier, gains = torch.full((3,), 4.0), torch.tensor(sizes)
    _, watch = stepped(0.0)
    watch.hold(Judgement(4.0, each=earlier))
    watch.judge.measure = lambda: Judgement(4.0 - float(gains.mean()), each=earlier - gains)
    watch.choose()
    assert watch.held is held


def test_an_error_leaves_the_trained_weights_and_evaluates_them():
    net, watch = stepped(1.0)
    trained = state(net)
    watch.hold(Judgement(0.8))

    def fail(_):
        add(net, 1)
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        watch.choose(fail)
    assert_equal(state(net), trained)
    assert_equal(shown(watch), trained)


@pytest.mark.parametrize(("best_weights", "pruned", "validates"), [(True, True, True), (False, False, True), (True, False, False)])
def test_pruned_nets_and_runs_without_validation_hold_no_best_weights(best_weights, pruned, validates):
    """Earlier ones were judged under other masks."""
    net = nn.Sequential(nn.Linear(2, 2))
    watch = watch_of(net, 2.0, best_weights=best_weights)
    watch.judge.validates = validates
    if validates:
        watch.hold(Judgement(1.0))
    if pruned:
        prune.l1_unstructured(net[0], "weight", 1)
    add(net, 1)
    later = state(net)
    assert watch.choose()[1] == Judgement(2.0)
    assert watch.best is None
    assert_equal(shown(watch), later)
