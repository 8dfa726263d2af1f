import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snn_recon_plugin.convex import LOSSES, CrossEntropy, Design, Logistic, Squared, make_loss
from snn_recon_plugin.convex.bias import solve_bias
from snn_recon_plugin.errors import DataError, OptionError

from .helpers import LOSS_FORMULAS, TWO_OUTPUTS, labels, quick, random, zoom_maximum

CASES = [(name, outputs) for name in LOSSES for outputs in (1, 2, 3) if outputs > 1 or name not in TWO_OUTPUTS]
every_case = pytest.mark.parametrize(("name", "outputs"), CASES)
seeds = st.integers(0, 2**16)


def rows(name, outputs, seed, n=6, scale=2.0):
    """A loss with random scores and prepared targets."""
    loss = make_loss(name)
    targets = random(seed + 9, n) if (name, outputs) == ("squared", 1) else labels(seed, n, max(outputs, 2))
    return loss, random(seed, n, outputs, scale=scale), loss.prepare(targets, outputs)


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
def test_value_is_the_formula(name, outputs):
    loss, scores, targets = rows(name, outputs, 1, n=20)
    formula = LOSS_FORMULAS[name]
    one_value = (name, outputs) == ("squared", 1)
    encoded = targets.numpy() if one_value else formula.encode(labels(1, 20, max(outputs, 2)).numpy(), outputs)
    np.testing.assert_allclose(loss.value(scores, targets), formula.value(scores.numpy(), encoded), rtol=1e-13)
    np.testing.assert_allclose(loss.gradient(scores, targets), formula.gradient(scores.numpy(), encoded), rtol=1e-12, atol=1e-15)


@every_case
def test_gradient_is_autograds(name, outputs):
    loss, scores, targets = rows(name, outputs, 2, n=20)
    scores.requires_grad_()
    (expected,) = torch.autograd.grad(loss.value(scores, targets).sum(), scores)
    torch.testing.assert_close(loss.gradient(scores.detach(), targets), expected, rtol=1e-12, atol=1e-14)


@every_case
def test_curvature_is_autograds(name, outputs):
    loss, scores, targets = rows(name, outputs, 3)
    expected = hessians(loss, scores, targets)
    curvature = loss.curvature(scores, targets)
    torch.testing.assert_close(dense(curvature, 6, outputs), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(curvature.entries(), expected.diagonal(dim1=1, dim2=2), rtol=1e-10, atol=1e-12)
    weights = torch.linspace(0.1, 2, 6, dtype=torch.float64)
    torch.testing.assert_close(curvature.weighted_sum(weights), (weights[:, None, None] * expected).sum(0), rtol=1e-10, atol=1e-12)
    single = curvature.to(torch.float32)
    assert single.diagonal.dtype == torch.float32
    torch.testing.assert_close(single.product(scores.float()).double(), curvature.product(scores), rtol=1e-5, atol=1e-5)


@every_case
def test_curvature_stays_within_the_bound_and_comes_close_to_it(name, outputs):
    loss, scores, targets = rows(name, outputs, 4, n=2000, scale=1.0)
    scores = torch.cat([scores, torch.zeros(2000, outputs, dtype=torch.float64)])
    targets = torch.cat([targets, targets])
    top = torch.linalg.eigvalsh(dense(loss.curvature(scores, targets), 4000, outputs))
    assert float(top.min()) >= -1e-15
    assert float(top.max()) <= loss.bound * (1 + 1e-12)
    if float(top.max()) > 0:  # a bound several times too large would cost as many times the steps
        assert float(top.max()) >= 0.6 * loss.bound


@every_case
@settings(quick, max_examples=12)
@given(seed=seeds, shrink=st.floats(0.05, 0.95))
def test_conjugate_is_the_maximum_over_scores(name, outputs, seed, shrink):
    loss, scores, targets = rows(name, outputs, seed, n=1, scale=1.0)
    dual = shrink * loss.gradient(scores, targets)
    brute = zoom_maximum(lambda z: (z * dual).sum(1) - loss.value(z, targets.expand(len(z), *targets.shape[1:])), outputs)
    assert float(loss.conjugate(dual, targets)[0]) == pytest.approx(brute, abs=2e-6)


@every_case
@quick
@given(seed=seeds, scale=st.floats(0.01, 30), size=st.floats(0.1, 3))
def test_fenchel_young_inequality_for_any_dual_point(name, outputs, seed, scale, size):
    loss, scores, targets = rows(name, outputs, seed, scale=scale)
    for dual in (random(seed + 1, 6, outputs, scale=size), size * loss.gradient(random(seed + 2, 6, outputs), targets)):
        assert (loss.value(scores, targets) + loss.conjugate(dual, targets) >= (dual * scores).sum(1) - 1e-9 * (1 + scale)).all()


@every_case
@quick
@given(seed=seeds, scale=st.floats(0.01, 10))
def test_fenchel_young_equality_at_the_gradient(name, outputs, seed, scale):
    loss, scores, targets = rows(name, outputs, seed, scale=scale)
    dual = loss.gradient(scores, targets)
    left = loss.value(scores, targets) + loss.conjugate(dual, targets)
    torch.testing.assert_close(left, (dual * scores).sum(1), rtol=1e-9, atol=1e-9)


@every_case
@quick
@given(seed=seeds, shrink=st.floats(0, 1))
def test_the_conjugates_domain_is_star_shaped(name, outputs, seed, shrink):
    loss, scores, targets = rows(name, outputs, seed, scale=5.0)
    assert torch.isfinite(loss.conjugate(shrink * loss.gradient(scores, targets), targets)).all()
    # Minus the least value of the loss, which is never negative.
    assert (loss.conjugate(torch.zeros_like(scores), targets) <= 0).all()


def test_conjugates_are_infinite_outside_their_domains():
    target = torch.tensor([0])
    cross = CrossEntropy()
    for dual in ([0.5, -0.5], [-1.5, 1.5], [-0.5, 0.4]):  # a negative mass, a mass above one, a sum that isn't zero
        assert cross.conjugate(torch.tensor([dual], dtype=torch.float64), target).isinf().all()
    logistic, sign = Logistic(), torch.tensor([[1.0]], dtype=torch.float64)
    for dual in (0.1, -1.1):
        assert logistic.conjugate(torch.tensor([[dual]], dtype=torch.float64), sign).isinf().all()
    assert float(logistic.conjugate(torch.tensor([[-1.0]], dtype=torch.float64), sign)) == 0
    # Where the conjugate says infinite, the maximum over larger and larger scores has no end.
    dual = torch.tensor([[0.5, -0.5]], dtype=torch.float64)

    def gain(z):
        return (z * dual).sum(1) - cross.value(z, target.expand(len(z)))

    ends = [zoom_maximum(gain, 2, radius=radius) for radius in (10.0, 20.0, 40.0)]
    assert ends[1] > ends[0] + 5
    assert ends[2] > ends[1] + 5


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_scores_stay_finite_and_inputs_unchanged(name, outputs, dtype):
    loss, scores, targets = rows(name, outputs, 5)
    scores = (1e4 * scores).to(dtype)
    before, kept = scores.clone(), targets.clone()
    value, gradient, curvature = loss.value(scores, targets), loss.gradient(scores, targets), loss.curvature(scores, targets)
    assert value.dtype == gradient.dtype == curvature.diagonal.dtype == dtype
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(curvature.product(gradient)).all()
    dual = gradient.clone()
    loss.conjugate(dual, targets)
    assert torch.equal(dual, gradient)
    assert torch.equal(scores, before)
    assert torch.equal(targets, kept)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_dtype(dtype):
    classes = torch.tensor([0, 2, 1], dtype=dtype)
    assert torch.equal(CrossEntropy().prepare(classes, 3), torch.tensor([0, 2, 1]))
    hot = torch.eye(3, dtype=torch.float64)[[0, 2, 1]]
    assert torch.equal(Squared().prepare(classes, 3), hot)
    assert torch.equal(Logistic().prepare(classes, 3), 2 * hot - 1)


def test_labels_of_two_classes():
    flags = torch.tensor([True, False])
    assert torch.equal(CrossEntropy().prepare(flags, 2), torch.tensor([1, 0]))
    assert torch.equal(Logistic().prepare(flags, 1), torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    assert torch.equal(Logistic().prepare(flags, 2), torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64))


def test_label_indicators_and_regression_targets():
    indicators = torch.tensor([[0, 1], [1, 1]])
    assert torch.equal(Logistic().prepare(indicators, 2), torch.tensor([[-1.0, 1.0], [1.0, 1.0]], dtype=torch.float64))
    assert Squared().prepare(torch.tensor([0.5, 2.0]), 1).tolist() == [[0.5], [2.0]]
    columns = Squared().prepare(torch.tensor([[0.5, 2.0]], dtype=torch.float16), 2)
    assert columns.dtype == torch.float64
    assert columns.tolist() == [[0.5, 2.0]]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("targets", "found", "needed"),
    [
        (torch.tensor([[0, 1, 2]]).T, r"labels of shape \(3, 1\)", "one class index a sample"),
        (torch.eye(3, dtype=torch.int64)[:, :2], r"labels of shape \(3, 2\)", "one class index a sample"),
        (torch.tensor([0, 1, 3]), "labels from 0 to 3", "class indices from 0 to 2"),
        (torch.tensor([-1, 0, 1]), "labels from -1 to 1", "class indices from 0 to 2"),
    ],
)
def test_bad_labels(name, targets, found, needed):
    with pytest.raises(DataError, match=found) as caught:
        make_loss(name).prepare(targets, 3)
    assert needed in caught.value.needed
    assert caught.value.fix


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "squared"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_labels_that_are_not_integers(name, dtype):
    with pytest.raises(DataError, match=f"labels of dtype {dtype}") as caught:
        make_loss(name).prepare(torch.tensor([0, 1, 2]).to(dtype), 3)
    assert "labels.long()" in caught.value.fix


def test_one_hot_labels_are_told_how_to_become_indices():
    with pytest.raises(DataError, match="argmax"):
        CrossEntropy().prepare(torch.eye(3), 3)


def test_labels_of_two_classes_are_targets_of_one_squared_output():
    squared = Squared()
    for dtype in (torch.int64, torch.uint8, torch.bool):
        prepared = squared.prepare(torch.tensor([0, 1, 1]).to(dtype), 1)
        assert prepared.dtype == torch.float64
        assert prepared.tolist() == [[0.0], [1.0], [1.0]]
    with pytest.raises(DataError, match="labels from 0 to 2"):
        squared.prepare(torch.tensor([0, 1, 2]), 1)
    # The nearer of the two targets.
    assert squared.predictions(torch.tensor([[-1.0], [0.4], [0.6], [3.0]])).tolist() == [0, 0, 1, 1]


def test_bad_indicators():
    with pytest.raises(DataError, match="other than 0 and 1"):
        Logistic().prepare(torch.tensor([[0.0, 0.5, 1.0]]), 3)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 1)])
def test_regression_targets_of_a_wrong_shape(shape):
    with pytest.raises(DataError, match=r"regression targets of shape \(4") as caught:
        Squared().prepare(torch.zeros(shape), 2)
    assert "(samples, 2)" in caught.value.needed


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_regression_targets_that_are_not_finite(value):
    with pytest.raises(DataError, match="NaN or infinite"):
        Squared().prepare(torch.tensor([0.0, value]), 1)


@every_case
def test_predictions(name, outputs):
    scores = torch.tensor([[-1.0], [2.0]]) if outputs == 1 else torch.eye(outputs)
    expected = [0, 1] if outputs == 1 else list(range(outputs))
    assert make_loss(name).predictions(scores).tolist() == expected


@pytest.mark.parametrize("name", LOSSES)
def test_make_loss(name):
    loss = make_loss(name)
    assert loss.name == name
    assert make_loss(loss) is loss
    with pytest.raises(OptionError, match="loss='nope'") as caught:
        make_loss("nope")
    assert name in caught.value.needed


def test_a_loss_of_ones_own_with_kinks_needs_a_smoothing_and_a_bias():
    class Own(Logistic):
        name = "own"
        bound = float("inf")

    own = Own()
    assert not own.smooth
    with pytest.raises(OptionError, match="loss 'own' with kinks") as caught:
        own.smoothed(1.0)
    assert "smoothed(width, centre)" in caught.value.needed
    design = Design(torch.eye(2))
    with pytest.raises(OptionError, match="without an exact bias"):
        solve_bias(own, design, torch.tensor([0, 1]), torch.zeros(2, 2), torch.zeros(2))
    assert CrossEntropy().smooth
    assert Squared().smoothed(0.1).name == "squared"


def smoothed(share=0.3):
    targets = labels(1, 20, 3)
    return CrossEntropy(share), random(4, 20, 3, scale=2.0), targets


def test_smoothed_labels_are_torchs():
    loss, scores, targets = smoothed()
    scores.requires_grad_()
    expected = torch.nn.functional.cross_entropy(scores, targets, label_smoothing=0.3, reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), scores)
    torch.testing.assert_close(loss.value(scores.detach(), targets), expected.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(loss.gradient(scores.detach(), targets), gradient, rtol=1e-12, atol=1e-14)


def test_conjugate_of_smoothed_labels():
    loss, scores, targets = smoothed()
    dual = loss.gradient(scores, targets)
    # Fenchel and Young: equality at the gradient, and an upper bound of zero slack elsewhere.
    torch.testing.assert_close(loss.value(scores, targets) + loss.conjugate(dual, targets), (scores * dual).sum(1))
    other = loss.gradient(random(5, 20, 3), targets)
    assert bool((loss.value(scores, targets) + loss.conjugate(other, targets) > (scores * other).sum(1)).all())
    assert bool(torch.isinf(loss.conjugate(dual + 1, targets)).all())


def test_no_smoothing_is_cross_entropy():
    _, scores, targets = smoothed()
    assert torch.equal(CrossEntropy(0.0).value(scores, targets), CrossEntropy().value(scores, targets))
    assert torch.equal(CrossEntropy().target(targets, 3), torch.nn.functional.one_hot(targets, 3).double())
    assert (CrossEntropy().name, CrossEntropy(0.1).name) == ("cross_entropy", "cross_entropy(label_smoothing=0.1)")
