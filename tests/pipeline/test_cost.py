"""What a solve may cost: counted in epochs of training, and what the report says where that ends it."""

import math

import pytest
import torch

from snn_recon_plugin import ConvexInitializer, convex_init_
from snn_recon_plugin.convex import Outcome
from snn_recon_plugin.convex.work import PRICE
from snn_recon_plugin.errors import OptionError
from snn_recon_plugin.pipeline import cost, fit, initialize

from ..helpers import CLASSES, PIXELS, STEPS, batches, loop_net

HIDDEN = 40


@pytest.fixture
def nothing_free(monkeypatch):
    """No work is allowed beside the bound."""
    monkeypatch.setattr(cost, "_MIN_WORK", 0.0)


def products(monkeypatch):
    """The bound that one epoch gives to a solve."""
    bounds, original = [], initialize.choose_strength

    def watch(*args, max_products, **options):
        bounds.append(max_products)
        return original(*args, max_products=max_products, **options)

    monkeypatch.setattr(initialize, "choose_strength", watch)
    bounded(1.0)
    return bounds[0]


def bounded(max_cost, **options):
    net = loop_net(hidden=HIDDEN)
    return net, convex_init_(net, batches(300), hidden="keep", max_cost=max_cost, **options)


def test_an_epoch_is_counted_in_products_of_the_readout(nothing_free, monkeypatch):
    multiply_adds = 3 * STEPS * (PIXELS * HIDDEN + HIDDEN * CLASSES)  # forward, and backward twice as much
    assert products(monkeypatch) == pytest.approx(multiply_adds / (HIDDEN * PRICE))


def test_small_solves_are_always_allowed(monkeypatch):
    assert products(monkeypatch) == pytest.approx(2e10 / (300 * HIDDEN * PRICE))
    assert bounded(1.0)[1].certificate.reached


def test_a_bound_that_is_hit_is_reported_with_the_gap(nothing_free):
    _, report = bounded(1.0)
    assert report.outcome == Outcome.WORK_LIMIT.value
    assert not report.certificate.reached
    assert report.certificate.relative_gap > report.certificate.tol == 1e-6
    assert "NOT reached" in str(report)
    assert "max_cost" in str(report)
    assert report.accuracy_after > 0.5  # what is written is the best point so far


def test_no_bound_solves_to_the_tolerance(nothing_free):
    assert bounded(math.inf)[1].certificate.reached


def test_the_same_bits_twice_where_the_bound_is_hit(nothing_free):
    one, two = bounded(0.1)[0], bounded(0.1)[0]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_only_the_program_that_is_taken_is_solved_on_all_samples(monkeypatch):
    solved, original = [], fit.solve

    def watch(problem, **options):
        solved.append((problem.loss.name, problem.design.num_samples))
        return original(problem, **options)

    monkeypatch.setattr(fit, "solve", watch)
    monkeypatch.setattr("snn_recon_plugin.pipeline.temperature._ACCURATE", 2.0)  # both programs are compared
    _, report = bounded(1.0)
    assert solved == [(report.fit_loss, 300)]


@pytest.mark.parametrize("max_cost", [0, -1.0, math.nan, "1", True])
def test_bad_bounds(max_cost):
    with pytest.raises(OptionError, match="max_cost="):
        ConvexInitializer(max_cost=max_cost)
