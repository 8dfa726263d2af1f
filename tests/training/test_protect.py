"""Shortened steps after a write, and the memory of optimizers."""

import math

import pytest
import torch
from torch import nn

from snn_recon_plugin.errors import OptionError
from snn_recon_plugin.training.protect import StepLimiter, check_optimizers, clear_optimizer_state, step_scale


@pytest.mark.parametrize(("steps", "share"), [(3, 1 / 3), (20, 1 / 20), (200, 1 / 20), (0, 1.0)])
def test_short_protection_is_over_when_it_says(steps, share):
    readout = nn.Parameter(torch.zeros(1))
    limiter = StepLimiter(steps, 1.0)
    limiter.begin()
    limiter.before_batch(0, [readout])
    with torch.no_grad():
        readout.add_(1)
    limiter.after_batch(1, [readout])
    assert float(readout.detach()) == pytest.approx(share)


def test_steps_after_a_write_are_shortened():
    hidden, readout, frozen = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    frozen.requires_grad_(False)
    limiter = StepLimiter(60, 0.1)

    def step():
        limiter.before_batch(0, [hidden, readout, frozen])
        before = [float(part.detach()) for part in (hidden, readout, frozen)]
        with torch.no_grad():
            for part in (hidden, readout, frozen):
                part.add_(1)
        limiter.after_batch(1, [readout])
        return [float(part.detach()) - value for part, value in zip((hidden, readout, frozen), before, strict=True)]

    assert step() == [1, 1, 1]  # nothing was written
    limiter.begin()
    taken = [step() for _ in range(125)]
    assert taken[0] == pytest.approx([0.1 / 50, 1 / 20, 1], abs=1e-5)
    assert taken[24] == pytest.approx([0.1 / 2, 1, 1], abs=1e-5)
    assert taken[49] == taken[59] == pytest.approx([0.1, 1, 1], abs=1e-5)
    assert taken[66] == pytest.approx([0.1 ** (8 / 15), 1, 1], abs=1e-4)
    assert taken[74] == pytest.approx([1, 1, 1], abs=1e-5)
    assert taken[124] == [1, 1, 1]


def test_accumulated_gradients_are_no_step():
    part = nn.Parameter(torch.zeros(1))
    limiter = StepLimiter(1, 0.5)
    limiter.begin()
    limiter.before_batch(0, [part])
    limiter.after_batch(0, [])
    assert limiter.done == 0
    with torch.no_grad():
        part.add_(1)
    limiter.before_batch(0, [part])  # the place from before the first of the batches counts
    limiter.after_batch(1, [])
    assert float(part.detach()) == pytest.approx(0.5)
    limiter.before_batch(0, [part])
    limiter.begin()  # a write in the middle of an accumulation: nothing of it is taken back
    with torch.no_grad():
        part.fill_(9.0)
    limiter.after_batch(1, [])
    assert float(part.detach()) == 9.0
    none = StepLimiter(0, 0.5, 1e-9)
    none.begin()
    none.before_batch(0, [part])
    with torch.no_grad():
        part.fill_(1.0)
    none.after_batch(1, [])
    assert float(part.detach()) == 1.0
    assert StepLimiter(0, 0.1).hidden_share(1) == 1.0
    assert StepLimiter(None, 0.1).hidden_share(10**9) == pytest.approx(0.1)


SIZES = (((4, 3), 2.0), ((2, 3), 1.0), ((4, 3), 0.0), ((2, 2), 1.0))


def test_matrices_move_by_a_part_of_their_norm():
    hidden, readout, zero, still = (nn.Parameter(torch.full(size, value)) for size, value in SIZES)
    limiter = StepLimiter(100, 1.0, 0.01)
    limiter.begin()

    def step(length):
        limiter.before_batch(0, [hidden, readout, zero, still])
        before = [part.detach().clone() for part in (hidden, readout, zero)]
        with torch.no_grad():
            for part in (hidden, readout, zero):
                part.add_(length)
        limiter.after_batch(1, [readout])
        assert torch.equal(still, torch.ones(2, 2))
        return [float((part.detach() - old).norm()) for part, old in zip((hidden, readout, zero), before, strict=True)]

    for _ in range(60):
        step(0.0)
    norms = [float(hidden.detach().norm()), float(readout.detach().norm())]
    # The floor for a matrix of zeros: a tenth of the root of its four rows.
    assert step(1.0) == pytest.approx([0.01 * norms[0], 0.01 * norms[1], 0.01 * 0.2], rel=1e-4)
    assert step(1e-6) == pytest.approx([1e-6 * 12**0.5, 1e-6 * 6**0.5, 1e-6 * 12**0.5], rel=0.1)  # short enough as it is
    for _ in range(138):
        step(0.0)
    assert limiter.done == 200
    norms = [float(hidden.detach().norm()), float(readout.detach().norm())]
    assert step(1.0)[:2] == pytest.approx([0.1 * norms[0], 0.1 * norms[1]], rel=1e-4)  # loosened


def test_the_limit_depends_on_what_was_written():
    scales = {(surrogate, other): step_scale(surrogate, other) for surrogate in (True, False) for other in (True, False)}
    assert scales == {(False, False): 1.0, (False, True): 1.0, (True, False): 0.5, (True, True): 0.25}


def test_how_far_matrices_may_move():
    for_good, loosened = StepLimiter(None, 1.0, 0.001), StepLimiter(400, 1.0, 0.01)
    assert [for_good.limit(step) for step in (1, 10**6)] == pytest.approx([0.001, 0.001])
    assert loosened.limit(400) == pytest.approx(0.01)
    assert loosened.limit(450) == pytest.approx(0.01 * math.sqrt(10))  # half-way, by ratios
    assert loosened.limit(500) == loosened.limit(10**6) == pytest.approx(0.1)
    assert StepLimiter(None, 1.0).limit(1) == math.inf
    loosened.begin(0.5)  # half as far, and at last as far as others
    assert [loosened.limit(step) for step in (1, 400, 500)] == pytest.approx([0.005, 0.005, 0.1])
    loosened.begin()
    assert loosened.limit(1) == pytest.approx(0.01)
    assert StepLimiter(None, 1.0, scale=0.5).limit(1) == math.inf


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
    clear_optimizer_state([optimizer], two.parameters())
    if make is torch.optim.Adam:
        assert set(optimizer.state) == set(one.parameters())
    else:
        assert len(optimizer.state) == 0
    assert all(parameter.grad is None for parameter in two.parameters())
    assert all(parameter.grad is not None for parameter in one.parameters())


def test_optimizers_of_other_parameters_are_refused():
    one, two = nn.Linear(2, 1), nn.Linear(2, 1)
    optimizer = torch.optim.SGD(one.parameters(), 0.1)
    check_optimizers([optimizer], list(one.parameters()))
    check_optimizers([], list(two.parameters()))
    with pytest.raises(OptionError, match=r"do not hold the readout's parameters of shape \[1, 2\], \[1\]"):
        check_optimizers([optimizer], list(two.parameters()))
    two.requires_grad_(False)
    check_optimizers([optimizer], list(two.parameters()))
