import torch

from .helpers import every_loss_case, loss_rows, random


def hessians(loss, scores, targets):
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


@every_loss_case
def test_curvature_is_autograds(name, outputs):
    loss, scores, targets = loss_rows(name, outputs, 3)
    expected, curvature = hessians(loss, scores, targets), loss.curvature(scores, targets)
    torch.testing.assert_close(dense(curvature, 6, outputs), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(curvature.entries(), expected.diagonal(dim1=1, dim2=2), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dense(curvature.part(torch.tensor([4, 0])), 2, outputs), expected[[4, 0]], rtol=1e-10, atol=1e-12)
    weights = torch.linspace(0.1, 2, 6, dtype=torch.float64)
    for factors in (random(6, 6, outputs), random(6, 6, 1)):  # as for a bias column that is a factor of each score
        scaled = (weights[:, None, None] * factors[:, :, None] * expected * factors[:, None, :]).sum(0)
        torch.testing.assert_close(curvature.weighted_sum(weights, factors), scaled, rtol=1e-10, atol=1e-12)
    single = curvature.to(torch.float32)
    assert single.diagonal.dtype == torch.float32
    torch.testing.assert_close(single.product(scores.float()).double(), curvature.product(scores), rtol=1e-5, atol=1e-5)
    # A separable loss is a sum over outputs, and couples none.
    assert torch.equal(expected, torch.diag_embed(expected.diagonal(dim1=1, dim2=2))) == loss.separable
    if loss.separable:
        torch.testing.assert_close(loss.by_output(scores, targets).sum(1), loss.value(scores, targets))


@every_loss_case
def test_curvature_stays_below_its_maximum_and_comes_close_to_it(name, outputs):
    loss, scores, targets = loss_rows(name, outputs, 4, n=2000, scale=1.0)
    scores = torch.cat([scores, torch.zeros(2000, outputs, dtype=torch.float64)])
    targets = torch.cat([targets, targets])
    top = torch.linalg.eigvalsh(dense(loss.curvature(scores, targets), 4000, outputs))
    assert float(top.min()) >= -1e-15
    assert float(top.max()) <= loss.max_curvature * (1 + 1e-12)
    if float(top.max()) > 0:  # a bound several times too large would cost as many times the steps
        assert float(top.max()) >= 0.6 * loss.max_curvature
