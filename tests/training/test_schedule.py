"""When refits are due."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snn_recon_plugin.training.schedule import COST, START, Position, Progress, share_of_samples

quick = settings(deadline=None, derandomize=True, max_examples=50)


NOTHING = Progress()


def options(max_share, every_n_epochs=1, at_end=True):
    return SimpleNamespace(max_share=max_share, every_n_epochs=every_n_epochs, at_end=at_end)


def samples(share, done, total, progress=NOTHING, last=False):
    """Samples of a refit after an epoch."""
    position = Position(done, total, last, validated=True)
    return share_of_samples(position, progress, options(share))


def refits(share, epochs, ahead=0.0):
    """Return the cost of a run's refits, and the share of the samples of each, by epoch."""
    progress, taken = Progress(ahead=ahead), {}
    for done in range(1, epochs + 1):
        part = samples(share, done, epochs, progress, last=done == epochs)
        if part:
            progress, taken[done] = progress.spend(part, done), part
    return progress, taken


def test_a_budget_of_a_tenth_of_15_epochs():
    progress, taken = refits(0.1, 15)
    assert taken == {1: 1, 7: 1, 15: 1}
    assert progress.spent == pytest.approx(3 * COST)


def test_a_start_is_deducted_from_refits_in_between():
    progress, taken = refits(0.1, 15, START)
    assert taken == {1: 1, 15: 1}
    assert progress.spent == pytest.approx(2 * COST)
    assert set(refits(1.0, 15, START)[1]) == set(range(1, 16))


@quick
@given(st.floats(0.01, 3), st.integers(3, 200))
def test_a_start_costs_neither_the_first_refit_nor_the_last(share, epochs):
    without, taken = refits(share, epochs)[1], refits(share, epochs, START)[1]
    assert len(taken) <= len(without)
    assert (1 in taken) == (1 in without)
    assert (epochs in taken) >= (epochs in without)


@quick
@given(st.floats(0.01, 3), st.integers(1, 200))
def test_no_run_spends_more_than_its_share(share, epochs):
    progress, taken = refits(share, epochs)
    assert progress.spent <= share * epochs * (1 + 1e-9)
    assert all(part == 1 for done, part in taken.items() if done < epochs)
    if share * min(epochs, 50) >= COST:
        assert 1 in taken
    if share >= COST * math.sqrt(epochs):
        assert len(taken) == epochs


def test_a_long_run_that_ends_early_has_not_spent_much_more_than_its_share():
    progress = Progress()
    for done in range(1, 41):
        progress = progress.spend(samples(0.1, done, 1000, progress), done)
        assert progress.spent <= max(COST, 0.1 * math.sqrt(done * 50) * (1 + 1e-9))
    assert samples(0.1, 1, None) == 1  # a run of unknown length


def test_a_last_refit_uses_what_is_left():
    assert samples(0.1, 1, 3) == 0
    assert samples(0.1, 3, 3, last=True) == pytest.approx(0.6)
    assert samples(0.01, 3, 3, last=True) == 0  # too few


@pytest.mark.parametrize(
    ("every", "at_end", "epochs", "last", "seen", "due"),
    [
        (2, True, 1, False, True, False),
        (2, True, 2, False, True, True),
        (2, True, 2, False, False, False),  # no validation would use it
        (2, True, 3, True, False, True),
        (2, False, 3, True, True, False),
        (2, False, 4, True, True, True),
        (0, True, 4, False, True, False),
        (0, True, 4, True, True, True),
    ],
)
def test_refits_are_due_where_something_uses_them(every, at_end, epochs, last, seen, due):
    position = Position(epochs, 4, last, seen)
    share = share_of_samples(position, Progress(), options(10.0, every, at_end))
    assert bool(share) is due


def test_a_refit_ahead_of_the_last_validation_leaves_the_budget_of_the_one_at_the_end():
    """Batches follow that validation, and only the refit at the end stays in the network."""
    for share, refits in ((0.5, 0), (1.0, 1)):
        ahead, end = (Position(1, 1, last, validated=not last) for last in (False, True))
        part = share_of_samples(ahead, Progress(), options(share))
        assert part == refits
        assert share_of_samples(end, Progress().spend(part, 6), options(share)) == 1
        assert share_of_samples(ahead, Progress(), options(share, at_end=False)) == 1


def test_progress_counts_refused_solves():
    progress = Progress().after_solve(0.1, "squared_hinge", False, 8).after_solve(0.2, "squared_hinge", False, 16)
    assert (progress.solves, progress.refused, progress.solved_at) == (2, 2, 16)
    assert progress.after_solve(0.3, "cross_entropy", True, 24) == Progress(3, 0.0, 0.0, 0.3, "cross_entropy", 0, 24)
    assert progress.after_start(True) == Progress(2, 0.0, START, 0.2, "squared_hinge", 2, 16)
    assert math.isnan(progress.after_start(False).strength)  # it belonged to hidden layers that are gone
