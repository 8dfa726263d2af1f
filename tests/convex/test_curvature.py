import pytest
import torch

from snn_recon_plugin.convex import LOSSES, make_loss

from .helpers import TWO_OUTPUTS, labels, random

CASES = [(name, outputs) for name in LOSSES for outputs in (1, 2, 3) if outputs > 1 or name not in TWO_OUTPUTS]
every_case = pytest.mark.parametrize(("name", "outputs"), CASES)


def rows(name, outputs, seed, n=6, scale=2.0):
    """A loss with random scores and prepared targets."""
    loss = make_loss(name)
    return loss, random(seed, n, outputs, scale=scale), loss.prepare(labels(seed, n, max(outputs, 2)), outputs)


def hessians(loss, scores, targets):
    """Second derivatives by autograd, (n, C, C)."""
    return torch.stack(
        [
            torch.autograd.functional.hessian(lambda z, y=y: loss.value(z[None], y[None]).sum(), row)
            for row, y in zip(scores, targets, strict=True)
        ]
    )


def dense(curvature, n, outputs):
    """The matrices that ``product`` stands for, (n, C, C)."""
    columns = [curvature.product(torch.eye(outputs, dtype=torch.float64)[k].expand(n, outputs)) for k in range(outputs)]
    return torch.stack(columns, 2)


@every_case
def test_curvature_is_autograds(name, outputs):
    loss, scores, targets = rows(name, outputs, 3)
    expected = hessians(loss, scores, targets)
    curvature = loss.curvature(scores, targets)
    torch.testing.assert_close(dense(curvature, 6, outputs), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(curvature.entries(), expected.diagonal(dim1=1, dim2=2), rtol=1e-10, atol=1e-12)
    weights = torch.linspace(0.1, 2, 6, dtype=torch.float64)
    for factors in (random(6, 6, outputs), random(6, 6, 1)):  # as for a bias column that is a factor of each score
        scaled = (weights[:, None, None] * factors[:, :, None] * expected * factors[:, None, :]).sum(0)
        torch.testing.assert_close(curvature.weighted_sum(weights, factors), scaled, rtol=1e-10, atol=1e-12)
    single = curvature.to(torch.float32)
    assert single.diagonal.dtype == torch.float32
    torch.testing.assert_close(single.product(scores.float()).double(), curvature.product(scores), rtol=1e-5, atol=1e-5)


@every_case
def test_curvature_stays_below_its_maximum_and_comes_close_to_it(name, outputs):
    loss, scores, targets = rows(name, outputs, 4, n=2000, scale=1.0)
    scores = torch.cat([scores, torch.zeros(2000, outputs, dtype=torch.float64)])
    targets = torch.cat([targets, targets])
    top = torch.linalg.eigvalsh(dense(loss.curvature(scores, targets), 4000, outputs))
    assert float(top.min()) >= -1e-15
    assert float(top.max()) <= loss.max_curvature * (1 + 1e-12)
    if float(top.max()) > 0:  # a bound several times too large would cost as many times the steps
        assert float(top.max()) >= 0.6 * loss.max_curvature


@every_case
def test_some_rows(name, outputs):
    loss, scores, targets = rows(name, outputs, 5)
    curvature, chosen = loss.curvature(scores, targets), torch.tensor([4, 0])
    torch.testing.assert_close(dense(curvature.part(chosen), 2, outputs), dense(curvature, 6, outputs)[chosen])


@every_case
def test_a_separable_loss_is_a_sum_over_outputs_and_couples_none(name, outputs):
    loss, scores, targets = rows(name, outputs, 7)
    matrices = dense(loss.curvature(scores, targets), 6, outputs)
    diagonal = torch.equal(matrices, torch.diag_embed(matrices.diagonal(dim1=1, dim2=2)))
    assert diagonal == loss.separable
    if loss.separable:
        torch.testing.assert_close(loss.by_output(scores, targets).sum(1), loss.value(scores, targets))
