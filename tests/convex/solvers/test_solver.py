"""The contract of solvers, over all of them and all pairs of loss and penalty."""

import math

import numpy as np
import pytest
import torch

from snn_recon_plugin.convex import SOLVERS, Outcome, Start, solve
from snn_recon_plugin.convex.budget import Budget
from snn_recon_plugin.convex.solvers.solver import Run
from snn_recon_plugin.errors import OptionError

from ..helpers import PRODUCT, SecondOpinion, labels, small_problem

_optima = {}


def bounds(loss, penalty):
    """Lower and upper bound of the optimum, in numpy, from the point of a solver that all others are compared with."""
    if (loss, penalty) not in _optima:
        problem = small_problem(loss, penalty)
        found = solve(problem, solver="clarabel" if loss == "hinge" else "newton", tol=1e-9)
        second, weight, bias = SecondOpinion(problem, labels(0, 30, 3)), found.weight.numpy(), found.bias.numpy()
        upper = second.objective(weight, bias)
        lower = upper - 1e-7 if loss == "hinge" else second.dual(weight, bias)  # a subgradient is rarely a dual point
        assert -1e-12 <= upper - lower <= 2e-7
        _optima[loss, penalty] = lower, upper
    return _optima[loss, penalty]


def test_the_best_bound_is_kept_with_the_best_point():
    problem = small_problem()
    run = Run("newton", problem, None, 1e-6, Budget(problem), None)
    start = run.begin()
    primal, dual = start.objective - 0.1, start.dual + 0.1
    assert run.keep(primal, start.weight, start.bias, dual)
    assert not run.keep(primal + 0.05, start.weight, start.bias, dual - 0.05)
    certificate = run.solution(Outcome.STALLED, 1).certificate
    assert (certificate.primal, certificate.dual) == (primal, dual)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(("loss", "penalty"), PRODUCT, ids=map("-".join, PRODUCT))
def test_a_solver_solves_its_programs_or_names_another(name, loss, penalty):
    problem = small_problem(loss, penalty)
    needed = SOLVERS[name].supports(problem)
    if needed is None:
        seen = []
        solution = solve(problem, solver=name, progress=seen.append)
        assert tuple(seen) == solution.statistics.trace
        assert np.all(np.diff([point.seconds for point in seen]) >= 0)
        check_solution(problem, solution, name, *bounds(loss, penalty))
        return
    assert needed.split()[0] in ("a", "an", "all", "at", "outputs")  # a noun phrase, which an error can end with
    assert not needed.endswith(".")
    with pytest.raises(OptionError, match=f"solver='{name}' for loss '{loss}'") as caught:
        solve(problem, solver=name)
    assert caught.value.needed == needed
    others = [other for other in SOLVERS if f"'{other}'" in caught.value.fix]
    assert others
    assert all(SOLVERS[other].supports(problem) is None for other in others)


def check_solution(problem, solution, name, lower, upper):
    certificate, statistics = solution.certificate, solution.statistics
    assert solution.outcome is Outcome.CONVERGED
    assert (certificate.tol, certificate.reached) == (1e-6, True)
    assert -1e-12 <= certificate.gap == certificate.primal - certificate.dual
    assert certificate.relative_gap <= 1e-6
    second = SecondOpinion(problem, labels(0, 30, 3))
    assert certificate.primal == pytest.approx(second.objective(solution.weight.numpy(), solution.bias.numpy()), rel=1e-11)
    assert certificate.relative_gap == pytest.approx(certificate.gap / second.zero_loss)
    assert certificate.dual <= upper + 1e-12
    assert lower - 1e-12 <= certificate.primal <= upper + 1e-6 * second.zero_loss
    assert solution.weight.dtype == solution.bias.dtype == torch.float64
    assert (statistics.solver, statistics.reason) == (name, "")
    assert statistics.seconds > 0
    assert statistics.trace[-1].relative_gap == pytest.approx(certificate.relative_gap, abs=1e-12)
    assert statistics.trace[-1].active == int(solution.weight.any(0).sum())


@pytest.mark.parametrize("name", ["newton", "fista"])
def test_the_optimum_needs_no_step(name):
    problem = small_problem()
    best = solve(problem, tol=1e-10)
    again = solve(problem, solver=name, start=best.as_start())
    assert again.statistics.iterations == 0
    assert torch.equal(again.weight, best.weight)
    assert best.as_start() == Start(best.weight, best.bias, best.statistics.step)
    known = solve(problem, solver=name, start=best.as_start()._replace(dual=best.certificate.dual))
    assert known.certificate.dual >= best.certificate.dual


def test_a_solution_after_another_includes_its_iterations_and_trace():
    problem = small_problem()
    one, two = solve(problem, tol=1e-2), solve(problem, tol=1e-8)
    both = two.after(one)
    assert both.statistics.trace == one.statistics.trace + two.statistics.trace
    assert both.statistics.iterations == one.statistics.iterations + two.statistics.iterations
    assert both.weight is two.weight


def test_outcomes_are_sentences():
    for outcome in Outcome:
        assert outcome.value[0].isupper()
        assert outcome.value.endswith(".")
    assert math.isinf(Start(torch.zeros(1, 1), torch.zeros(1)).dual)
