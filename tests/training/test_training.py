"""The parts of a refit that need no trainer."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from snn_recon_plugin import ReconstructionCallback
from snn_recon_plugin.errors import DataError, SolverError
from snn_recon_plugin.training import START, Budget, Handover, forget, reach_after
from snn_recon_plugin.training.batches import _in_order, _not_readable, _reading
from snn_recon_plugin.training.budget import COST
from snn_recon_plugin.training.loan import Loan
from snn_recon_plugin.training.processes import ProcessError, agree

quick = settings(deadline=None, derandomize=True, max_examples=50)


def refits(share, epochs, ahead=0.0):
    """Epochs after which a run's refits come, and of what share of the samples each is."""
    budget = Budget(share, epochs, ahead=ahead)
    taken = [budget.take(done, last=done == epochs) for done in range(1, epochs + 1)]
    return budget, {done: part for done, part in enumerate(taken, start=1) if part}


def test_a_budget_of_a_tenth_of_15_epochs():
    budget, taken = refits(0.1, 15)
    assert taken == {1: 1, 7: 1, 15: 1}
    assert budget.spent == pytest.approx(3 * COST)


def test_a_start_is_made_up_for_by_refits_in_between():
    budget, taken = refits(0.1, 15, START)
    assert taken == {1: 1, 15: 1}
    assert budget.spent == pytest.approx(2 * COST)
    assert set(refits(1.0, 15, START)[1]) == set(range(1, 16))


@quick
@given(st.floats(0.01, 3), st.integers(3, 200))
def test_a_start_costs_neither_the_first_refit_nor_the_last(share, epochs):
    without, taken = refits(share, epochs)[1], refits(share, epochs, START)[1]
    assert len(taken) <= len(without)
    assert (1 in taken) == (1 in without)
    assert (epochs in taken) >= (epochs in without)


@quick
@given(st.floats(0.01, 3), st.integers(1, 200))
def test_no_run_spends_more_than_its_share(share, epochs):
    budget, taken = refits(share, epochs)
    assert budget.spent <= share * epochs * (1 + 1e-9)
    assert all(part == 1 for done, part in taken.items() if done < epochs)
    if share * min(epochs, 50) >= COST:
        assert 1 in taken
    if share >= COST * math.sqrt(epochs):
        assert len(taken) == epochs


def test_a_long_run_that_ends_early_has_not_spent_much_more_than_its_share():
    budget = Budget(0.1, 1000)
    for done in range(1, 41):
        budget.take(done)
        assert budget.spent <= max(COST, 0.1 * math.sqrt(done * 50) * (1 + 1e-9))
    assert Budget(0.1, None).take(1) == 1  # a run that does not say how long it is


def test_a_last_refit_makes_do_with_what_is_left():
    budget = Budget(0.1, 3)
    assert budget.take(1) == 0
    assert budget.take(3, last=True) == pytest.approx(0.6)
    assert Budget(0.01, 3).take(3, last=True) == 0  # too few


def test_a_loan_ends_bit_for_bit():
    layer = nn.Linear(3, 2)
    trained = {name: value.detach().clone() for name, value in layer.named_parameters()}
    loan = Loan.of_checkpoint(layer, trained)
    with torch.no_grad():
        layer.weight.mul_(2)
    for _ in range(2):
        loan.end()
        assert torch.equal(layer.weight, trained["weight"])
    assert [parameter for parameter, _ in loan.trained] == [layer.weight, layer.bias]


def pairs(batch):
    return default_collate(batch)


@pytest.mark.parametrize("subset", [False, True])
def test_tensors_are_read_a_batch_at_a_time(subset):
    """To the same batches as sample by sample, which a collate function of the user's own needs."""
    data: Dataset = TensorDataset(torch.rand(20, 3), torch.arange(20))
    if subset:
        data = Subset(Subset(data, torch.randperm(20)[:15].tolist()), np.arange(3, 15))
    order = torch.randperm(len(data))[:11].tolist()
    plain, quick = (DataLoader(**_reading(DataLoader(data, collate_fn=collate), order, 4)) for collate in (pairs, default_collate))
    assert plain.batch_size == 4
    assert quick.batch_size is None
    assert len(plain) == len(quick) == 3
    for one, two in zip(plain, quick, strict=True):
        assert isinstance(two, list)
        for first, second in zip(one, two, strict=True):
            assert torch.equal(first, second)
            assert first.dtype == second.dtype


def test_samplers_that_are_not_the_trainers_own():
    class Wrapper(DistributedSampler):
        """As Lightning wraps a sampler of the user's own under DDP."""

    data = TensorDataset(torch.rand(8, 1))
    for kind, fine in ((DistributedSampler, True), (Wrapper, False)):
        loader = DataLoader(data, sampler=kind(data, num_replicas=2, rank=0))
        assert (_not_readable(loader) == "") is fine
    assert "makes the batches itself" in _not_readable(DataLoader(data, batch_size=None))
    own = BatchSampler(RandomSampler(data), 2, False)
    own.__class__ = type("Own", (BatchSampler,), {})
    assert "drawn by a Own" in _not_readable(DataLoader(data, batch_sampler=own))


def test_what_comes_in_order_under_ddp_too():
    data = TensorDataset(torch.rand(8, 1))
    assert _in_order(SequentialSampler(data))
    assert not _in_order(RandomSampler(data))
    for shuffle in (False, True):
        assert _in_order(DistributedSampler(data, num_replicas=2, rank=0, shuffle=shuffle)) is not shuffle


@pytest.mark.parametrize(("batches", "accumulated", "epochs"), [(10, 4, 10), (10, 5, 15), (10, 1, 3), (3, 8, 30)])
def test_how_many_epochs_a_number_of_steps_is(batches, accumulated, epochs):
    """Lightning steps after an epoch's last batch, whatever was accumulated."""
    run = SimpleNamespace(max_epochs=-1, max_steps=30, num_training_batches=batches, accumulate_grad_batches=accumulated)
    assert ReconstructionCallback()._budget(run).epochs == epochs


@pytest.mark.parametrize(("steps", "share"), [(3, 1 / 3), (20, 1 / 20), (200, 1 / 20), (0, 1.0)])
def test_short_protection_is_over_when_it_says(steps, share):
    readout = nn.Parameter(torch.zeros(1))
    handover = Handover(steps, 1.0)
    handover.begin()
    handover.before_step([readout])
    with torch.no_grad():
        readout.add_(1)
    handover.after_step(True, [readout])
    assert float(readout.detach()) == pytest.approx(share)


def test_steps_after_a_write_are_shortened():
    hidden, readout, frozen = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    frozen.requires_grad_(False)
    handover = Handover(60, 0.1)

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
    taken = [step() for _ in range(125)]
    assert taken[0] == pytest.approx([0.1 / 50, 1 / 20, 1], abs=1e-5)
    assert taken[24] == pytest.approx([0.1 / 2, 1, 1], abs=1e-5)
    assert taken[49] == taken[59] == pytest.approx([0.1, 1, 1], abs=1e-5)
    assert taken[66] == pytest.approx([0.1 ** (8 / 15), 1, 1], abs=1e-4)
    assert taken[74] == pytest.approx([1, 1, 1], abs=1e-5)
    assert taken[124] == [1, 1, 1]


def test_accumulated_gradients_are_no_step():
    part = nn.Parameter(torch.zeros(1))
    handover = Handover(1, 0.5)
    handover.begin()
    handover.before_step([part])
    handover.after_step(False, [])
    assert handover.done == 0
    with torch.no_grad():
        part.add_(1)
    handover.before_step([part])  # the place from before the first of the batches counts
    handover.after_step(True, [])
    assert float(part.detach()) == pytest.approx(0.5)
    handover.before_step([part])
    handover.begin()  # a write in the middle of an accumulation: nothing of it is taken back
    with torch.no_grad():
        part.fill_(9.0)
    handover.after_step(True, [])
    assert float(part.detach()) == 9.0
    none = Handover(0, 0.5, 1e-9)
    none.begin()
    none.before_step([part])
    with torch.no_grad():
        part.fill_(1.0)
    none.after_step(True, [])
    assert float(part.detach()) == 1.0
    assert Handover(0, 0.1).factor(1) == 1.0
    assert Handover(None, 0.1).factor(10**9) == pytest.approx(0.1)


SIZES = (((4, 3), 2.0), ((2, 3), 1.0), ((4, 3), 0.0), ((2, 2), 1.0))


def test_matrices_move_by_a_part_of_their_norm():
    hidden, readout, zero, still = (nn.Parameter(torch.full(size, value)) for size, value in SIZES)
    handover = Handover(100, 1.0, 0.01)
    handover.begin()

    def step(length):
        handover.before_step([hidden, readout, zero, still])
        before = [part.detach().clone() for part in (hidden, readout, zero)]
        with torch.no_grad():
            for part in (hidden, readout, zero):
                part.add_(length)
        handover.after_step(True, [readout])
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
    assert handover.done == 200
    norms = [float(hidden.detach().norm()), float(readout.detach().norm())]
    assert step(1.0)[:2] == pytest.approx([0.1 * norms[0], 0.1 * norms[1]], rel=1e-4)  # loosened


def test_how_far_matrices_may_move():
    for_good, loosened = Handover(None, 1.0, 0.001), Handover(400, 1.0, 0.01)
    assert [for_good.reach(step) for step in (1, 10**6)] == pytest.approx([0.001, 0.001])
    assert loosened.reach(400) == pytest.approx(0.01)
    assert loosened.reach(450) == pytest.approx(0.01 * math.sqrt(10))  # half-way, by ratios
    assert loosened.reach(500) == loosened.reach(10**6) == pytest.approx(0.1)
    assert Handover(None, 1.0).reach(1) == math.inf
    loosened.begin(0.5)  # half as far, and at last as far as others
    assert [loosened.reach(step) for step in (1, 400, 500)] == pytest.approx([0.005, 0.005, 0.1])
    loosened.begin()
    assert loosened.reach(1) == pytest.approx(0.01)
    assert Handover(None, 1.0, share=0.5).reach(1) == math.inf


def test_how_far_depends_on_what_was_written():
    told = {(surrogate, stands_in): reach_after(surrogate, stands_in) for surrogate in (True, False) for stands_in in (True, False)}
    assert told == {(False, False): 1.0, (False, True): 1.0, (True, False): 0.5, (True, True): 0.25}


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


@pytest.mark.parametrize(("own", "other", "raised"), [
    (None, None, None),
    (DataError("a", "b", "c"), None, DataError),
    (ValueError("own"), DataError("a", "b", "c"), ValueError),
    (None, DataError("a", "b", "c"), SolverError),
    (None, ValueError("its own"), ProcessError),
    (DataError("a", "b", "c"), ValueError("its own"), ProcessError),
])  # fmt: skip
def test_what_fails_in_one_process_ends_what_the_others_do(own, other, raised):
    """A solve that was refused anywhere is refused everywhere; where a process is gone, none goes on."""

    class Strategy:
        """Two processes, of which the other asks itself the same questions."""

        asked = 0

        def reduce_boolean_decision(self, decision, all=True):
            self.asked += 1
            theirs = other is None or (self.asked == 2 and isinstance(other, DataError))
            return decision and theirs

    trainer = type("Trainer", (), {"strategy": Strategy()})
    caught = None
    try:
        agree(trainer, own)
    except Exception as error:
        caught = error
    assert type(caught) is (raised or type(None))
