"""Programs solved a block of outputs at a time: the same optimum, certified as a whole."""

import pytest
import torch

from snn_recon_plugin.convex import Features, FilteredFeatures, Outcome, Problem, solve
from snn_recon_plugin.convex import blocks as blocks_module
from snn_recon_plugin.convex.blocks import output_blocks

from .helpers import labels, spikes

ROWS, CLASSES = 60, 7


def program(loss="squared_hinge", penalty="ridge", features=None):
    matrix = Features(spikes(0, ROWS, 12)) if features is None else features
    return Problem(matrix, labels(1, ROWS, CLASSES), loss=loss, penalty=penalty, strength=0.01)


@pytest.fixture(autouse=True)
def three_outputs_a_block(monkeypatch):
    monkeypatch.setattr(blocks_module, "_SCORES", 3 * ROWS)


def in_one_block(monkeypatch, problem, **options):
    monkeypatch.setattr(blocks_module, "_SCORES", 2**25)
    return solve(problem, **options)


@pytest.mark.parametrize("penalty", ["ridge", "l1"])
@pytest.mark.parametrize("loss", ["squared_hinge", "logistic"])
def test_blocks_reach_the_optimum_of_the_whole(loss, penalty, monkeypatch):
    problem = program(loss, penalty)
    assert [part.stop - part.start for part in output_blocks(problem)] == [3, 3, 1]
    found, whole = solve(problem, tol=1e-8), in_one_block(monkeypatch, problem, tol=1e-8)
    assert found.outcome is Outcome.CONVERGED
    assert found.certificate.primal == pytest.approx(whole.certificate.primal, abs=2e-8)
    assert torch.allclose(found.weight, whole.weight, atol=1e-3)


def test_the_certificate_is_that_of_the_point():
    problem = program()
    found = solve(problem)
    checked = problem.certify(found.weight, found.bias, 1e-6)
    assert found.certificate.primal == pytest.approx(checked.primal, abs=1e-12)
    assert found.certificate.dual == pytest.approx(checked.dual, abs=1e-9)


@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_a_block_of_outputs_without_a_sample(loss):
    """Its loss is zero at zero weights."""
    problem = Problem(Features(spikes(0, ROWS, 12)), labels(1, ROWS, 2), loss=loss, penalty="ridge", num_outputs=CLASSES)
    found = solve(problem)
    assert found.certificate.primal == pytest.approx(problem.objective(found.weight, found.bias), abs=1e-12)
    assert found.certificate.gap > -1e-12
    assert found.certificate.reached


def test_the_course_is_that_of_the_whole():
    seen = []
    found = solve(program(), progress=seen.append)
    assert tuple(seen) == found.statistics.trace
    gaps = [point.relative_gap for point in seen]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] == pytest.approx(found.certificate.relative_gap, abs=1e-12)
    assert "outputs in 3 blocks" in found.statistics.reason
    assert found.statistics.products > 0


def test_a_solver_that_was_asked_for_and_a_start():
    first = solve(program(), tol=1e-8)
    again = solve(program(), solver="newton", tol=1e-6, start=(first.weight, first.bias))
    assert again.statistics.iterations == 0
    assert torch.equal(again.weight, first.weight)


def test_a_bound_on_work_is_shared_by_the_blocks():
    problem = program("logistic", "l1")
    found = solve(problem, tol=1e-12, max_products=3)
    assert found.outcome is Outcome.WORK_LIMIT
    assert not found.certificate.reached
    assert found.certificate.primal < problem.zero_loss  # every block got its part


@pytest.mark.parametrize(
    "problem",
    [
        program("cross_entropy"),
        program("squared_hinge", "group_l1"),
        program(features=FilteredFeatures(spikes(0, ROWS, 24).view(ROWS, 2, 12), torch.arange(CLASSES) % 2)),
    ],
    ids=["coupled classes", "coupled weights", "features for each output"],
)
def test_coupled_outputs_stay_together(problem):
    assert output_blocks(problem) == [slice(0, CLASSES)]
