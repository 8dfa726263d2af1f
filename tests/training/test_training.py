"""The parts of a refit that need no trainer."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snn_recon_plugin.training import Budget, Handover, Swap, forget
from snn_recon_plugin.training.budget import COST

quick = settings(deadline=None, derandomize=True, max_examples=50)


def refits(share, epochs, samples=1000):
    """Epochs after which a run's refits come, and how many samples each has."""
    budget = Budget(share, epochs, samples)
    taken = [budget.take(done, last=done == epochs) for done in range(1, epochs + 1)]
    return budget, {done: count for done, count in enumerate(taken, start=1) if count}


def test_a_budget_of_a_tenth_of_15_epochs():
    budget, taken = refits(0.1, 15)
    assert taken == {1: 1000, 7: 1000, 15: 1000}
    assert budget.spent == pytest.approx(3 * COST)


@quick
@given(st.floats(0.01, 3), st.integers(1, 200), st.integers(500, 100_000))
def test_no_run_spends_more_than_its_share(share, epochs, samples):
    budget, taken = refits(share, epochs, samples)
    assert budget.spent <= share * epochs * (1 + 1e-9)
    assert all(count == samples for done, count in taken.items() if done < epochs)
    if share * epochs >= COST:
        assert 1 in taken
    if share >= COST * math.sqrt(epochs):
        assert len(taken) == epochs


def test_a_last_refit_makes_do_with_what_is_left():
    budget = Budget(0.1, 3, 10_000)
    assert budget.take(1) == 0
    assert budget.take(3, last=True) == 6000
    assert Budget(0.1, 3, 800).take(3, last=True) == 0  # too few
    assert Budget(0.1, None, 1000).take(1) == 1000  # a run that does not say how long it is


def test_swap_is_its_own_inverse():
    layer = nn.Linear(3, 2)
    first = layer.weight.detach().clone()
    swap = Swap(layer.parameters())
    with torch.no_grad():
        layer.weight.mul_(2)
    changed = layer.weight.detach().clone()
    for _ in range(2):
        swap.put_in()
        swap.put_in()
        assert swap.inside
        assert torch.equal(layer.weight, first)
        assert torch.equal(swap.waiting()[0][1], changed)
        swap.take_out()
        swap.take_out()
        assert torch.equal(layer.weight, changed)


def test_steps_after_a_write_are_shortened():
    hidden, readout, frozen = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    frozen.requires_grad_(False)
    handover = Handover(40, 0.1)

    def step():
        handover.before_step([hidden, readout, frozen])
        before = [float(part.detach()) for part in (hidden, readout, frozen)]
        with torch.no_grad():
            for part in (hidden, readout, frozen):
                part.add_(1)
        handover.after_step(True, [readout])
        return [float(part.detach()) - value for part, value in zip((hidden, readout, frozen), before, strict=True)]

    assert step() == [1, 1, 1]  # nothing was written
    handover.begin()
    taken = [step() for _ in range(90)]
    assert taken[0] == pytest.approx([0.1, 1 / 20, 1], abs=1e-5)
    assert taken[39] == pytest.approx([0.1, 1, 1], abs=1e-5)
    assert taken[59] == pytest.approx([math.sqrt(0.1), 1, 1], abs=1e-4)
    assert taken[79] == pytest.approx([1, 1, 1], abs=1e-5)
    assert taken[89] == [1, 1, 1]


def test_accumulated_gradients_are_no_step():
    part = nn.Parameter(torch.zeros(1))
    handover = Handover(40, 0.5)
    handover.begin()
    handover.before_step([part])
    handover.after_step(False, [])
    assert handover.done == 0
    with torch.no_grad():
        part.add_(1)
    handover.before_step([part])  # the place from before the first of the batches counts
    handover.after_step(True, [])
    assert float(part.detach()) == pytest.approx(0.5)
    assert Handover(0, 0.1).factor(1) == 1.0


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.LBFGS])
def test_optimizers_forget_what_was_written(make):
    one, two = nn.Linear(2, 1), nn.Linear(1, 1)
    optimizer = make([*one.parameters(), *two.parameters()], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = two(one(torch.ones(4, 2))).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    forget([optimizer], two.parameters())
    if make is torch.optim.Adam:
        assert set(optimizer.state) == set(one.parameters())
    else:
        assert len(optimizer.state) == 0
    assert all(parameter.grad is None for parameter in two.parameters())
    assert all(parameter.grad is not None for parameter in one.parameters())
