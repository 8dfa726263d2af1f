import math
from itertools import pairwise

import pytest
import torch

from snn_recon_plugin.convex import Features, Logistic, Outcome, Problem, Start, solve
from snn_recon_plugin.convex.solvers.newton import Newton, search
from snn_recon_plugin.convex.solvers.solver import Budget
from snn_recon_plugin.errors import ReconstructionError

from ...versions import OLD_TORCH
from ..helpers import PAIRS, SecondOpinion, every_pair, labels, random, separable, small_problem, smooth_loss, spikes

# The first pair of each loss, and cross-entropy with the ridge.
FEW_PAIRS = [pair for k, pair in enumerate(PAIRS) if pair == ("cross_entropy", "ridge") or pair[0] != PAIRS[k - 1][0]]


def newton(problem, tol=1e-6, start=None, progress=None, max_iterations=200):
    """Newton's method alone, without the rescues of solve."""
    return Newton(max_iterations).solve(problem, start, tol, Budget(problem), progress)


@every_pair
def test_a_warm_start_needs_fewer_iterations(loss, penalty):
    problem = small_problem(loss, penalty, n=200, p=60, share=0.01)
    neighbour = solve(problem.with_strength(1.02 * problem.strength), tol=1e-9)
    cold, warm = solve(problem, tol=1e-9), solve(problem, tol=1e-9, start=(neighbour.weight, neighbour.bias))
    assert warm.certificate.reached
    assert cold.certificate.reached
    # Torch 2.4 rounds so that two of the programs have an unlucky step.
    once = cold.statistics.iterations == 1  # one exact step is enough, from anywhere
    assert once or warm.statistics.products < (2 if OLD_TORCH else 1) * cold.statistics.products
    again = solve(problem, tol=1e-9, start=cold.as_start()._replace(dual=cold.certificate.dual))
    assert again.statistics.iterations == 0
    assert torch.equal(again.weight, cold.weight)
    single = solve(problem, tol=1e-4, start=(cold.weight.float(), cold.bias.float()))
    assert (single.statistics.iterations, single.weight.dtype) == (0, torch.float64)


@pytest.mark.parametrize("far", [10.0, 1e4])
@smooth_loss
def test_a_poor_start_costs_time_but_not_the_answer(loss, far):
    """A refit starts from the network's own readout, whatever its weights and bias are."""
    problem = small_problem(loss)
    start = random(1, 3, 8, scale=far), far * torch.tensor([1.0, 0.0, -1.0])
    solution = solve(problem, start=start, time_limit=60.0)
    assert solution.outcome is Outcome.CONVERGED
    assert solution.certificate.primal == pytest.approx(solve(problem).certificate.primal, rel=1e-5)


@every_pair
def test_the_same_bits_twice_and_the_generator_untouched(loss, penalty):
    one = solve(small_problem(loss, penalty, n=60, p=20), tol=1e-9)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    two = solve(small_problem(loss, penalty, n=60, p=20), tol=1e-9)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.bias, two.bias)
    assert (one.certificate, one.statistics.iterations) == (two.certificate, two.statistics.iterations)


@pytest.mark.parametrize("most", [0, 1])
def test_a_limit_of_iterations_leaves_a_certified_point(most):
    problem = small_problem(n=80, p=30, share=0.02)
    solution = newton(problem, tol=1e-10, max_iterations=most)
    assert solution.outcome is Outcome.ITERATION_LIMIT
    assert (len(solution.statistics.trace), solution.statistics.iterations) == (most + 1, most)
    assert not solution.certificate.reached
    assert solution.certificate.gap == pytest.approx(problem.certify(solution.weight, solution.bias, 1e-10).gap, rel=1e-9)


@every_pair
def test_a_tolerance_below_rounding_ends_with_the_best_point_and_the_truth(loss, penalty):
    solution = newton(small_problem(loss, penalty, n=60, p=20), tol=1e-30)
    assert solution.certificate.relative_gap <= min(point.relative_gap for point in solution.statistics.trace) + 1e-18
    assert solution.outcome in (Outcome.STALLED, Outcome.CONVERGED)
    assert solution.certificate.reached == (solution.certificate.relative_gap <= 1e-30)
    assert solution.certificate.relative_gap < 1e-11


# -- hard inputs ------------------------------------------------------------------------------------------------------
RAW = spikes(0, 30, 8)
SPIKES, FIRST, THIRD = RAW.double(), torch.arange(8) == 0, torch.arange(8) == 2
DUPLICATED = torch.cat([RAW, RAW, RAW[:, :3]], 1)

HARD = {
    "zero column": {"features": torch.where(THIRD, 0.0, SPIKES)},
    "constant column": {"features": torch.where(THIRD, 5.0, SPIKES)},
    "large constant column": {"features": torch.where(THIRD, 1e8 / 3, SPIKES)},
    "duplicated columns": {"features": DUPLICATED},
    "duplicated columns, small strength": {"features": DUPLICATED, "share": 1e-3},
    "one column times 1e8": {"features": torch.where(FIRST, 1e8, 1.0) * SPIKES},
    "one column times 1e-8": {"features": torch.where(FIRST, 1e-8, 1.0) * SPIKES},
    "columns times 1e8 and 1e-8": {"features": torch.where(FIRST, 1e8, torch.where(THIRD, 1e-8, 1.0)) * SPIKES},
    "all times 1e8": {"features": 1e8 * SPIKES},
    "all times 1e-8": {"features": 1e-8 * SPIKES},
    "all times 1e8 in float32": {"features": (1e8 * SPIKES).float()},
    "far from the origin": {"features": SPIKES + 1e6},
    "fewer samples than features": {"n": 12, "p": 40},
    "many samples": {"n": 1500, "p": 3},
    "separable": {"features": separable(), "share": 1e-3},
    "small strength": {"share": 1e-4},
    "absent class": {"num_outputs": 5},
    "one sample per class": {"n": 3, "classes": 3},
    "two samples": {"n": 2, "classes": 2},
    "one sample has all the weight": {"row_weights": torch.eye(30)[7] + 1e-6},
    "samples of weight zero": {"row_weights": (torch.arange(30) % 2).double()},
}


# A third of all, each input with every loss and penalty in turn.
HARD_CASES = [
    pytest.param(*pair, hard, marks=() if (first + second) % 3 == 0 else pytest.mark.slow)
    for first, pair in enumerate(FEW_PAIRS)
    for second, hard in enumerate(HARD)
]


@pytest.mark.parametrize(("loss", "penalty", "hard"), HARD_CASES)
def test_hard_inputs_are_certified(loss, penalty, hard):
    problem = small_problem(loss, penalty, **HARD[hard])
    solution = solve(problem, time_limit=60.0)
    assert solution.outcome is Outcome.CONVERGED
    assert solution.certificate.relative_gap <= 1e-6
    assert solution.statistics.seconds < 60
    second = SecondOpinion(problem, labels(0, problem.features.num_samples, HARD[hard].get("classes", 3)))
    primal = second.objective(solution.weight.numpy(), solution.bias.numpy())
    # Uncentred products, as here, lose digits where features lie far from the origin.
    assert solution.certificate.primal == pytest.approx(primal, rel=1e-6)


@every_pair
def test_columns_without_information_get_no_weight(loss, penalty):
    features = spikes(0, 30, 8)
    features[:, 1], features[:, 6] = 0, 1
    solution = solve(small_problem(loss, penalty, features=features), tol=1e-4)
    assert solution.weight.any()
    assert not solution.weight[:, [1, 6]].any()
    for value in (0.0, 3.0):  # only the bias is left
        solution = solve(small_problem(loss, penalty, features=torch.full((30, 4), value), strength=0.01), tol=1e-9)
        assert solution.certificate.reached
        assert not solution.weight.any()


@pytest.mark.parametrize(("loss", "penalty"), [("cross_entropy", "group_l1"), ("logistic", "l1"), ("squared", "ridge")])
@pytest.mark.parametrize("size", [1e-200, 1e-100, 1e100, 1e200])
def test_absurd_scales_end_in_a_certified_point_or_a_clear_error(loss, penalty, size):
    try:
        problem = Problem(Features(SPIKES * size), labels(0, 30, 3), loss=loss, penalty=penalty, strength=0.01)
        solution = solve(problem, time_limit=1.0)
    except ReconstructionError:
        return
    assert torch.isfinite(solution.weight).all()
    assert solution.certificate.reached == (solution.outcome is Outcome.CONVERGED)
    assert not math.isnan(solution.certificate.gap)


class Broken(Logistic):
    """It stops being finite after the first evaluation."""

    name = "broken"
    calls = 0

    def value(self, scores, targets):
        self.calls += 1
        return super().value(scores, targets) * (1.0 if self.calls < 3 else torch.nan)


def test_iterates_that_stop_being_finite_are_reported_with_the_last_good_point():
    features = Features(RAW, None)  # no bias: its solver would meet the NaN first
    problem = Problem(features, labels(0, 30, 3), loss=Broken(), penalty="ridge", strength=0.01)
    solution = newton(problem)
    assert solution.outcome in (Outcome.NON_FINITE, Outcome.STALLED)
    assert torch.isfinite(solution.weight).all()
    assert math.isfinite(solution.certificate.primal)
    assert not solution.certificate.reached


@every_pair
def test_every_certified_point_lowers_the_objective_and_none_the_bound(loss, penalty):
    """Every dual point bounds the optimum, so the best of all is kept."""
    problem, seen = small_problem(loss, penalty, n=120, p=40, share=0.02), []
    neighbour = newton(problem.with_strength(3 * problem.strength), tol=1e-6)
    solution = newton(problem, tol=1e-9, start=Start(neighbour.weight, neighbour.bias), progress=seen.append)
    assert tuple(seen) == solution.statistics.trace
    assert all(later.objective <= earlier.objective + 1e-12 for earlier, later in pairwise(seen))
    assert [point.active for point in (seen[0], seen[-1])] == [int(each.weight.any(0).sum()) for each in (neighbour, solution)]
    bounds = [point.objective - point.relative_gap * problem.zero_loss for point in seen]
    assert all(after >= before - 1e-15 for before, after in pairwise(bounds))
    assert max(bounds) <= newton(problem, tol=1e-11).certificate.primal + 1e-12
    assert solution.certificate.gap <= problem.certify(solution.weight, solution.bias, 1e-9).gap + 1e-15
    assert solution.certificate.relative_gap == pytest.approx(min(point.relative_gap for point in seen), abs=1e-15)


# -- line search -------------------------------------------------------------------------------------------------------
def to_the_optimum(problem, factors):
    """From zero, a multiple of the way to the optimum for each output."""
    best, point = solve(problem, tol=1e-12), problem.evaluate(*problem.zero_point())
    factors = torch.tensor(factors, dtype=torch.float64)
    weight, bias = factors[:, None] * best.weight, factors * (best.bias - point.bias)
    return point, best, (weight, bias, weight)


def test_each_output_goes_as_far_as_is_best_for_it():
    """A quadratic program falls up to the optimum, and rises again beyond."""
    problem = small_problem("squared", "ridge")
    point, best, move = to_the_optimum(problem, [1.0, 8.0, -1.0])
    sizes, moved = search(problem, point, move)
    assert sizes.tolist() == pytest.approx([1.0, 1 / 8, 0.0], abs=1e-5)
    torch.testing.assert_close(moved.weight[:2], best.weight[:2], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moved.bias[:2], best.bias[:2], rtol=1e-4, atol=1e-6)
    assert float(moved.weight[2].abs().max()) < 1e-5
    assert moved.objective == pytest.approx(problem.objective(moved.weight, moved.bias), rel=1e-12)


@pytest.mark.parametrize(("factor", "size"), [(1.0, 1.0), (8.0, 1 / 8), (-1.0, 0.0)])
@pytest.mark.parametrize("penalty", ["ridge", "group_l1"])  # without kinks, and with
def test_outputs_that_share_a_loss_go_together(penalty, factor, size):
    problem = small_problem("cross_entropy", penalty)
    point, best, move = to_the_optimum(problem, [factor] * 3)
    sizes, moved = search(problem, point, move)
    assert sizes.tolist() == pytest.approx([size], abs=1e-4)
    torch.testing.assert_close(moved.weight, best.weight if size else torch.zeros_like(best.weight), rtol=1e-3, atol=1e-4)


def test_a_weight_that_crosses_a_kink_stays_at_zero_for_its_output_alone():
    problem = small_problem("squared", "l1")
    point = problem.evaluate(torch.full((3, 8), 1e-3), torch.zeros(3))
    output, neuron = divmod(int(point.gradient.argmax()), 8)  # loss and penalty fall as that weight falls
    weight = torch.zeros(3, 8, dtype=torch.float64)
    weight[output, neuron] = -1.0  # far beyond zero, also at the shortest length, while the model lies at the start
    sizes, moved = search(problem, point, (weight, torch.zeros(3, dtype=torch.float64), point.weight))
    expected = point.weight.clone()
    expected[output, neuron] = 0.0
    assert sizes[output] > 0
    assert torch.equal(moved.weight, expected)
