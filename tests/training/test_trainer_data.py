"""Data of a trainer: the loader that solves read, and the judge of weights."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils import data as sources
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Subset, TensorDataset, default_collate

from snn_recon_plugin import ConvexInitializer
from snn_recon_plugin.errors import OptionError, ProcessError
from snn_recon_plugin.options import Options
from snn_recon_plugin.training.measure import TEMPERATURES
from snn_recon_plugin.training.trainer_data import TrainerJudge, explain_obstacle, is_ordered, make_loader

from ..nets import Recurrent
from .runs import (
    DATA,
    MARKS,
    READ,
    TEST,
    Module,
    assert_equal,
    callback,
    dictionaries,
    fit,
    loader,
    loss_of,
    plain,
    state,
    validation,
)

pytestmark = MARKS
FIRST = DATA.train_inputs[:400], DATA.train_labels[:400]


def judged(trainer):
    return [float(trainer.callback_metrics[f"recon/judged_{when}"]) for when in ("before", "after")]


@pytest.mark.parametrize(
    ("options", "data"),
    [
        ({"val": validation()}, TEST),
        ({"val": validation(), "limit_val_batches": 1}, (TEST[0][:100], TEST[1][:100])),
        ({}, FIRST),  # fewer than 1,000 training samples: all of them
    ],
    ids=["validation data", "limited", "training samples"],
)
def test_data_judge_by_the_loss_at_the_best_temperature(recwarn, options, data):
    module, trainer = fit(callback(at_start=False), epochs=1, **options)
    assert trainer.callback_metrics["recon/kept"]
    both = plain(epochs=1, **options), module
    expected = [min(loss_of(one, *data, 1 / temperature) for temperature in TEMPERATURES) for one in both]
    assert judged(trainer) == pytest.approx(expected, rel=1e-5)
    assert judged(trainer)[1] < judged(trainer)[0]
    assert not [warning for warning in recwarn if "training samples decide" in str(warning.message)]


def test_validation_data_are_found_also_where_none_were_read_before():
    """Lightning itself reads them at the first epoch that is validated."""
    made = callback(at_start=False)
    fit(made, val=validation(), num_sanity_val_steps=0, check_val_every_n_epoch=2)
    assert made.report.after.samples == 200


class Unlike(Module):
    """Takes whatever validation data come."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val", 0.0)


@pytest.mark.parametrize(
    ("val", "found"), [(dictionaries(), "training step raised"), ([validation(), validation()], "2 loaders of validation data")]
)
def test_validation_data_that_cannot_be_measured_are_left_alone_with_a_warning(val, found):
    made = callback(of=READ, at_start=False)
    with pytest.warns(UserWarning, match=rf"(?s)training samples decide.*metric=.*{found}"):
        _, trainer = fit(made, Unlike, val=val, epochs=1)
    assert made.report.program.samples == 400
    assert len(judged(trainer)) == 2


def test_samples_without_weight_choose_nothing():
    weight = torch.ones(10)
    weight[0] = 0
    zeros = DATA.test_labels == 0
    val = DataLoader(TensorDataset(DATA.test_inputs[zeros], DATA.test_labels[zeros]), batch_size=100)
    made = callback(of=ConvexInitializer(hidden="keep", strength=0.01, loss=nn.CrossEntropyLoss(weight=weight)), best_weights=True)
    module, trainer = fit(made, val=val, epochs=1)
    assert [report.undone for report in made.reports] == [True, True]
    assert "recon/judged_after" not in trainer.callback_metrics
    assert_equal(state(module), state(plain(val=val, epochs=1)))


def test_a_process_that_failed_ends_the_run_before_it_begins(monkeypatch):
    def fails(*arguments, **options):
        raise ProcessError("a process that has ended", "all processes", "see that process")

    monkeypatch.setattr("snn_recon_plugin.training.measure.WeightJudge.sum_losses", fails)
    with pytest.raises(ProcessError, match="has ended"):
        fit(callback(), val=validation())


@pytest.mark.parametrize(("slope", "kept"), [(-1.0, True), (0.0, False)])
def test_a_metric_decides_in_place_of_the_validation_loss(slope, kept):
    """It gets the module in evaluation mode, within validation; what it draws changes no training."""
    seen = []

    def metric(module):
        assert not module.training
        assert module.trainer.validating
        seen.append(module.net.fc2.weight.detach().clone())
        torch.rand(3)
        return torch.tensor(slope * len(seen))

    made = callback(at_start=False, metric=metric)
    module, trainer = fit(made, val=validation(), epochs=1)
    alone = plain(val=validation(), epochs=1)
    assert module.losses == alone.losses
    assert made.report.after.samples == 80  # of the training samples
    assert trainer.callback_metrics["recon/kept"] == float(kept)
    assert judged(trainer) == [2 * slope, 3 * slope]  # the first call is before training
    assert torch.equal(seen[1], alone.net.fc2.weight)
    assert torch.equal(module.net.fc2.weight, seen[2] if kept else seen[1])


@pytest.mark.parametrize("write", ["if_better", "always"])
def test_a_start_that_is_no_better_is_kept_on_request_and_a_refit_never(write):
    made = callback(of=ConvexInitializer(hidden="keep", strength=0.01, write=write), metric=lambda module: 0.0)
    module, _ = fit(made, val=validation(), epochs=1)
    assert (module.losses == plain(val=validation(), epochs=1).losses) is (write == "if_better")
    assert [report.undone for report in made.reports] == [write == "if_better", True]


@pytest.mark.parametrize(
    ("metric", "error", "found"),
    [
        (lambda module: None, OptionError, "metric gave a NoneType"),
        (lambda module: torch.ones(2), OptionError, "metric gave a Tensor"),
        (lambda module: 1 / 0, ZeroDivisionError, "division by zero"),  # the user's own
    ],
)
def test_a_metric_that_gives_no_number_ends_the_run_before_training(metric, error, found):
    module = Module()
    with pytest.raises(error, match=found):
        fit(callback(metric=metric), module)
    assert not module.losses


SMALL = TensorDataset(torch.rand(20, 3), torch.arange(20))


def test_tensors_are_read_a_batch_at_a_time():
    """To the same batches as sample by sample, which a collate function of the user's own needs."""
    data = Subset(Subset(SMALL, [*range(15, 0, -1)]), np.arange(3, 15))
    order = torch.randperm(len(data))[:11].tolist()
    loaders = (DataLoader(data, collate_fn=collate) for collate in (lambda batch: [*default_collate(batch)], default_collate))
    own, quick = (make_loader(loader, order, 4, seed=0) for loader in loaders)
    assert own.batch_size == 4
    assert quick.batch_size is None
    assert len(own) == len(quick) == 3
    for one, two in zip(own, quick, strict=True):
        assert isinstance(two, list)
        for first, second in zip(one, two, strict=True):
            assert torch.equal(first, second)
            assert first.dtype == second.dtype


class Wrapper(DistributedSampler):
    """As Lightning wraps a sampler of the user's own under DDP."""


class Own(sources.BatchSampler):
    pass


@pytest.mark.parametrize(
    ("loader", "obstacle"),
    [
        (DataLoader(SMALL, sampler=DistributedSampler(SMALL, num_replicas=2, rank=0)), ""),
        (DataLoader(SMALL, sampler=Wrapper(SMALL, num_replicas=2, rank=0)), "drawn by a Wrapper"),
        (DataLoader(SMALL, batch_size=None), "makes the batches itself"),
        (DataLoader(SMALL, batch_sampler=Own(RandomSampler(SMALL), 2, False)), "drawn by a Own"),
    ],
)
def test_data_that_can_be_read_by_another_loader(loader, obstacle):
    assert obstacle in explain_obstacle(loader)
    assert bool(explain_obstacle(loader)) is bool(obstacle)


def test_what_comes_in_order_under_ddp_too():
    assert is_ordered(sources.SequentialSampler(SMALL))
    assert not is_ordered(RandomSampler(SMALL))
    for shuffle in (False, True):
        assert is_ordered(DistributedSampler(SMALL, num_replicas=2, rank=0, shuffle=shuffle)) is not shuffle


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_ordered_epoch_that_is_cut_short_has_no_samples_behind_the_cut(shuffle):
    judge = TrainerJudge.__new__(TrainerJudge)
    trainer = SimpleNamespace(train_dataloader=DataLoader(SMALL, 5, shuffle=shuffle), num_training_batches=2, world_size=1)
    judge.trainer, judge.dataloader, judge.unpack, judge.options = trainer, None, None, Options()
    indices = judge.samples(None).indices
    assert len(indices) == 10
    assert (max(indices) >= 10) is shuffle


class Noted(Module):
    """Notes the hooks on its recurrent weights."""

    def __init__(self, net=None):
        super().__init__(net=net)
        self.hooks = set()

    def training_step(self, batch, batch_idx):
        self.hooks |= {len(part._forward_pre_hooks) for part in self.net.modules() if part._forward_pre_hooks}
        return super().training_step(batch, batch_idx)


def recurrent(gain=1.0):
    torch.manual_seed(0)
    neuron = snn.RLeaky(beta=0.9, linear_features=32)
    with torch.no_grad():
        neuron.recurrent.weight.mul_(gain)
    return Noted(Recurrent(nn.Linear(8, 32), neuron, hidden=32, over=lambda x: x.reshape(-1, 8, 8).unbind(1)))


def test_recurrent_gradients_are_damped_while_training_lasts():
    found = {}
    for damping in (0.25, 1.0):
        found[damping], trainer = fit(callback(damping=damping), recurrent(), train=loader(batch_size=100), epochs=1)
        assert found[damping].hooks == ({1} if damping < 1 else set())
        assert not found[damping].net.lif1.recurrent._forward_pre_hooks
        assert float(trainer.callback_metrics["recon/damping"]) == damping
    assert found[0.25].losses[0] == found[1.0].losses[0]  # no score is changed
    assert found[0.25].losses[-1] != found[1.0].losses[-1]


def test_without_an_option_the_growth_of_gradients_decides(caplog):
    """Those of large recurrent weights explode under snnTorch's default surrogate."""
    caplog.set_level(logging.INFO, logger="snn_recon_plugin")
    module, trainer = fit(callback(), recurrent(gain=20), val=validation(), epochs=1)
    assert float(trainer.callback_metrics["recon/damping"]) in (0.5, 0.25)
    assert module.hooks == {1}
    assert any("gradients through lif1 are multiplied by" in line for line in caplog.messages)
