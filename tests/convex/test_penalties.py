import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snn_recon_plugin.convex import Ridge, make_penalty

from .helpers import PENALTY_FORMULAS, PENALTY_NAMES, SPARSE_PENALTIES, quick, random

every_name = pytest.mark.parametrize("name", PENALTY_NAMES)
sparse_penalties = pytest.mark.parametrize("name", SPARSE_PENALTIES)
seeds = st.integers(0, 2**16)
scales = st.floats(0.01, 10)


def partly_zero(seed, rows=3, columns=5):
    """Weights with a zero column, and, elsewhere, a zero entry."""
    weight = random(seed, rows, columns)
    weight[:, 1] = 0
    weight[0, 3] = 0
    return weight


@every_name
def test_value_is_the_formula(name):
    weight = partly_zero(0)
    assert float(make_penalty(name).value(weight)) == pytest.approx(PENALTY_FORMULAS[name][0](weight.numpy()), rel=1e-14)
    assert float(make_penalty(name).value(torch.zeros(3, 5))) == 0


@every_name
@quick
@given(seed=seeds, scale=scales, spread=st.floats(1e-4, 3))
def test_prox_with_a_step_for_each_column(name, seed, scale, spread):
    """The minimiser V of a function with unit curvature per step: f(Z) >= f(V) + 1/2 ||Z - V||^2 / step, for all Z."""
    penalty = make_penalty(name)
    weight, step = random(seed, 3, 5, scale=scale), random(seed + 1, 5).abs() + 0.01

    def objective(v):
        return float(0.5 * ((v - weight).square() / step).sum() + penalty.value(v))

    best = penalty.prox(weight, step)
    for other in (best + random(seed + 2, 3, 5, scale=spread), best * (1 + spread), torch.zeros_like(best), weight):
        assert objective(other) >= objective(best) + 0.5 * float(((other - best).square() / step).sum()) - 1e-10


@every_name
def test_prox_special_cases(name):
    penalty = make_penalty(name)
    weight = partly_zero(1)
    torch.testing.assert_close(penalty.prox(weight, 0.0), weight)
    assert not penalty.prox(torch.zeros(2, 3), 0.5).any()
    steps = torch.tensor([0.0, 0.0, 0.0, 0.2, 1e30], dtype=torch.float64)  # a column without information has step zero
    result = penalty.prox(weight, steps)
    torch.testing.assert_close(result[:, :3], weight[:, :3])
    assert float(result[:, 4].abs().max()) < 1e-29
    assert penalty.prox(weight.float(), 0.1).dtype == torch.float32
    for size in (1e-300, 1e300):
        assert torch.isfinite(penalty.prox(weight * size, 0.1)).all()


@sparse_penalties
@quick
@given(seed=seeds, scale=scales)
def test_dual_norm_is_the_least_strength_that_keeps_zero(name, seed, scale):
    penalty, gradient = make_penalty(name), random(seed, 3, 4, scale=scale)
    critical = float(penalty.dual_norm(gradient))
    assert critical == pytest.approx(PENALTY_FORMULAS[name][1](gradient.numpy()).max(), rel=1e-14)
    assert not penalty.prox(-gradient, critical * (1 + 1e-9)).any()
    assert penalty.prox(-gradient, critical * (1 - 1e-6)).any()
    # The conjugate of a norm is zero or infinite.
    assert float(penalty.conjugate(gradient, critical)) == float(penalty.conjugate(gradient, critical * (1 + 1e-6))) == 0
    assert float(penalty.conjugate(gradient, critical * (1 - 1e-6))) == torch.inf
    assert penalty.conjugate(gradient.float(), critical * 2).dtype == torch.float32


@every_name
@quick
@given(seed=seeds, strength=st.floats(0.01, 5), scale=scales)
def test_conjugate_obeys_fenchel_young(name, seed, strength, scale):
    penalty = make_penalty(name)
    weight = random(seed, 3, 4, scale=scale)
    for gradient in (random(seed + 1, 3, 4, scale=scale), strength * penalty.gradient(random(seed + 2, 3, 4))):
        bound = float((gradient * weight).sum()) - strength * float(penalty.value(weight))
        assert float(penalty.conjugate(gradient, strength)) >= bound - 1e-9
    gradient = strength * penalty.gradient(weight)  # no zero entry: the derivative exists, and equality holds there
    expected = float((gradient * weight).sum()) - strength * float(penalty.value(weight))
    assert float(penalty.conjugate(gradient, strength)) == pytest.approx(expected, abs=1e-9 * (1 + scale**2))


@every_name
def test_gradient_and_hessian_are_autograds_on_the_active_part(name):
    penalty, weight, direction = make_penalty(name), partly_zero(4), random(5, 3, 5)
    live = weight[:, [0, 2, 4]].clone()  # columns without a zero entry: the penalty is smooth there
    gradient = torch.autograd.functional.jacobian(penalty.value, live)
    hessian = torch.autograd.functional.hessian(penalty.value, live).reshape(9, 9)
    torch.testing.assert_close(penalty.gradient(weight)[:, [0, 2, 4]], gradient)
    product = penalty.hessian_product(weight, direction)
    torch.testing.assert_close(product[:, [0, 2, 4]].reshape(-1), hessian @ direction[:, [0, 2, 4]].reshape(-1))
    torch.testing.assert_close(penalty.hessian_diagonal(weight)[:, [0, 2, 4]].reshape(-1), hessian.diagonal())
    assert not penalty.gradient(weight)[:, 1].any()
    assert torch.isfinite(product).all()
    if name in ("group_l1", "l1"):  # inactive columns have no second derivative
        assert not product[:, 1].any()
        assert not penalty.hessian_diagonal(weight)[:, 1].any()


@every_name
def test_same_side_is_false_for_weights_across_the_kink(name):
    penalty, weight = make_penalty(name), partly_zero(7)
    assert penalty.same_side(weight, 0.3 * weight)[weight != 0].all()
    crossed = weight.clone()
    crossed[:, 2] *= -1
    kept = penalty.same_side(crossed, weight)
    assert kept.shape == weight.shape
    assert kept[:, [0, 4]].all()
    assert not (penalty.sparse and kept[:, 2].any())


def test_ridge_has_no_critical_strength():
    ridge = Ridge()
    assert not ridge.sparse
    assert float(ridge.dual_norm(torch.ones(2, 2))) == torch.inf
    assert float(ridge.dual_norm(torch.zeros(2, 2))) == 0
    assert float(ridge.conjugate(torch.ones(2, 2), 0.5)) == pytest.approx(4.0)


@pytest.mark.parametrize("name", [name for name in PENALTY_NAMES if make_penalty(name).separable])
def test_separable_penalties_are_sums_over_outputs_and_take_a_step_for_each_entry(name):
    penalty, weight, steps = make_penalty(name), random(8, 3, 5), random(9, 3, 5).abs()
    result = penalty.prox(weight, steps)
    for k in range(3):
        for j in range(5):
            torch.testing.assert_close(result[k, j], penalty.prox(weight[k : k + 1, j : j + 1], float(steps[k, j]))[0, 0])
    parts = penalty.by_output(weight)
    torch.testing.assert_close(parts, torch.stack([penalty.value(weight[k : k + 1]) for k in range(3)]))
