import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snn_recon_plugin.convex import Design, Outcome, Problem, native, screening, solve
from snn_recon_plugin.convex.native import solve_native
from snn_recon_plugin.convex.screening import Screen, safe_zeros, survivors

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
    monkeypatch.setattr(native, "_NEARLY", 0.0)  # however near the end
    original = screening.survivors
    monkeypatch.setattr(screening, "survivors", lambda *given: taken.append(original(*given)) or taken[-1])
    rough = solve(problem, tol=1e-5)
    start = rough.weight + 1e-4 * random(5, *rough.weight.shape), rough.bias  # no zeros, and yet close
    one = solve(problem, tol=1e-10, start=start, progress=seen.append)
    assert any(kept is not None for kept in taken)
    monkeypatch.setattr(screening, "survivors", lambda *_: None)
    other = solve(problem, tol=1e-10, start=start)
    assert one.outcome is other.outcome is Outcome.CONVERGED
    assert one.certificate.primal == pytest.approx(other.certificate.primal, rel=1e-9)
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-3, atol=1e-4)
    # What is told on the way holds for the whole program, and the certificate is of the whole program.
    assert seen == list(one.trace)
    again = problem.certify(one.weight, one.bias, 1e-10)
    assert one.certificate.dual == pytest.approx(again.dual, rel=1e-12)
    assert all(point.objective - point.relative_gap * problem.zero_loss <= one.certificate.primal + 1e-12 for point in seen)


def test_a_screen_narrows_again_and_again_and_widens_once():
    problem = wide_problem(p=400, share=0.6)
    screen = Screen(problem)
    point = problem.evaluate(*problem.zero_point())
    assert screen.narrow(point) is None
    sizes = []
    for tol in (1e-4, 1e-10):
        found = solve(screen.problem, tol=tol)
        narrower = screen.narrow(screen.problem.evaluate(found.weight, found.bias))
        point = point if narrower is None else narrower[0]
        sizes.append(screen.problem.design.num_features)
    assert screen.narrowed
    assert sizes[-1] < 200
    best = solve(screen.problem, tol=1e-10)
    whole = screen.widen(screen.problem.evaluate(best.weight, best.bias))
    assert screen.problem is problem
    assert not screen.narrowed
    assert whole.weight.shape == (3, 400)
    assert whole.gap <= 1e-9 * problem.zero_loss
    assert screen.narrow(whole) is None
    assert screen.widen(whole) is whole


@pytest.mark.parametrize("loss", ["cross_entropy", "hinge", "multi_margin", "squared_hinge", "squared"])
def test_most_columns_without_information(loss):
    """Dead and always-firing neurons are screened whatever the gap is, and take nothing from the start."""
    classes = labels(0, 60, 3)
    features = torch.zeros(60, 100, dtype=torch.uint8)
    features[:, 20:50] = 1
    features[:, 50:70] = torch.randint(2, (60, 20), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    kept = Problem(Design(features[:, 50:70]), classes, loss=loss, penalty="l1", strength=5e-3)
    solution = solve(Problem(Design(features), classes, loss=loss, penalty="l1", strength=5e-3))
    assert solution.outcome is Outcome.CONVERGED
    assert solution.certificate.primal == pytest.approx(solve(kept).certificate.primal, abs=3e-6 * kept.zero_loss)
    assert not solution.weight[:, :50].any()
    assert not solution.weight[:, 70:].any()


def test_limits_hold_in_the_smaller_program_too():
    problem = wide_problem(share=0.6)
    rough = solve(problem, tol=1e-5)
    start = rough.weight + 1e-4 * random(5, *rough.weight.shape), rough.bias
    seen = []
    short = solve_native(problem, tol=1e-15, start=start, max_iterations=4, progress=seen.append)
    assert short.iterations <= 4
    assert short.weight.shape == problem.zero_point()[0].shape
    assert short.certificate.dual == pytest.approx(problem.certify(short.weight, short.bias, 1e-15).dual, rel=1e-12)


def test_a_program_that_is_all_but_solved_is_not_made_smaller(monkeypatch):
    problem = wide_problem(share=0.6)
    rough = solve(problem, tol=1e-5)
    start = rough.weight + 1e-4 * random(5, *rough.weight.shape), rough.bias
    gaps = []
    original = screening.survivors
    monkeypatch.setattr(screening, "survivors", lambda whole, point: gaps.append(point.gap) or original(whole, point))
    assert solve(problem, tol=1e-10, start=start).outcome is Outcome.CONVERGED
    assert gaps
    assert min(gaps) > 0.99 * native._NEARLY * 1e-10 * problem.zero_loss
    monkeypatch.setattr(native, "_NEARLY", 1e12)
    gaps.clear()
    assert solve(problem, tol=1e-10, start=start).outcome is Outcome.CONVERGED
    assert not gaps
