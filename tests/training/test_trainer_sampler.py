"""Damped recurrence and hard samples in a trainer's run: when they come, what they leave behind, and how a run resumes."""

import logging

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback
from snn_recon_plugin.training.hard_samples import HardSampler

from ..nets import Recurrent
from .runs import MARKS, SAMPLES, Module, assert_equal, data_set, fit, loader, state, trained, validation

pytestmark = MARKS


class Noted(Module):
    """Notes the hooks on its recurrent weights, the sampler, and the labels at each step."""

    def __init__(self, net=None):
        super().__init__(net=net)
        self.hooks, self.samplers, self.drawn = set(), set(), []

    def training_step(self, batch, batch_idx):
        self.hooks |= {len(part._forward_pre_hooks) for part in self.net.modules() if part._forward_pre_hooks}
        self.samplers.add(type(self.trainer.train_dataloader.batch_sampler.sampler))
        self.drawn.append(batch[1].clone())
        return super().training_step(batch, batch_idx)


def recurrent(gain=1.0):
    """A module whose net reads an image row by row."""
    torch.manual_seed(0)
    neuron = snn.RLeaky(beta=0.9, linear_features=32)
    with torch.no_grad():
        neuron.recurrent.weight.mul_(gain)
    return Noted(Recurrent(nn.Linear(8, 32), neuron, hidden=32, over=lambda x: x.reshape(-1, 8, 8).unbind(1)))


def made(**options):
    return ReconstructionCallback(ConvexInitializer(hidden="keep", strength=0.01), **options)


def test_recurrent_gradients_are_damped_while_training_lasts():
    found = {}
    for damping in (0.25, 1.0):
        found[damping], trainer = fit(made(damping=damping), recurrent())
        assert found[damping].hooks == ({1} if damping < 1 else set())
        assert not found[damping].net.lif1.recurrent._forward_pre_hooks
        assert float(trainer.callback_metrics["recon/damping"]) == damping
    assert found[0.25].losses[0] == found[1.0].losses[0]  # no score is changed
    assert found[0.25].losses[-1] != found[1.0].losses[-1]


def test_without_an_option_the_growth_of_gradients_decides(caplog):
    """Those of large recurrent weights explode under snnTorch's default surrogate."""
    caplog.set_level(logging.INFO, logger="snn_recon_plugin")
    module, trainer = fit(made(), recurrent(gain=20), val=validation())
    assert float(trainer.callback_metrics["recon/damping"]) in (0.5, 0.25)
    assert module.hooks == {1}
    assert any("gradients through lif1 are multiplied by" in line for line in caplog.messages)


def test_hard_samples_are_drawn_and_the_loader_is_put_back(caplog):
    caplog.set_level(logging.INFO, logger="snn_recon_plugin")
    train = loader()
    own = train.batch_sampler.sampler
    module, _ = fit(made(hard_samples=True), Noted, train=train, val=validation(), epochs=3)
    assert module.samplers == {HardSampler}
    assert len(module.drawn) == 3 * len(train)
    assert train.batch_sampler.sampler is own
    assert not module.net._forward_hooks
    assert any("draws hard samples more often" in line for line in caplog.messages)


def test_an_error_puts_the_loader_back():
    class Failing(Noted):
        def on_train_epoch_end(self):
            raise RuntimeError("broken")

    train = loader()
    own = train.batch_sampler.sampler
    with pytest.raises(RuntimeError, match="broken"):
        fit(made(hard_samples=True, damping=0.5), Failing, train=train, val=validation())
    assert train.batch_sampler.sampler is own


@pytest.mark.parametrize(
    ("train", "options", "reason"),
    [
        (loader(), {}, ""),  # few samples
        (loader(shuffle=False), {"hard_samples": True}, "does not shuffle"),
        (loader(), {"hard_samples": True, "dataloader": DataLoader(data_set(), 50)}, "dataloader="),
        (DataLoader(data_set(), 50, sampler=RandomSampler(data_set(), num_samples=200)), {"hard_samples": True}, "draws a part"),
    ],
)
def test_other_loaders_stay_and_the_reason_is_said(train, options, reason, caplog):
    caplog.set_level(logging.INFO, logger="snn_recon_plugin")
    module, _ = fit(made(**options), Noted, train=train, val=validation())
    assert HardSampler not in module.samplers
    lines = [line for line in caplog.messages if "hard samples are not drawn" in line]
    assert [reason in line for line in lines] == [True] * bool(reason)


def test_samples_that_the_start_left_out_are_measured():
    """A batch that is not full is no part of a solve."""
    count = SAMPLES - 7
    train = DataLoader(data_set(count), 50, shuffle=True)
    callback = ReconstructionCallback(ConvexInitializer(hidden="keep", max_samples=200), hard_samples=True)
    module, _ = fit(callback, Noted, train=train, val=validation())
    assert module.samplers == {HardSampler}
    assert sum(len(labels) for labels in module.drawn) == 2 * count


@pytest.mark.parametrize("limit", [1.0, 0.5], ids=["whole epochs", "epochs that are cut short"])
def test_a_resumed_run_draws_as_an_uninterrupted_one(tmp_path, limit):
    def run(ckpt_path=None):
        options = {"train": loader(), "kind": Noted, "limit_train_batches": limit, "ckpt_path": ckpt_path}
        return trained(tmp_path, made(hard_samples=True), **options)[0]

    whole, resumed = run(), run(tmp_path / "epoch=1.ckpt")
    assert all(torch.equal(one, two) for one, two in zip(whole.drawn[-len(resumed.drawn) :], resumed.drawn, strict=True))
    assert_equal(state(resumed), state(whole))
