"""benchmarks/user_nets.py: lines run as they are shown, and a report that differs from the user's own test does not pass."""

import copy

import pytest

from benchmarks import user_nets
from benchmarks.user_nets_common import Samples, UserNet, as_pixels, by_count, digits, own_test
from benchmarks.user_nets_dense import Loop
from benchmarks.user_nets_refused import NETS as REFUSED

TRAIN, FRESH = 100, 60


@pytest.fixture
def few(monkeypatch):
    """A few images for the line, and others."""
    train, fresh = digits()
    return Samples(train.images[:TRAIN], train.labels[:TRAIN]), Samples(fresh.images[:FRESH], fresh.labels[:FRESH])


def test_a_net_that_works(few):
    entry = UserNet("loop", Loop, as_pixels, own_test(by_count), 'convex_init_(net, loader, hidden="keep", strength=1e-2)')
    result = user_nets.run_net(entry, *few)
    assert result["typed"] == entry.typed
    assert result["fitted"]["samples"] == TRAIN
    assert result["heldout"]["samples"] == FRESH / 2
    assert user_nets.difference(result) == 0
    assert user_nets.as_it_must_be(result)


def test_a_report_of_another_accuracy_than_the_own_test_does_not_pass(few):
    def last_class(net, batch):
        data, targets = batch
        return net(data)[0].sum(0).argmin(1), targets

    entry = UserNet("other", Loop, as_pixels, own_test(last_class), 'convex_init_(net, loader, hidden="keep", strength=1e-2)')
    result = user_nets.run_net(entry, *few)
    assert user_nets.difference(result) > 0.3
    assert not user_nets.as_it_must_be(result)
    assert user_nets.verdict(result).startswith("!")


def test_frozen_layers_that_were_written_do_not_pass(few):
    entry = UserNet("loop", Loop, as_pixels, own_test(by_count), 'convex_init_(net, loader, hidden="keep", strength=1e-2)')
    result = user_nets.run_net(entry, *few)
    assert not user_nets.as_it_must_be({**result, "frozen_written": ["fc1.weight"]})


def test_a_refusal_must_hold_its_words(few):
    entry = next(entry for entry in REFUSED if entry.name == "no spiking neuron")
    result = user_nets.run_net(entry, *few)
    assert result["seconds"] < 1
    assert user_nets.as_it_must_be(result)
    other = copy.copy(entry)
    object.__setattr__(other, "refused", ("no such word",))
    assert not user_nets.as_it_must_be(user_nets.run_net(other, *few))


def test_options_are_added_but_never_twice():
    line = "convex_init_(net, loader, forward=over_time(10))"
    assert user_nets.with_options(line, "strength=1.0") == "convex_init_(net, loader, forward=over_time(10), strength=1.0)"
    assert user_nets.with_options(line[:-1] + ", strength=2)", "strength=1.0") == line[:-1] + ", strength=2)"


def test_every_net_stands_once_and_forty_must_work():
    entries = [entry for nets in user_nets.GROUPS.values() for entry in nets]
    assert len({entry.name for entry in entries}) == len(entries)
    assert sum(not entry.refused for entry in entries) >= 40
