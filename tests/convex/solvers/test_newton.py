import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from snn_recon_plugin.convex import Features, Logistic, Outcome, Problem, solve
from snn_recon_plugin.convex.native import solve_native
from snn_recon_plugin.convex.smoothing import solve_smoothed
from snn_recon_plugin.errors import ReconstructionError

from ..helpers import (
    BIASES,
    KINKED_LOSSES,
    LOSS_FORMULAS,
    LOSS_NAMES,
    OLD_TORCH,
    PAIRS,
    PENALTY_FORMULAS,
    PENALTY_NAMES,
    SMOOTH_LOSSES,
    SPARSE_PENALTIES,
    TWO_OUTPUTS,
    SecondOpinion,
    every_pair,
    labels,
    pairs_with_bias,
    random,
    small_problem,
    spikes,
)

smooth_loss = pytest.mark.parametrize("loss", SMOOTH_LOSSES)
few_pairs = pytest.mark.parametrize(("loss", "penalty"), [*PAIRS[: len(PENALTY_NAMES) : 2], *PAIRS[len(PENALTY_NAMES) :: 2]])
every_bias = pytest.mark.parametrize("bias", BIASES)
sparse_penalty = pytest.mark.parametrize("penalty", SPARSE_PENALTIES)

PRODUCT = [(loss, penalty) for loss in LOSS_NAMES for penalty in PENALTY_NAMES]
COMBINATIONS = [(*pair, BIASES[k % len(BIASES)]) for k, pair in enumerate(PRODUCT)]


@pytest.mark.parametrize(("seed", "combination"), list(enumerate(COMBINATIONS)), ids=map("-".join, COMBINATIONS))
def test_scs_and_clarabel_find_the_same_optimum(seed, combination):
    """A random program of its own for every loss, penalty and kind of bias."""
    loss, penalty, bias = combination
    problem = small_problem(loss, penalty, seed=seed, n=24 + seed % 10, p=5 + seed % 4, bias=bias, share=(0.05, 0.2, 0.6)[seed % 3])
    native = solve(problem, tol=2e-7 if loss in KINKED_LOSSES else 1e-9)
    assert native.outcome is Outcome.CONVERGED
    for backend in ("scs", "clarabel"):
        other = solve(problem, solver=backend, tol=1e-7)
        assert other.certificate.primal == pytest.approx(native.certificate.primal, rel=1e-6)
        assert native.certificate.dual <= other.certificate.primal + 1e-12


@pairs_with_bias
def test_the_solution_obeys_the_optimality_conditions(loss, penalty, bias):
    """KKT, from the second opinion's gradient: G = -strength * a subgradient of the penalty, and no slope in the bias."""
    problem = small_problem(loss, penalty, bias=bias, n=40, p=12, share=0.4)
    solution = solve(problem, tol=1e-12)
    weight = solution.weight.numpy()
    gradient, slope = SecondOpinion(problem, labels(0, 40, 3)).slopes(weight, solution.bias.numpy())
    if bias == "none":
        assert not solution.bias.any()
    else:
        assert np.abs(slope).max() < 1e-12
    strength, close = problem.strength, {"rtol": 1e-4, "atol": 1e-4 * problem.strength}
    if penalty.endswith("ridge"):
        gradient = gradient + strength * weight  # what is left for the sparse penalty, if there is one
    if penalty == "ridge":
        assert np.abs(gradient).max() < close["atol"]
        return
    assert PENALTY_FORMULAS[penalty][1](gradient).max() <= strength * (1 + 1e-4)
    if penalty.startswith("l1"):
        used = weight != 0
        np.testing.assert_allclose(gradient[used], -strength * np.sign(weight[used]), **close)
    else:
        used = np.abs(weight).max(0) > 0
        units = weight[:, used] / np.sqrt((weight[:, used] ** 2).sum(0))
        np.testing.assert_allclose(gradient[:, used], -strength * units, **close)
    assert 0 < used.sum() < used.size


@every_pair
def test_the_features_type_does_not_change_the_answer(loss, penalty):
    raw = spikes(0, 30, 8)
    dtypes = (torch.bool, torch.uint8, torch.float32, torch.float64)
    solutions = [solve(small_problem(loss, penalty, features=raw.to(dtype)), tol=1e-9) for dtype in dtypes]
    for other in solutions[1:]:
        assert other.certificate.primal == pytest.approx(solutions[0].certificate.primal, rel=1e-8)
        torch.testing.assert_close(other.weight, solutions[0].weight, rtol=1e-3, atol=1e-3)


@every_pair
def test_row_weights_are_repeated_rows(loss, penalty):
    counts = 1 + torch.arange(30) % 2
    one = small_problem(loss, penalty, row_weights=counts, strength=0.02)
    repeated = Features(spikes(0, 30, 8).repeat_interleave(counts, 0))
    other = Problem(repeated, labels(0, 30, 3).repeat_interleave(counts), loss=loss, penalty=penalty, strength=0.02)
    assert solve(one, tol=1e-9).certificate.primal == pytest.approx(solve(other, tol=1e-9).certificate.primal, rel=1e-8)


@every_pair
def test_the_order_of_samples_and_features_does_not_matter(loss, penalty):
    order, columns = torch.randperm(30, generator=torch.Generator().manual_seed(1)), torch.arange(7, -1, -1)
    problem = small_problem(loss, penalty)
    design = Features(problem.features.matrix[order][:, columns])
    shuffled = Problem(design, labels(0, 30, 3)[order], loss=loss, penalty=penalty, strength=problem.strength)
    one, other = solve(problem, tol=1e-10), solve(shuffled, tol=1e-10)
    torch.testing.assert_close(other.weight[:, columns.argsort()], one.weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("loss", "penalty"), [pair for pair in PAIRS if pair[0] not in TWO_OUTPUTS])
def test_one_output_is_solved(loss, penalty):
    targets = random(5, 30) if loss == "squared" else labels(5, 30, 2)
    problem = Problem(Features(spikes(0, 30, 8)), targets, loss=loss, penalty=penalty, strength=0.02, num_outputs=1)
    solution = solve(problem, tol=1e-9)
    assert solution.weight.shape == (1, 8)
    assert solution.outcome is Outcome.CONVERGED


@every_pair
def test_a_warm_start_needs_fewer_iterations(loss, penalty):
    problem = small_problem(loss, penalty, n=200, p=60, share=0.01)
    neighbour = solve(problem.with_strength(1.02 * problem.strength), tol=1e-9)
    cold, warm = solve(problem, tol=1e-9), solve(problem, tol=1e-9, start=(neighbour.weight, neighbour.bias))
    assert warm.certificate.reached
    assert cold.certificate.reached
    # Torch 2.4 rounds so that two of the programs have an unlucky step.
    assert warm.products < (2 if OLD_TORCH else 1) * cold.products
    again = solve(problem, tol=1e-9, start=(cold.weight, cold.bias))
    assert again.iterations == 0
    assert torch.equal(again.weight, cold.weight)


@pytest.mark.parametrize("far", [10.0, 1e4])
@smooth_loss
def test_a_poor_start_costs_time_but_not_the_answer(loss, far):
    """A refit starts from the network's own readout, whatever its weights and bias are."""
    problem = small_problem(loss)
    start = random(1, 3, 8, scale=far), far * torch.tensor([1.0, 0.0, -1.0])
    solution = solve(problem, start=start, time_limit=60.0)
    assert solution.outcome is Outcome.CONVERGED
    assert solution.certificate.primal == pytest.approx(solve(problem).certificate.primal, rel=1e-5)


def test_a_start_in_single_precision_is_taken():
    problem = small_problem()
    solution = solve(problem, tol=1e-8)
    again = solve(problem, tol=1e-4, start=(solution.weight.float(), solution.bias.float()))
    assert again.iterations == 0
    assert again.weight.dtype == torch.float64


@every_pair
def test_the_same_bits_twice_and_the_generator_untouched(loss, penalty):
    one = solve(small_problem(loss, penalty, n=60, p=20), tol=1e-9)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    two = solve(small_problem(loss, penalty, n=60, p=20), tol=1e-9)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.bias, two.bias)
    assert (one.certificate, one.iterations) == (two.certificate, two.iterations)


@sparse_penalty
@smooth_loss
@every_bias
def test_above_the_critical_strength_zero_is_certified(loss, penalty, bias):
    problem = small_problem(loss, penalty, bias=bias, share=1.0 + 1e-9)
    solution = solve(problem, tol=1e-12)
    assert solution.outcome is Outcome.CONVERGED
    assert not solution.weight.any()
    assert solution.statistics.trace[-1].active == 0
    assert solution.certificate.gap <= 1e-12
    # Also from weights that are not zero.
    start = random(1, 3, 8), torch.zeros(3)
    assert solve(problem.with_strength(2 * problem.strength), start=start).certificate.reached


def test_the_time_limit_stops_with_a_certified_point():
    problem = small_problem()
    solution = solve_native(problem, time_limit=0.0)
    assert solution.outcome is Outcome.TIME_LIMIT
    assert solution.statistics.iterations == 0
    assert not solution.certificate.reached
    assert solution.certificate.gap > 0
    assert solution.certificate.primal == pytest.approx(problem.objective(solution.weight, solution.bias))


@pytest.mark.parametrize("limit", [0, 1])
def test_the_iteration_limit_stops_with_a_certified_point(limit):
    problem = small_problem(n=80, p=30, share=0.02)
    solution = solve_native(problem, tol=1e-10, max_iterations=limit)
    assert solution.outcome is Outcome.ITERATION_LIMIT
    assert solution.statistics.iterations == limit
    assert len(solution.statistics.trace) == limit + 1
    assert not solution.certificate.reached
    exact = problem.certify(solution.weight, solution.bias, 1e-10)
    assert solution.certificate.gap == pytest.approx(exact.gap, rel=1e-9)


@every_pair
def test_a_tolerance_below_rounding_ends_with_the_best_point_and_the_truth(loss, penalty):
    solution = solve_native(small_problem(loss, penalty, n=60, p=20), tol=1e-30)
    assert solution.certificate.relative_gap <= min(point.relative_gap for point in solution.statistics.trace) + 1e-18
    assert solution.outcome in (Outcome.STALLED, Outcome.CONVERGED)
    assert solution.certificate.reached == (solution.certificate.relative_gap <= 1e-30)
    assert solution.certificate.relative_gap < 1e-11


def test_the_trace_tells_the_way():
    seen = []
    solution = solve_native(small_problem(n=80, p=30, share=0.02), tol=1e-9, progress=seen.append)
    assert tuple(seen) == solution.statistics.trace
    seconds = [point.seconds for point in solution.statistics.trace]
    assert seconds == sorted(seconds)
    assert solution.statistics.seconds >= seconds[-1]
    objectives = [point.objective for point in solution.statistics.trace]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(objectives))
    assert solution.certificate.relative_gap == min(point.relative_gap for point in solution.statistics.trace)
    assert solution.statistics.trace[0].active == 0
    assert solution.statistics.trace[-1].active == int(solution.weight.any(0).sum())


def test_an_error_in_progress_is_passed_on():
    def stop(point):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve_native(small_problem(), progress=stop)


# -- the hinge --------------------------------------------------------------------------------------------------------


def hinge_problem(penalty="l1", **options):
    return small_problem("hinge", penalty, **{"n": 16, "p": 4, "classes": 2, "share": 0.05, **options})


def test_the_hinges_certificate_is_of_the_hinge_itself():
    problem = hinge_problem()
    solution = solve_smoothed(problem)
    assert solution.outcome is Outcome.CONVERGED
    second = SecondOpinion(problem, labels(0, 16, 2))
    assert solution.certificate.primal == pytest.approx(second.objective(solution.weight.numpy(), solution.bias.numpy()), rel=1e-12)
    assert solution.certificate.relative_gap == pytest.approx(solution.statistics.trace[-1].relative_gap)
    objectives = [point.objective for point in solution.statistics.trace]
    assert objectives == sorted(objectives, reverse=True)
    assert (solution.statistics.solver, solution.statistics.products > 0) == ("native", True)


def test_highs_finds_the_same_optimum_of_the_linear_program():
    problem = hinge_problem()
    native = solve(problem, tol=1e-7)
    assert solve(problem, solver="highs").certificate.primal == pytest.approx(native.certificate.primal, rel=1e-6)


def test_the_hinges_limits_and_start():
    problem = hinge_problem()
    assert solve_smoothed(problem, time_limit=0.0).outcome is Outcome.TIME_LIMIT
    short = solve_smoothed(problem, max_iterations=1)
    assert short.outcome is Outcome.ITERATION_LIMIT
    assert not short.certificate.reached
    assert short.certificate.gap > 0
    best = solve(problem)
    seen = []
    again = solve_smoothed(problem, tol=1e-4, start=(best.weight, best.bias), progress=seen.append)
    assert again.outcome is Outcome.CONVERGED
    assert tuple(seen) == again.trace
    impossible = solve_smoothed(problem, tol=1e-30, time_limit=30.0)
    assert impossible.certificate.reached == (impossible.outcome is Outcome.CONVERGED)
    assert impossible.certificate.relative_gap < 1e-6


@pytest.mark.parametrize("solver", [solve, solve_smoothed])
def test_the_hinge_twice_gives_the_same_bits(solver):
    one, two = solver(hinge_problem()), solver(hinge_problem())
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.bias, two.bias)


@pytest.mark.parametrize(
    "options",
    [
        {"share": 1.01},
        {"bias": "none", "penalty": "group_l1"},
        {"num_outputs": 5},
        {"n": 3, "classes": 3},
        {"n": 8, "p": 12, "penalty": "ridge"},
        {"features": spikes(0, 16, 4).double() * torch.tensor([1e8, 1e-8, 0, 1])},
    ],
    ids=["above the critical strength", "no bias", "absent classes", "one sample per class", "n < P", "scales"],
)
@pytest.mark.parametrize("solver", [solve, solve_smoothed])
def test_hard_inputs_of_the_hinge(options, solver):
    solution = solver(hinge_problem(**options), time_limit=60.0)
    assert solution.outcome is Outcome.CONVERGED
    if options.get("share", 0) > 1:
        assert float(solution.weight.abs().max()) < 1e-5


@pytest.mark.parametrize("loss", KINKED_LOSSES)
def test_a_stage_that_is_too_narrow_is_followed_by_a_wider_one(loss):
    """One stage alone took all iterations here, and left a gap of 1e-3."""
    solution = solve(small_problem(loss, "group_l1", share=0.01))
    assert solution.outcome is Outcome.CONVERGED
    assert solution.statistics.iterations < 300


# -- hard inputs ------------------------------------------------------------------------------------------------------


def _scaled(*sizes):
    features = spikes(0, 30, 8).double()
    for j, size in sizes:
        features[:, j] *= size
    return features


def _set(column, value):
    features = spikes(0, 30, 8).double()
    features[:, column] = value
    return features


def _duplicated():
    features = spikes(0, 30, 8)
    return torch.cat([features, features, features[:, :3]], 1)


def _separable():
    return torch.cat([spikes(0, 30, 8).double(), torch.eye(3, dtype=torch.float64)[labels(0, 30, 3)]], 1)


HARD = {
    "zero column": {"features": _set(2, 0.0)},
    "constant column": {"features": _set(2, 5.0)},
    "large constant column": {"features": _set(2, 1e8 / 3)},
    "duplicated columns": {"features": _duplicated()},
    "duplicated columns, small strength": {"features": _duplicated(), "share": 1e-3},
    "one column times 1e8": {"features": _scaled((0, 1e8))},
    "one column times 1e-8": {"features": _scaled((0, 1e-8))},
    "columns times 1e8 and 1e-8": {"features": _scaled((0, 1e8), (1, 1e-8))},
    "all times 1e8": {"features": _scaled(*((j, 1e8) for j in range(8)))},
    "all times 1e-8": {"features": _scaled(*((j, 1e-8) for j in range(8)))},
    "all times 1e8 in float32": {"features": _scaled(*((j, 1e8) for j in range(8))).float()},
    "far from the origin": {"features": spikes(0, 30, 8).double() + 1e6},
    "fewer samples than features": {"n": 12, "p": 40},
    "many samples": {"n": 1500, "p": 3},
    "separable": {"features": _separable(), "share": 1e-3},
    "small strength": {"share": 1e-4},
    "absent class": {"num_outputs": 5},
    "one sample per class": {"n": 3, "classes": 3},
    "two samples": {"n": 2, "classes": 2},
    "one sample has all the weight": {"row_weights": torch.eye(30)[7] + 1e-6},
    "samples of weight zero": {"row_weights": (torch.arange(30) % 2).double()},
}


@pytest.mark.parametrize("hard", HARD)
@few_pairs
def test_hard_inputs_are_certified(loss, penalty, hard):
    problem = small_problem(loss, penalty, **HARD[hard])
    solution = solve(problem, time_limit=60.0)
    assert solution.outcome is Outcome.CONVERGED
    assert solution.certificate.relative_gap <= 1e-6
    assert solution.statistics.seconds < 60
    if loss in LOSS_FORMULAS and penalty in PENALTY_FORMULAS:
        second = SecondOpinion(problem, labels(0, problem.features.num_samples, HARD[hard].get("classes", 3)))
        primal = second.objective(solution.weight.numpy(), solution.bias.numpy())
        # Uncentred products, as here, lose digits where features lie far from the origin.
        assert solution.certificate.primal == pytest.approx(primal, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 3.0])
@every_pair
def test_features_without_information_leave_only_the_bias(loss, penalty, value):
    features = torch.full((30, 4), value)
    solution = solve(Problem(Features(features), labels(0, 30, 3), loss=loss, penalty=penalty, strength=0.01), tol=1e-9)
    assert solution.certificate.reached
    assert not solution.weight.any()


@every_pair
def test_columns_without_information_get_no_weight(loss, penalty):
    features = spikes(0, 30, 8)
    features[:, 1], features[:, 6] = 0, 1
    solution = solve(small_problem(loss, penalty, features=features))
    assert solution.weight.any()
    assert not solution.weight[:, [1, 6]].any()


@every_pair
def test_separable_data_at_a_tiny_strength_ends_in_time_with_an_honest_certificate(loss, penalty):
    problem = small_problem(loss, penalty, features=_separable(), share=1e-6)
    solution = solve_native(problem, time_limit=4.0)
    assert solution.statistics.seconds < 20
    assert solution.certificate.reached == (solution.outcome is Outcome.CONVERGED)
    exact = problem.certify(solution.weight, solution.bias, 1e-6)
    assert solution.certificate.primal == pytest.approx(exact.primal, rel=1e-9)
    assert -1e-12 <= solution.certificate.gap <= 1.001 * exact.gap + 1e-9  # an earlier point's dual value may be better
    assert solution.certificate.relative_gap < 1e-3


@pytest.mark.parametrize("loss", ["squared_hinge", "squared_multi_margin"])
@pytest.mark.parametrize("penalty", PENALTY_NAMES)
def test_flat_regions_are_left_from_above(loss, penalty):
    """From zero the first steps end where no sample lacks its margin, and nothing but the penalty's tiny slope moves."""
    problem = small_problem(loss, penalty, features=_separable(), share=1e-6)
    solution = solve(problem)
    assert solution.outcome is Outcome.CONVERGED
    assert solution.statistics.iterations < 60
    inside = 100 * solution.weight, 100 * solution.bias
    again = solve(problem, start=inside)
    assert again.outcome is Outcome.CONVERGED
    assert again.certificate.primal == pytest.approx(solution.certificate.primal, abs=2e-6 * problem.zero_loss)
    short = solve_native(problem, tol=1e-12, max_iterations=3)
    assert short.iterations <= 3
    assert not short.certificate.reached
    stuck = solve_native(problem, escape=False, max_iterations=50)
    if not penalty.startswith("group_l1"):  # there a better dual point than the last can be enough
        assert stuck.certificate.reached == (penalty == "ridge")


@every_pair
def test_a_single_class_is_certified(loss, penalty):
    """Nothing to tell apart: the bias alone does it all."""
    problem = Problem(Features(spikes(0, 30, 8)), torch.zeros(30, dtype=torch.int64), loss=loss, penalty=penalty, strength=0.01)
    solution = solve(problem)
    assert solution.certificate.reached
    assert solution.certificate.primal == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("loss", "penalty"), [("cross_entropy", "group_l1"), ("logistic", "l1"), ("squared", "ridge")])
@pytest.mark.parametrize("size", [1e-200, 1e-100, 1e100, 1e200])
def test_absurd_scales_end_in_a_certified_point_or_a_clear_error(loss, penalty, size):
    features = spikes(0, 30, 8).double() * size
    try:
        problem = Problem(Features(features), labels(0, 30, 3), loss=loss, penalty=penalty, strength=0.01)
        solution = solve(problem, time_limit=60.0)
    except ReconstructionError:
        return
    assert torch.isfinite(solution.weight).all()
    assert solution.certificate.reached == (solution.outcome is Outcome.CONVERGED)
    assert not math.isnan(solution.certificate.gap)


class Broken(Logistic):
    """Its gradient stops being finite after the first evaluation."""

    name = "broken"
    calls = 0

    def value(self, scores, targets):
        self.calls += 1
        return super().value(scores, targets) * (1.0 if self.calls < 4 else torch.nan)


def test_iterates_that_stop_being_finite_are_reported_with_the_last_good_point():
    design = Features(spikes(0, 30, 8), None)  # no bias: its solver would meet the NaN first
    problem = Problem(design, labels(0, 30, 3), loss=Broken(), penalty="ridge", strength=0.01)
    solution = solve_native(problem)
    assert solution.outcome in (Outcome.NON_FINITE, Outcome.STALLED)
    assert torch.isfinite(solution.weight).all()
    assert math.isfinite(solution.certificate.primal)
    assert not solution.certificate.reached


@every_pair
def test_the_lower_bound_never_falls_and_never_passes_the_optimum(loss, penalty):
    """A dual point bounds the optimum whichever point it came from: a step that spoils it must not lose the better one before."""
    problem = small_problem(loss, penalty, n=120, p=40, share=0.02)
    neighbour = solve_native(problem.with_strength(3 * problem.strength), tol=1e-6)
    solution = solve_native(problem, tol=1e-9, start=(neighbour.weight, neighbour.bias))
    bounds = [point.objective - point.relative_gap * problem.zero_loss for point in solution.statistics.trace]
    assert all(after >= before - 1e-15 for before, after in pairwise(bounds))
    exact = solve_native(problem, tol=1e-11)
    assert max(bounds) <= exact.certificate.primal + 1e-12
    assert solution.certificate.gap <= problem.certify(solution.weight, solution.bias, 1e-9).gap + 1e-15
