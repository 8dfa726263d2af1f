import pytest
import torch
from torch import nn

from snn_recon_plugin.convex import LOSSES, make_loss, make_penalty
from snn_recon_plugin.networks.readout.filters import OutputResponse
from snn_recon_plugin.networks.readout.maximum import MaximumObjective, refine_maximum
from snn_recon_plugin.networks.readout.readout import Readout

STEPS, SAMPLES, UNITS, CLASSES = 12, 60, 10, 3
RIDGE = make_penalty("ridge")


@pytest.fixture
def readout():
    lag = torch.arange(STEPS)[:, None] - torch.arange(STEPS)
    matrix = torch.where(lag >= 0, torch.tensor(0.8, dtype=torch.float64) ** lag, 0.0)
    measured = OutputResponse(matrix, torch.zeros(STEPS, dtype=torch.float64))
    return Readout("membrane_max", "majorised", matrix[-1], 0.0, None, response=measured)


def drawn(rates):
    return torch.bernoulli(rates.expand(STEPS, SAMPLES, UNITS))


def labels():
    return torch.arange(SAMPLES) % CLASSES


def objective(true, weight, bias):
    """Compute the true objective from its parts."""
    currents = true.spikes @ weight.T + (0.0 if bias is None else bias)
    scores = torch.einsum("st,tmc->smc", true.readout.response.matrix.float(), currents).amax(0).double()
    return true.loss.value(scores, true.targets).mean() + true.strength * RIDGE.value(weight.double())


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_true_objective_falls(loss, with_bias, readout):
    chosen = make_loss(loss)
    given = nn.functional.one_hot(labels(), CLASSES).float() if loss in ("squared", "huber") else labels()
    true = MaximumObjective(drawn(torch.tensor(0.2)), chosen.prepare(given, CLASSES), readout, chosen, RIDGE, 1e-3)
    start = torch.randn(CLASSES, UNITS), torch.zeros(CLASSES) if with_bias else None
    found = [refine_maximum(true, *start, blocks=blocks).point for blocks in (1, 2, 4)]
    values = [float(objective(true, *point)) for point in (start, *found)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.8 * values[0]
    assert (found[-1][1] is None) == (not with_bias)


def test_gradients_and_random_numbers_are_left_as_found(readout):
    weight = torch.randn(CLASSES, UNITS, requires_grad=True)
    before = weight.detach().clone()
    true = MaximumObjective(drawn(torch.tensor(0.2)), labels(), readout, make_loss("cross_entropy"), RIDGE, 1e-3)
    state = torch.get_rng_state()
    with torch.no_grad():
        found = refine_maximum(true, weight, None, blocks=1).weight
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weight, before)
    assert weight.grad is None
    assert not found.requires_grad
    assert not torch.equal(found, before)


def test_a_minimum_is_as_low_as_by_plain_gradient_descent_and_is_kept(readout):
    rates = 0.1 + 0.3 * nn.functional.one_hot(labels(), CLASSES).repeat_interleave(3, 1)
    spikes = drawn(nn.functional.pad(rates, (0, 1)))
    true = MaximumObjective(spikes, labels(), readout, make_loss("cross_entropy"), RIDGE, 1e-2)
    found = refine_maximum(true, 0.1 * torch.randn(CLASSES, UNITS), torch.zeros(CLASSES), blocks=3).point
    again = refine_maximum(true, *found, blocks=3).point
    assert float(objective(true, *again)) == pytest.approx(float(objective(true, *found)), rel=1e-3)
    weight, bias = torch.zeros(CLASSES, UNITS, requires_grad=True), torch.zeros(CLASSES, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        objective(true, weight, bias).backward()
        optimizer.step()
    assert float(objective(true, *found)) <= 1.02 * float(objective(true, weight.detach(), bias.detach()))


def test_other_samples_end_it(readout):
    true = MaximumObjective(drawn(torch.tensor(0.2)), labels(), readout, make_loss("cross_entropy"), RIDGE, 1e-4)
    start, losses = torch.randn(CLASSES, UNITS), iter([3.0, 2.0, 1.0, 1.5, 1.2, 1.1])
    found = refine_maximum(true, start, None, loss=lambda weight, bias: next(losses))
    assert found.blocks == 2
    assert torch.equal(found.weight, refine_maximum(true, start, None, blocks=2).weight)
    kept = refine_maximum(true, start, None, loss=lambda weight, bias: 1.0)
    assert kept.blocks == 0
    assert torch.equal(kept.weight, start)
