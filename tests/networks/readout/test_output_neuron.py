from dataclasses import astuple
from typing import NamedTuple

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.convex import LOSSES, make_loss, make_penalty
from snn_recon_plugin.networks.private.parameters import with_values
from snn_recon_plugin.networks.readout.filters import OutputResponse
from snn_recon_plugin.networks.readout.output_neuron import (
    Calibration,
    MaximumObjective,
    calibrate,
    own_scores,
    readout_currents,
    refine_maximum,
)
from snn_recon_plugin.networks.readout.readout import Readout

from ...nets import step_through
from ..reading import read

STEPS, SAMPLES, UNITS, CLASSES = 25, 160, 40, 4


class PassThrough(nn.Module):
    """A net whose hidden layer passes spikes through, so that a test can set them."""

    def __init__(self, neuron, returns):
        super().__init__()
        self.lif, self.fc = snn.Leaky(beta=0.0, reset_mechanism="none"), nn.Linear(UNITS, CLASSES)
        self.out, self.returns = neuron, returns

    def forward(self, x):
        return self.returns(*step_through(2 * x, (nn.Identity(), self.fc), (self.lif, self.out)))


def drawn(more=0.12):
    """Draw spikes [T, n, P] of four classes, and their labels; units of a sample's class fire by so much more."""
    targets = torch.arange(SAMPLES) % CLASSES
    rates = 0.08 + more * nn.functional.one_hot(targets, CLASSES).repeat_interleave(UNITS // CLASSES, 1)
    return torch.bernoulli(rates.expand(STEPS, -1, -1)), targets


# A linear solution for such spikes: each class sums its own units.
WEIGHT = 0.25 * torch.eye(CLASSES).repeat_interleave(UNITS // CLASSES, 1) - 0.05
BIAS = torch.linspace(-0.1, 0.1, CLASSES)


class Case(NamedTuple):
    net: nn.Module
    readout: Readout
    x: torch.Tensor
    currents: torch.Tensor
    targets: torch.Tensor
    found: Calibration

    def own(self):
        return own_scores(self.readout, self.net.out, self.found.scale * self.currents + self.found.shift)

    def returned(self, scale=None, shift=None):
        scale, shift = self.found.scale if scale is None else scale, self.found.shift if shift is None else shift
        values = {(self.net.fc, "weight"): WEIGHT * scale, (self.net.fc, "bias"): BIAS * scale + shift}
        with torch.no_grad(), with_values(values):
            return self.net(self.x)

    def agreement(self, scores):
        """Return the share of the samples on which scores decide as the linear score does."""
        return float((scores.argmax(1) == self.readout.linear_scores(self.currents).argmax(1)).float().mean())


def calibrated(neuron, returns, kind="auto", more=0.12, bias=BIAS, **options):
    x, targets = drawn(more)
    net = PassThrough(neuron, returns)
    _, readout = read(net, x[:, :5], kind)
    currents = readout_currents(x.to(torch.uint8), WEIGHT, bias)
    (found,) = calibrate(readout, net.out, currents, targets=targets, sets=[torch.arange(SAMPLES)], **options)
    return Case(net, readout, x, currents, targets, found)


def both(spk, mem):
    return spk, mem


@pytest.mark.parametrize("kind", ["spike_count", "spike_rate", "first_spike"])
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_spikes_decide_as_the_linear_score(kind, reset):
    neuron = snn.Leaky(beta=0.9, reset_mechanism=reset)
    before = set(vars(neuron))
    case = calibrated(neuron, lambda spk, mem: spk, kind)
    assert set(vars(neuron)) == before
    assert (case.readout.kind, case.readout.exactness) == (kind, "surrogate")
    scores, linear = case.readout.scores(case.returned()), case.readout.linear_scores(case.currents)
    assert torch.equal(scores, case.own())
    accuracy, linear = (float((some.argmax(1) == case.targets).float().mean()) for some in (scores, linear))
    assert linear > 0.9
    if kind != "first_spike":  # few of the spikes are left to decide by
        assert accuracy >= linear - 0.05
        assert case.agreement(scores) >= 0.93


def test_a_shift_upwards_is_taken_only_if_outputs_would_not_spike_without_it():
    """Shifted outputs spike more, and training that goes on from there loses accuracy."""
    assert calibrated(snn.Leaky(beta=0.9), both, "spike_count", 0.3).found.shift <= 0
    case = calibrated(snn.Leaky(beta=0.9), both, "spike_count", 0.3, bias=torch.full((CLASSES,), -100.0))
    assert case.found.shift > 0
    assert (case.own().argmax(1) == case.targets).float().mean() > 0.9


@pytest.mark.parametrize("more", [0.12, 0.3])
def test_of_scales_that_decide_as_well_the_clearest_membranes_win(more):
    case = calibrated(snn.Leaky(beta=0.9), both, "spike_count", more)
    wanted = torch.einsum("t,tmc->mc", case.readout.filter.float(), case.currents).argmax(1)

    def value_and_loss(scale, shift):
        spk, mem = case.returned(scale, shift)
        scores = spk.sum(0)
        top = (scores == scores.amax(1, keepdim=True)).float()
        credit = top / top.sum(1, keepdim=True)
        shares = [credit.gather(1, rows[:, None]).mean() for rows in (wanted, case.targets)]
        loss = float(nn.functional.cross_entropy(mem.flatten(0, 1), case.targets.repeat(STEPS)))
        return float(sum(shares)) / 2 - 0.005 * (shift > 0), loss  # a shift upwards has to gain half a point

    scale, shift = case.found.scale, case.found.shift
    value, loss = value_and_loss(scale, shift)
    others = [value_and_loss(scale * f, shift * f + d) for f in (0.005, 0.25, 0.5, 0.7, 1.4, 2) for d in (-0.05, 0, 0.05)]
    assert value >= max(other for other, _ in others) - 0.0021
    better = [other for other, less in others if less < 0.97 * loss]
    assert all(other < value for other in better)
    assert any(other >= value - 0.01 and more > 1.1 * loss for other, more in others)  # there was something to choose from


@pytest.mark.parametrize("kind", ["spike_count", "membrane_mean"])
def test_each_set_has_the_numbers_that_its_samples_alone_would_have(kind):
    case = calibrated(snn.Leaky(beta=0.9), both, kind)
    doubled, others = case.currents.repeat(1, 2, 1), case.targets.flip(0)
    sets = torch.arange(2 * SAMPLES).split(SAMPLES)
    found = calibrate(case.readout, case.net.out, doubled, targets=torch.cat([case.targets, others]), sets=sets)
    (alone,) = calibrate(case.readout, case.net.out, case.currents, targets=others, sets=sets[:1])
    for one, expected in zip(found, (case.found, alone), strict=True):
        torch.testing.assert_close(astuple(one), astuple(expected))


@pytest.mark.parametrize("kind", ["membrane_mean", "membrane_sum", "membrane_last"])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_membranes_that_never_reset_are_the_linear_score(kind, reset):
    case = calibrated(snn.Leaky(beta=0.9, reset_mechanism=reset), lambda spk, mem: mem, kind)
    assert (case.readout.kind, case.readout.exactness) == (kind, "surrogate")
    assert case.found.difference < 0.01
    # The same softmax: only a number common to all classes was added.
    linear = torch.einsum("t,tmc->mc", case.readout.filter.float(), case.currents)
    scores = case.readout.scores(case.returned())
    assert case.agreement(scores) == 1.0
    assert torch.allclose(scores.softmax(1), (case.found.scale * linear).softmax(1), atol=0.02)


def test_without_a_bias_there_is_no_shift():
    assert calibrated(snn.Leaky(beta=0.9), lambda spk, mem: spk, bias=None, with_bias=False).found.shift == 0.0


# -- a maximum over time ----------------------------------------------------------------------------------------------------
T, N, P, C = 12, 60, 10, 3  # steps, samples, units, classes
RIDGE = make_penalty("ridge")


@pytest.fixture
def readout():
    lag = torch.arange(T)[:, None] - torch.arange(T)
    matrix = torch.where(lag >= 0, torch.tensor(0.8, dtype=torch.float64) ** lag, 0.0)
    measured = OutputResponse(matrix, torch.zeros(T, dtype=torch.float64))
    return Readout("membrane_max", None, exactness="majorised", filter=matrix[-1], constant=0.0, response=measured)


def drawn_at(rates):
    return torch.bernoulli(rates.expand(T, N, P))


def labels():
    return torch.arange(N) % C


def objective(true, weight, bias):
    currents = true.spikes @ weight.T + (0.0 if bias is None else bias)
    scores = torch.einsum("st,tmc->smc", true.readout.response.matrix.float(), currents).amax(0).double()
    return true.loss.value(scores, true.targets).mean() + true.strength * RIDGE.value(weight.double())


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_true_objective_falls(loss, with_bias, readout):
    chosen = make_loss(loss)
    given = nn.functional.one_hot(labels(), C).float() if loss in ("squared", "huber") else labels()
    true = MaximumObjective(drawn_at(torch.tensor(0.2)), chosen.prepare(given, C), readout, chosen, RIDGE, 1e-3)
    start = torch.randn(C, P), torch.zeros(C) if with_bias else None
    found = [refine_maximum(true, *start, blocks=blocks).point for blocks in (1, 2, 4)]
    values = [float(objective(true, *point)) for point in (start, *found)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.8 * values[0]
    assert (found[-1][1] is None) == (not with_bias)


def test_a_minimum_is_as_low_as_by_plain_gradient_descent_and_is_kept(readout):
    rates = 0.1 + 0.3 * nn.functional.one_hot(labels(), C).repeat_interleave(3, 1)
    spikes = drawn_at(nn.functional.pad(rates, (0, 1)))
    true = MaximumObjective(spikes, labels(), readout, make_loss("cross_entropy"), RIDGE, 1e-2)
    found = refine_maximum(true, 0.1 * torch.randn(C, P), torch.zeros(C), blocks=3).point
    again = refine_maximum(true, *found, blocks=3).point
    by_columns = refine_maximum(true, found[0].T.contiguous().T, found[1], blocks=3).point
    assert all(torch.equal(*pair) for pair in zip(by_columns, again, strict=True))
    assert float(objective(true, *again)) == pytest.approx(float(objective(true, *found)), rel=1e-3)
    weight, bias = torch.zeros(C, P, requires_grad=True), torch.zeros(C, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        objective(true, weight, bias).backward()
        optimizer.step()
    assert float(objective(true, *found)) <= 1.02 * float(objective(true, weight.detach(), bias.detach()))


def test_other_samples_end_it(readout):
    true = MaximumObjective(drawn_at(torch.tensor(0.2)), labels(), readout, make_loss("cross_entropy"), RIDGE, 1e-4)
    start, losses = torch.randn(C, P), iter([3.0, 2.0, 1.0, 1.5, 1.2, 1.1])
    found = refine_maximum(true, start, None, loss=lambda weight, bias: next(losses))
    assert found.blocks == 2
    assert torch.equal(found.point[0], refine_maximum(true, start, None, blocks=2).point[0])
    kept = refine_maximum(true, start, None, loss=lambda weight, bias: 1.0)
    assert kept.blocks == 0
    assert torch.equal(kept.point[0], start)
