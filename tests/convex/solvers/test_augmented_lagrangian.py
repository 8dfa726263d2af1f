"""Losses with kinks: stages of smoothings, certified for the loss itself."""

import pytest
import torch

from snn_recon_plugin.convex import Outcome, solve

from ..helpers import SecondOpinion, every_penalty, labels, small_problem, spikes

SEED = 4  # some weights of the optimum are zero, others not


def hinge_problem(penalty="l1", **options):
    return small_problem("hinge", penalty, **{"seed": SEED, "n": 16, "p": 6, "classes": 2, "share": 0.05, **options})


def smoothed(problem, **options):
    return solve(problem, solver="augmented_lagrangian", **options)


@every_penalty
def test_the_certificate_is_of_the_hinge_itself(penalty):
    problem, seen = hinge_problem(penalty), []
    solution, again = smoothed(problem, progress=seen.append), smoothed(problem)
    assert solution.outcome is Outcome.CONVERGED
    assert solution.weight.any()
    assert tuple(seen) == solution.statistics.trace
    second = SecondOpinion(problem, labels(SEED, 16, 2))
    assert solution.certificate.primal == pytest.approx(second.objective(solution.weight.numpy(), solution.bias.numpy()), rel=1e-12)
    assert solution.certificate.relative_gap == pytest.approx(seen[-1].relative_gap)
    objectives = [point.objective for point in seen]
    assert objectives == sorted(objectives, reverse=True)
    assert solution.statistics.products > 0
    assert torch.equal(again.weight, solution.weight)
    assert torch.equal(again.bias, solution.bias)


def test_a_start_and_a_tolerance_below_rounding():
    problem = hinge_problem()
    best = smoothed(problem)
    again = smoothed(problem, tol=1e-4, start=(best.weight, best.bias))
    assert again.outcome is Outcome.CONVERGED
    assert again.statistics.trace[0].objective <= best.certificate.primal + 1e-9
    impossible = smoothed(problem, tol=1e-30)
    assert impossible.certificate.reached == (impossible.outcome is Outcome.CONVERGED)
    assert impossible.certificate.relative_gap < 1e-6


def with_columns(value):
    features = spikes(SEED, 16, 6).double()
    features[:, [1, 3]] = value
    return features


@pytest.mark.parametrize(
    "options",
    [
        {"share": 1.01},
        {"bias": "none", "penalty": "group_l1"},
        {"num_outputs": 5},
        {"n": 3, "classes": 3},
        {"n": 8, "p": 12, "penalty": "ridge"},
        {"features": spikes(SEED, 16, 6).double() * torch.tensor([1e8, 1e-8, 0, 1, 1, 1])},
        {"features": with_columns(0.0)},
        {"features": with_columns(5.0), "penalty": "ridge"},
        {"row_weights": torch.arange(16) % 2},
    ],
    ids=["above critical", "no bias", "absent classes", "one sample a class", "n < P", "scales", "zeros", "constants", "weights"],
)
def test_hard_inputs(options):
    problem = hinge_problem(**options)
    solution = solve(problem, time_limit=60.0)
    assert solution.outcome is Outcome.CONVERGED
    if options.get("share", 0) > 1:
        assert float(solution.weight.abs().max()) < 1e-5
    if "features" in options and problem.features.variance[0, 3] == 0:
        assert not solution.weight[:, 3].any()


def test_a_stage_that_is_too_narrow_is_followed_by_a_wider_one():
    """One stage alone took all iterations here, and left a gap of 1e-3."""
    solution = solve(small_problem("hinge", "group_l1", share=0.01))
    assert solution.outcome is Outcome.CONVERGED
    assert solution.statistics.iterations < 300
