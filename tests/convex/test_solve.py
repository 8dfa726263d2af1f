"""The entry point: its options, its rule for "auto", and losses and penalties of one's own."""

import math

import pytest
import torch

from snn_recon_plugin.convex import SOLVERS, Curvature, Features, Loss, Outcome, Penalty, Problem, Start, solve
from snn_recon_plugin.convex.solvers.newton import Newton
from snn_recon_plugin.convex.solvers.solver import Budget
from snn_recon_plugin.errors import REMOVED, OptionError

from .helpers import SecondOpinion, collinear_problem, every_penalty, labels, random, separable, small_problem, spikes


@pytest.mark.parametrize("solver", ["auto", "newton", "clarabel"])
@pytest.mark.parametrize("option", ["tol", "time_limit", "max_products"])  # test_checks.py has all values
def test_bad_options(solver, option):
    with pytest.raises(OptionError, match=f"{option}="):
        solve(small_problem(), solver=solver, **{option: math.nan})


@pytest.mark.parametrize("solver", ["nope", "", "SCS", None, "highs", "fista", "augmented_lagrangian"])
def test_unknown_solvers(solver):
    with pytest.raises(OptionError, match=f"solver={solver!r}") as caught:
        solve(small_problem(), solver=solver)
    assert all(name in caught.value.needed for name in ("auto", *SOLVERS))
    if f"solver={solver}" in REMOVED:
        assert caught.value.fix == REMOVED[f"solver={solver}"]


@pytest.mark.parametrize(
    ("weight", "bias"), [((3, 7), (3,)), ((2, 8), (2,)), ((8, 3), (3,)), ((3, 8), (2,)), ((3, 8), (3, 1)), ((24,), (3,))]
)
def test_a_start_of_another_shape(weight, bias):
    with pytest.raises(OptionError, match=r"a start with a weight of shape \(") as caught:
        solve(small_problem(), start=(torch.zeros(weight), torch.zeros(bias)))
    assert "(3, 8) and (3,)" in caught.value.needed


def test_a_solution_shares_no_memory_with_its_start():
    problem = small_problem()
    weight, bias = torch.full((3, 8), 1e-3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    found = solve(problem, start=(weight, bias), max_products=1e-9)
    weight.fill_(1.0)
    assert not bool((found.weight == 1.0).any())


@pytest.mark.parametrize("step", [1e-6, 1e6])
def test_the_optimum_does_not_depend_on_the_first_step(step):
    problem = small_problem(n=60, p=20)
    start, best = solve(problem, tol=1e-1).as_start()._replace(step=step), solve(problem, tol=1e-9)
    for begin in (start, start._replace(weight=0 * start.weight)):
        found = solve(problem, tol=1e-9, start=begin)
        assert found.certificate.reached
        assert found.certificate.primal == pytest.approx(best.certificate.primal, rel=1e-7)


def test_a_start_from_a_larger_strength_brings_no_bound():
    problem = small_problem("squared_hinge", "ridge")
    near = solve(problem.with_strength(100 * problem.strength))
    stopped = solve(problem, start=near.as_start(), max_products=1e-9)
    assert not stopped.certificate.reached
    assert stopped.certificate.dual <= solve(problem).certificate.primal < near.certificate.dual


@pytest.mark.parametrize("penalty", ["group_l1", "ridge"])
def test_autocast_rounds_nothing(penalty):
    problem = small_problem(penalty=penalty)
    with torch.autocast("cpu", torch.bfloat16):
        found = solve(problem)
    assert torch.equal(found.weight, solve(problem).weight)


@pytest.mark.parametrize("solver", ["newton", "clarabel"])
def test_the_default_device_is_not_that_of_the_features(solver):
    problem = small_problem()
    with torch.device("meta"):
        found = solve(problem, solver=solver, tol=1e-4)
    assert found.weight.device.type == "cpu"
    assert torch.equal(found.weight, solve(problem, solver=solver, tol=1e-4).weight)


@pytest.mark.parametrize("size", [1e6, 1e12])
def test_the_size_of_values_does_not_matter(size):
    features, targets = small_problem().features, random(1, 30, 3)
    one, large = (solve(Problem(features, factor * targets, loss="squared", penalty="ridge")) for factor in (1.0, size))
    assert large.outcome is Outcome.CONVERGED
    assert large.certificate.primal == pytest.approx(size**2 * one.certificate.primal, rel=1e-5)


# -- the rule of "auto" -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("loss", "penalty", "solver", "reason"),
    [
        ("cross_entropy", "group_l1", "newton", "the loss is smooth"),
        ("hinge", "ridge", "clarabel", "the loss has kinks"),
        ("hinge", "l1", "clarabel", "the loss has kinks"),
    ],
)
def test_it_names_its_choice_and_the_reason(loss, penalty, solver, reason):
    problem = small_problem(loss, penalty)
    solution = solve(problem)
    assert solution.outcome is Outcome.CONVERGED
    assert (solution.statistics.solver, solution.statistics.reason) == (solver, reason)


@every_penalty
def test_a_flat_loss_is_left_from_above(penalty):
    """Separable data at a tiny strength: from zero the first steps end where every sample has its margin."""
    problem = small_problem("squared_hinge", penalty, features=separable(), share=1e-6)
    alone = Newton(patient=False).solve(problem, None, 1e-9, Budget(problem))
    solution = solve(problem, tol=1e-9)
    assert (solution.outcome, solution.statistics.solver) == (Outcome.CONVERGED, "newton")
    if penalty == "ridge":  # exact steps go on to the few samples that lack their margin
        assert (alone.outcome, solution.statistics.iterations < 10) == (Outcome.CONVERGED, True)
    else:
        assert alone.outcome is Outcome.SLOW
        assert alone.certificate.gap > 0
        assert "began again from larger strengths" in solution.statistics.reason
        assert solution.statistics.iterations < 60
        assert solution.statistics.products > alone.statistics.products
    assert solution.statistics.seconds >= solution.statistics.trace[-1].seconds
    second = SecondOpinion(problem, labels(0, 30, 3)).objective(solution.weight.numpy(), solution.bias.numpy())
    assert solution.certificate.primal == pytest.approx(second, rel=1e-9)
    start = Start(100 * solution.weight, 100 * solution.bias)  # within that region
    inside = solve(problem, tol=1e-9, start=start)
    assert inside.outcome is Outcome.CONVERGED
    assert inside.certificate.primal == pytest.approx(solution.certificate.primal, abs=2e-9 * problem.zero_loss)


def test_a_bound_on_work_on_the_way_from_larger_strengths_loses_no_better_point():
    problem = small_problem("squared_hinge", "l1", features=separable(), share=1e-5)
    alone = Newton(patient=False).solve(problem, None, 1e-9, Budget(problem))
    kept = 0
    for more in range(10, 250, 30):
        solution = solve(problem, tol=1e-9, max_products=alone.statistics.products + more)
        assert "began again from larger strengths" in solution.statistics.reason
        assert solution.certificate.primal <= alone.certificate.primal
        assert solution.certificate.primal == pytest.approx(problem.objective(solution.weight, solution.bias), rel=1e-12)
        last = solution.statistics.trace[-1]
        assert (last.objective, last.active) == (solution.certificate.primal, int(solution.weight.any(0).sum()))
        assert last.relative_gap == solution.certificate.relative_gap
        assert solution.certificate.reached == (solution.outcome is Outcome.CONVERGED)
        kept += torch.equal(solution.weight, alone.weight)
    assert kept  # the way ended too early at least once


def test_a_flat_loss_above_all_strengths_of_the_way_goes_on_where_it_is():
    """Beyond the critical strength there is no larger strength to come from."""
    problem = small_problem("squared_hinge", "ridge", features=separable(), strength=0.5)
    start = 1e3 * solve(problem.with_strength(1e-6)).weight, torch.zeros(3)
    assert solve(problem, start=start).outcome is Outcome.CONVERGED


def test_a_time_limit_holds_on_the_way_from_larger_strengths():
    problem = small_problem("squared_hinge", "l1", features=separable(), share=1e-6)
    solution = solve(problem, tol=1e-9, time_limit=0.0)
    assert solution.outcome is Outcome.TIME_LIMIT
    assert solution.certificate.primal == pytest.approx(problem.objective(solution.weight, solution.bias), rel=1e-9)


def test_nearly_collinear_features_end_with_an_honest_gap():
    """Newton steps predict wrong zeros there; Clarabel solves the program."""
    problem = collinear_problem()
    solution = solve(problem)
    assert solution.outcome is Outcome.ITERATION_LIMIT
    assert "solver='clarabel'" in solution.outcome.value
    assert not solution.certificate.reached
    best = solve(problem, solver="clarabel")
    assert best.outcome is Outcome.CONVERGED
    assert solution.certificate.dual <= best.certificate.primal <= solution.certificate.primal


def test_newton_steps_that_gain_little_in_float32_go_on_in_float64():
    """With fewer samples than features float32 stops all progress."""
    generator, classes = torch.Generator().manual_seed(1), torch.arange(100) % 5
    centres, noise, weights = (torch.randn(size, 16, generator=generator) for size in (5, 100, 150))
    features = ((centres[classes] + 0.7 * noise) @ weights.T / 4).relu() + 3
    problem = Problem(Features(features), classes, loss="squared_hinge", strength=1e-3)
    solution = solve(problem)
    assert solution.outcome is Outcome.CONVERGED
    assert solution.statistics.reason == "the loss is smooth"


# -- one's own --------------------------------------------------------------------------------------------------------
class LogCosh(Loss):
    """Robust regression ``sum_k log cosh(z_k - y_k)``, with the members that a loss needs and no other."""

    name = "log_cosh"
    max_curvature = 1.0

    def prepare(self, targets, num_outputs):
        return targets.double().reshape(len(targets), num_outputs)

    def value(self, scores, targets):
        apart = (scores - targets.to(scores.dtype)).abs()
        return (apart + torch.log1p(torch.exp(-2 * apart)) - math.log(2)).sum(1)

    def gradient(self, scores, targets):
        return torch.tanh(scores - targets.to(scores.dtype))

    def curvature(self, scores, targets):
        return Curvature(1 - self.gradient(scores, targets).square())

    def conjugate(self, dual, targets):
        high, low = (1 + dual).clamp_min(0), (1 - dual).clamp_min(0)
        values = 0.5 * (torch.special.xlogy(high, high) + torch.special.xlogy(low, low)) + dual * targets
        return torch.where((dual.abs() > 1 + 1e-9).any(1), torch.inf, values.sum(1))


class WeightedL1(Penalty):
    """``sum_jk a_j |W[k, j]|``, with the members that a penalty needs."""

    name = "weighted_l1"

    def __init__(self, factors):
        self.factors = factors

    def value(self, weight):
        return (self.factors.to(weight.dtype) * weight.abs()).sum()

    def prox(self, weight, step):
        return weight.sign() * (weight.abs() - step * self.factors.to(weight.dtype)).clamp_min(0)

    def same_side(self, weight, reference):
        return weight * reference > 0

    def gradient(self, weight):
        return self.factors.to(weight.dtype) * weight.sign()

    def hessian_diagonal(self, weight):
        return torch.zeros_like(weight)

    def dual_norm(self, gradient):
        return (gradient.abs() / self.factors).max()

    def conjugate(self, gradient, strength):
        return torch.where(self.dual_norm(gradient) <= strength * (1 + 1e-12), 0.0, torch.inf).to(gradient.dtype)


FACTORS = torch.linspace(0.5, 2.0, 8, dtype=torch.float64)


@pytest.mark.parametrize("penalty", ["ridge", "l1", "group_l1"])
@pytest.mark.parametrize("solver", ["auto", "newton"])
def test_a_loss_of_ones_own(penalty, solver):
    features, targets = spikes(0, 30, 8).double(), random(1, 30, 2, scale=3.0)
    problem = Problem(Features(features), targets, loss=LogCosh(), penalty=penalty, strength=0.01)
    solution = solve(problem, solver=solver)
    assert solution.outcome is Outcome.CONVERGED
    weight, bias = solution.weight.clone().requires_grad_(), solution.bias.clone().requires_grad_()
    loss = torch.log(torch.cosh(features @ weight.T + bias - targets)).sum(1).mean()
    assert solution.certificate.primal == pytest.approx(loss.item() + 0.01 * problem.penalty.value(weight).item(), rel=1e-9)
    if penalty == "ridge":  # no slope is left
        (loss + 0.01 * 0.5 * weight.square().sum()).backward()
        assert float(torch.cat([weight.grad.flatten(), bias.grad]).abs().max()) < 1e-3


def test_a_penalty_of_ones_own_is_l1_on_scaled_features():
    features = random(0, 30, 8)
    own = Problem(Features(features), labels(0, 30, 3), penalty=WeightedL1(FACTORS), strength=0.02)
    scaled = Problem(Features(features / FACTORS), labels(0, 30, 3), penalty="l1", strength=0.02)
    assert own.critical_strength() == pytest.approx(scaled.critical_strength())
    solution, expected = solve(own, tol=1e-8), solve(scaled, tol=1e-9)
    assert solution.outcome is Outcome.CONVERGED
    assert solution.certificate.primal == pytest.approx(expected.certificate.primal, rel=1e-7)
    torch.testing.assert_close(solution.weight * FACTORS, expected.weight, rtol=1e-3, atol=1e-3)


def test_the_hinge_with_a_penalty_that_cvxpy_does_not_know():
    with pytest.raises(OptionError, match="loss 'hinge' and penalty 'weighted_l1'") as caught:
        solve(Problem(Features(random(0, 30, 8)), labels(0, 30, 3), loss="hinge", penalty=WeightedL1(FACTORS)))
    assert (caught.value.needed, caught.value.fix) == ("a penalty with cvxpy_value", "pass a smooth loss, or another penalty")


@pytest.mark.parametrize(
    ("own", "solver", "needed"),
    [
        ({"penalty": WeightedL1(FACTORS)}, "scs", "a penalty with cvxpy_value"),
        ({"loss": LogCosh()}, "clarabel", "a loss with cvxpy_sum"),
    ],
)
def test_solvers_that_need_more_of_ones_own_refuse_it(own, solver, needed):
    problem = Problem(Features(random(0, 30, 8)), labels(0, 30, 2).view(30, 1) if "loss" in own else labels(0, 30, 3), **own)
    with pytest.raises(OptionError, match=f"solver='{solver}'") as caught:
        solve(problem, solver=solver)
    assert caught.value.needed == needed
    assert "newton" in caught.value.fix
