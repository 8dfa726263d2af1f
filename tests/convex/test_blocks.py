"""Programs solved a block of outputs at a time: the same optimum, certified as a whole."""

import pytest
import torch

from snn_recon_plugin.convex import Features, FilteredFeatures, Outcome, Problem, solve
from snn_recon_plugin.convex import blocks as blocks_module
from snn_recon_plugin.convex.blocks import output_blocks

from .helpers import labels, spikes

ROWS, CLASSES = 60, 7


def program(loss="squared_hinge", penalty="ridge", features=None, classes=CLASSES):
    matrix = Features(spikes(0, ROWS, 12)) if features is None else features
    return Problem(matrix, labels(1, ROWS, classes), loss=loss, penalty=penalty, strength=0.01, num_outputs=CLASSES)


@pytest.fixture(autouse=True)
def three_outputs_a_block(monkeypatch):
    """The real bound is 256 MiB of scores."""
    monkeypatch.setattr(blocks_module, "_SCORES", 3 * ROWS)


@pytest.mark.parametrize("penalty", ["ridge", "l1"])
@pytest.mark.parametrize("loss", ["squared_hinge", "logistic"])
def test_blocks_reach_the_optimum_of_the_whole(loss, penalty, monkeypatch):
    problem, seen = program(loss, penalty), []
    assert [part.stop - part.start for part in output_blocks(problem)] == [3, 3, 1]
    found = solve(problem, tol=1e-8, progress=seen.append)
    assert found.outcome is Outcome.CONVERGED
    checked = problem.certify(found.weight, found.bias, 1e-6)
    assert found.certificate.primal == pytest.approx(checked.primal, abs=1e-12)
    assert found.certificate.dual >= checked.dual - 1e-9
    assert tuple(seen) == found.statistics.trace
    gaps = [point.relative_gap for point in seen]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] == pytest.approx(found.certificate.relative_gap, abs=1e-12)
    assert "outputs in 3 blocks" in found.statistics.reason
    assert found.statistics.products > 0
    again = solve(problem, solver="newton", start=(found.weight, found.bias))
    assert again.statistics.iterations == 0
    assert torch.equal(again.weight, found.weight)
    monkeypatch.undo()
    whole = solve(problem, tol=1e-8)
    assert found.certificate.primal == pytest.approx(whole.certificate.primal, abs=2e-8)
    assert found.certificate.dual <= whole.certificate.primal + 1e-12
    assert torch.allclose(found.weight, whole.weight, atol=1e-3)


@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_a_block_of_outputs_without_a_sample(loss):
    """Its loss is zero at zero weights."""
    problem = program(loss, classes=2)
    found = solve(problem)
    assert found.certificate.primal == pytest.approx(problem.objective(found.weight, found.bias), abs=1e-12)
    assert found.certificate.gap > -1e-12
    assert found.certificate.reached


def test_a_bound_on_work_is_shared_by_the_blocks():
    problem = program("logistic", "l1")
    found = solve(problem, tol=1e-12, max_products=40)
    assert found.outcome is Outcome.WORK_LIMIT
    assert not found.certificate.reached
    assert found.weight.any(1).all()  # every block got its part


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
