import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snn_recon_plugin.convex import Design, Outcome, Problem, solve
from snn_recon_plugin.convex import native as native_module
from snn_recon_plugin.convex.native import solve_native
from snn_recon_plugin.convex.screening import safe_zeros, survivors

from .helpers import BIASES, SMOOTH_LOSSES, SPARSE_PENALTIES, labels, quick, random, small_problem


def wide_problem(loss="cross_entropy", penalty="group_l1", share=0.5, p=150):
    """Many features, few of which tell the classes apart."""
    classes = labels(0, 60, 3)
    features = random(1, 60, p)
    features[:, :3] += 2 * torch.nn.functional.one_hot(classes, 3)
    problem = Problem(Design(features), classes, loss=loss, penalty=penalty)
    return problem.with_strength(share * problem.critical_strength())


@pytest.mark.parametrize("penalty", SPARSE_PENALTIES)
@pytest.mark.parametrize("loss", SMOOTH_LOSSES)
@settings(quick, max_examples=8)
@given(seed=st.integers(0, 2**16), share=st.floats(0.05, 0.9), steps=st.integers(0, 6), bias=st.sampled_from(BIASES))
def test_what_is_screened_is_zero_at_the_optimum(loss, penalty, seed, share, steps, bias):
    """From any point on the way: the optimum by many more iterations has no weight there."""
    problem = small_problem(loss, penalty, seed=seed, n=30, p=12, share=share, bias=bias)
    early = solve_native(problem, tol=1e-12, max_iterations=steps)
    screened = safe_zeros(problem, problem.evaluate(early.weight, early.bias))
    best = solve_native(problem, tol=1e-11)
    sizes = problem.penalty.neuron_sizes(best.weight)
    assert not (sizes[screened] > 1e-7).any()


def test_at_the_optimum_most_unused_features_are_screened():
    problem = wide_problem()
    best = solve(problem, tol=1e-9)
    screened = safe_zeros(problem, problem.evaluate(best.weight, best.bias))
    unused = problem.penalty.neuron_sizes(best.weight) == 0
    assert not bool((screened & ~unused).any())
    assert int(screened.sum()) >= 0.9 * int(unused.sum()) > 50


def test_nothing_is_screened_without_a_gap_small_enough_or_a_sparse_penalty():
    problem = wide_problem(share=0.05)
    assert not safe_zeros(problem, problem.evaluate(*problem.zero_point())).any()
    ridge = small_problem(penalty="ridge", strength=1.0)
    assert not safe_zeros(ridge, ridge.evaluate(*ridge.zero_point())).any()


def test_a_smaller_program_is_set_up_only_where_it_pays():
    problem = wide_problem()
    solved = solve(problem)
    point = problem.evaluate(solved.weight, solved.bias)
    left = survivors(problem, point)
    used = (problem.penalty.neuron_sizes(solved.weight) > 0).nonzero()[:, 0]
    assert left is not None
    assert set(used.tolist()) <= set(left.tolist())
    assert len(left) <= 75
    few = wide_problem(p=40)
    solved = solve(few)
    assert survivors(few, few.evaluate(solved.weight, solved.bias)) is None
    assert survivors(problem, problem.evaluate(*problem.zero_point())) is None


@pytest.mark.parametrize("penalty", SPARSE_PENALTIES)
def test_the_answer_is_the_same_with_and_without(penalty, monkeypatch):
    problem = wide_problem(penalty=penalty, share=0.6)
    seen, taken = [], []
    original = native_module.survivors
    monkeypatch.setattr(native_module, "survivors", lambda *given: taken.append(original(*given)) or taken[-1])
    rough = solve(problem, tol=1e-5)
    start = rough.weight + 1e-4 * random(5, *rough.weight.shape), rough.bias  # no zeros, and yet close
    one = solve(problem, tol=1e-10, start=start, progress=seen.append)
    assert any(kept is not None for kept in taken)
    monkeypatch.setattr(native_module, "survivors", lambda *_: None)
    other = solve(problem, tol=1e-10, start=start)
    assert one.outcome is other.outcome is Outcome.CONVERGED
    assert one.certificate.primal == pytest.approx(other.certificate.primal, rel=1e-9)
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-3, atol=1e-4)
    # What is told on the way holds for the whole program, and the certificate is of the whole program.
    assert seen == list(one.trace)
    again = problem.certify(one.weight, one.bias, 1e-10)
    assert one.certificate.dual == pytest.approx(again.dual, rel=1e-12)
    assert all(point.objective - point.relative_gap * problem.zero_loss <= one.certificate.primal + 1e-12 for point in seen)


def test_limits_hold_in_the_smaller_program_too():
    problem = wide_problem(share=0.6)
    short = solve_native(problem, tol=1e-13, max_iterations=3)
    assert short.iterations <= 3
    assert solve_native(problem, tol=1e-13, time_limit=0.0).outcome is Outcome.TIME_LIMIT
