import pytest
import torch
from torch import nn

from snn_recon_plugin.convex import make_loss, make_penalty
from snn_recon_plugin.convex.registry import LOSSES
from snn_recon_plugin.networks import MaximumObjective, refine_maximum
from snn_recon_plugin.networks.filters import Response
from snn_recon_plugin.networks.readout import Readout

STEPS, SAMPLES, UNITS, CLASSES = 12, 60, 10, 3


def response(beta=0.8):
    steps = torch.arange(STEPS)
    lag = steps[:, None] - steps[None, :]
    matrix = torch.where(lag >= 0, torch.tensor(beta, dtype=torch.float64) ** lag, 0.0)
    return Response(matrix, torch.zeros(STEPS, dtype=torch.float64))


@pytest.fixture
def problem():
    measured = response()
    readout = Readout("membrane_max", "majorised", measured.matrix[-1], 0.0, None, response=measured)
    return torch.bernoulli(torch.full((STEPS, SAMPLES, UNITS), 0.2)).to(torch.uint8), torch.arange(SAMPLES) % CLASSES, readout


def maxima(spikes, readout, weight, bias):
    currents = spikes.float() @ weight.T + (0.0 if bias is None else bias)
    return torch.einsum("st,tmc->smc", readout.response.matrix.float(), currents).amax(0)


def true_objective(spikes, targets, readout, weight, bias, strength, ridge):
    scores = maxima(spikes, readout, weight, bias)
    return float(nn.functional.cross_entropy(scores, targets)) + strength * ridge(weight)


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_true_objective_falls(loss, with_bias, problem):
    spikes, targets, readout = problem
    ridge, chosen = make_penalty("ridge"), make_loss(loss)
    targets = chosen.prepare(nn.functional.one_hot(targets, CLASSES).float() if loss in ("squared", "huber") else targets, CLASSES)
    start, bias = torch.randn(CLASSES, UNITS), torch.zeros(CLASSES) if with_bias else None
    true = MaximumObjective(spikes.float(), targets, readout, chosen, ridge, 1e-3)

    def objective(weight, bias):
        scores = maxima(spikes, readout, weight, bias).double()
        return float(chosen.value(scores, targets).mean() + 1e-3 * ridge.value(weight.double()))

    found = [refine_maximum(true, start, bias, max_steps=steps) for steps in (1, 5, 30)]
    values = [objective(start, bias), *(objective(*point) for point in found)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.8 * values[0]
    assert (found[-1][1] is None) == (not with_bias)


def test_gradients_and_random_numbers_are_left_as_found(problem):
    spikes, targets, readout = problem
    weight = torch.randn(CLASSES, UNITS, requires_grad=True)
    before = weight.detach().clone()
    objective = MaximumObjective(spikes.float(), targets, readout, make_loss("cross_entropy"), make_penalty("ridge"), 1e-3)
    state = torch.get_rng_state()
    with torch.no_grad():
        found, _ = refine_maximum(objective, weight, None, max_steps=5)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weight, before)
    assert weight.grad is None
    assert not found.requires_grad
    assert not torch.equal(found, before)


def test_a_minimum_is_kept(problem):
    spikes, targets, readout = problem
    penalty = make_penalty("ridge")
    objective = MaximumObjective(spikes.float(), targets, readout, make_loss("cross_entropy"), penalty, 1e-2)
    once = refine_maximum(objective, 0.1 * torch.randn(CLASSES, UNITS), torch.zeros(CLASSES), max_steps=60)
    again = refine_maximum(objective, *once, max_steps=60)
    value = lambda weight: float(penalty.value(weight))  # noqa: E731
    first, second = (true_objective(spikes, targets, readout, *point, 1e-2, value) for point in (once, again))
    assert second == pytest.approx(first, rel=1e-3)


def test_against_plain_gradient_descent(problem):
    _, targets, readout = problem
    rates = 0.1 + 0.3 * nn.functional.one_hot(targets, CLASSES).repeat_interleave(3, 1)
    spikes = torch.bernoulli(nn.functional.pad(rates, (0, 1)).expand(STEPS, -1, -1)).to(torch.uint8)
    objective = MaximumObjective(spikes.float(), targets, readout, make_loss("cross_entropy"), make_penalty("ridge"), 1e-2)
    found = refine_maximum(objective, 0.1 * torch.randn(CLASSES, UNITS), torch.zeros(CLASSES), max_steps=60)
    weight, bias = torch.zeros(CLASSES, UNITS, requires_grad=True), torch.zeros(CLASSES, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        scores = torch.einsum("st,tmc->smc", readout.response.matrix.float(), spikes.float() @ weight.T + bias).amax(0)
        (nn.functional.cross_entropy(scores, targets) + 1e-2 * make_penalty("ridge").value(weight)).backward()
        optimizer.step()
    value = lambda weight: float(make_penalty("ridge").value(weight))  # noqa: E731
    best = true_objective(spikes, targets, readout, weight.detach(), bias.detach(), 1e-2, value)
    assert true_objective(spikes, targets, readout, *found, 1e-2, value) <= 1.02 * best
