"""The watch over the steps after a write, and the memory of optimizers."""

import math

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.training.measure import Judgement
from snn_recon_plugin.training.protect import WATCHED_STEPS, Protection, Snapshot, clear_optimizer_state

from .runs import assert_equal, state

GOOD, BAD, CHANCE = 0.2, 2.2, 2.3


def step(protection, part):
    """Take a step of length 1; return what is left of it, and whether the loss is to be measured."""
    before = float(part.detach())
    protection.before_step()
    with torch.no_grad():
        part.add_(1)
    due = protection.after_step()
    return float(part.detach()) - before, due


def watched(solved=GOOD, loss=GOOD):
    part = nn.Parameter(torch.zeros(1))
    protection = Protection()
    protection.begin(nn.ParameterList([part]), Judgement(own=solved, zero=CHANCE), Judgement(own=loss))
    return protection, part


def test_training_that_goes_well_is_free_and_soon_unwatched():
    protection, part = watched()
    looked = []
    for number in range(1, 2 * WATCHED_STEPS):
        length, due = step(protection, part)
        assert length == 1
        if due:
            looked.append(number)
            assert protection.check(GOOD, [])
    assert looked == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert protection.safe is None


@pytest.mark.parametrize("loss", [BAD, math.nan, math.inf])
def test_steps_that_lose_what_was_solved_are_taken_back_and_shorter_for_a_while(loss):
    protection, part = watched()
    optimizer = torch.optim.SGD([part], 0.1, momentum=0.9)
    part.grad = torch.ones(1)
    optimizer.step()
    for _ in range(3):
        _, due = step(protection, part)
        assert not due or protection.check(GOOD, [optimizer])
    kept = float(part.detach()) - 1  # the look before was after two steps
    assert step(protection, part)[1]
    assert not protection.check(loss, [optimizer])
    assert float(part.detach()) == pytest.approx(kept)
    assert len(optimizer.state) == 0
    for number in range(1, WATCHED_STEPS + 1):
        length, due = step(protection, part)
        assert length == pytest.approx(0.25, abs=1e-3)
        assert due == (number & (number - 1) == 0)
        assert not due or protection.check(GOOD, [optimizer])
    assert step(protection, part)[0] == 1
    assert protection.safe is not None  # whole steps are watched anew


@pytest.mark.parametrize(
    ("begun", "loss", "good"), [(0.5, 0.89, True), (0.5, 0.91, False), (0.84, 0.91, True), (0.84, 0.93, False)]
)
def test_the_limit_is_little_below_chance_and_above_the_loss_of_a_small_readout(begun, loss, good):
    protection, part = watched(loss=begun * CHANCE)
    step(protection, part)
    assert protection.check(loss * CHANCE, []) is good


def test_a_weak_start_has_little_to_lose():
    for share, due in ((0.69, True), (0.71, False)):
        assert step(*watched(solved=share * CHANCE)) == (1, due)
    assert step(Protection(), nn.Parameter(torch.zeros(1))) == (1, False)  # nothing was written


def test_the_weights_before_the_first_of_accumulated_batches_count():
    protection, part = watched()
    step(protection, part)
    assert protection.check(BAD, []) is False
    protection.before_step()
    with torch.no_grad():
        part.add_(1)
    step(protection, part)
    assert float(part.detach()) == pytest.approx(0.25 * 2)


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
    assert set(optimizer.state) == (set(one.parameters()) if make is torch.optim.Adam else set())
    assert all(float(parameter.grad.abs().sum()) == 0 for parameter in two.parameters())  # a loop may read them after a step
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in one.parameters())


def test_a_snapshot_has_the_buffers_that_are_saved():
    """Those of a batch norm, of a neuron, and of a layer of the user's; membranes are of the last batch alone."""
    net = nn.Sequential(nn.BatchNorm1d(2), snn.Leaky(beta=0.9, init_hidden=True))
    net.register_buffer("seen", torch.zeros(3))
    kept = Snapshot.take(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for _, buffer in net.named_buffers():
        buffer.add_(1)
    net[1].beta.fill_(0.1)
    kept.write()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert "1.mem" not in kept.buffers


# -- snapshots of weights -----------------------------------------------------------------------------------------------------
def normalised():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    net(torch.randn(8, 2))
    return net


def test_a_snapshot_holds_running_statistics_and_comes_back_from_the_names_of_a_checkpoint():
    net = normalised()
    before, kept = state(net), Snapshot.take(net)
    net(torch.randn(8, 2))
    assert not torch.equal(net[1].running_mean, before["1.running_mean"])
    net[1].running_mean = net[1].running_mean.clone()  # some layers of users' own replace the buffer
    kept.write()
    assert_equal(state(net), before)
    outer, other = (nn.ModuleDict({"net": inner}) for inner in (net, normalised()))
    loaded = Snapshot.of_names(other, kept.named(outer))
    other["net"] = nn.SyncBatchNorm.convert_sync_batchnorm(other["net"])  # as Lightning does after it has read a checkpoint
    loaded.write()
    assert_equal(state(other), state(outer))
