"""Damped recurrence and hard samples in a trainer's run: when they come, what they leave behind, and how a run resumes."""

import logging

import lightning.pytorch as pl
import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback
from snn_recon_plugin.errors import OptionError
from snn_recon_plugin.training.hard_samples import HardSampler

from .runs import MARKS, SAMPLES, Module, assert_equal, data_set, fit, loader, state, validation

pytestmark = MARKS


class Rows(nn.Module):
    """A row of the image a step, through a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(8, 32), snn.RLeaky(beta=0.9, linear_features=32)
        self.fc2, self.lif2 = nn.Linear(32, 10), snn.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x):
        spikes, hidden = self.lif1.init_rleaky()
        output, membranes = self.lif2.init_leaky(), []
        for row in x.reshape(-1, 8, 8).unbind(1):
            spikes, hidden = self.lif1(self.fc1(row), spikes, hidden)
            _, output = self.lif2(self.fc2(spikes), output)
            membranes.append(output)
        return torch.stack(membranes)


class Recurrent(Module):
    """A module with such a net; notes the hooks on its recurrent weights and the sampler at each step."""

    def __init__(self, net=Rows):
        super().__init__()
        self.net, self.hooks, self.samplers, self.drawn = net(), [], set(), []

    def training_step(self, batch, batch_idx):
        if isinstance(self.net, Rows):
            self.hooks.append(len(self.net.lif1.recurrent._forward_pre_hooks))
        self.samplers.add(type(self.trainer.train_dataloader.batch_sampler.sampler))
        self.drawn.append(batch[1].clone())
        return super().training_step(batch, batch_idx)


class Dense(Recurrent):
    """The same with the usual net."""

    def __init__(self):
        super().__init__(lambda: Module().net)


def made(**options):
    return ReconstructionCallback(ConvexInitializer(hidden="keep"), **options)


@pytest.mark.parametrize("damping", [0.25, 1.0])
def test_recurrent_gradients_are_damped_while_training_lasts(damping):
    module, trainer = fit(made(damping=damping), Recurrent, val=validation())
    assert set(module.hooks) == {int(damping < 1)}
    assert not module.net.lif1.recurrent._forward_pre_hooks
    assert float(trainer.callback_metrics["recon/damping"]) == damping


def test_damping_changes_training_and_no_score():
    (damped, _), (free, _) = (fit(made(damping=damping), Recurrent) for damping in (0.25, 1.0))
    assert damped.losses[0] == free.losses[0]
    assert damped.losses[-1] != free.losses[-1]


def test_without_an_option_the_growth_of_gradients_decides(caplog):
    """Those of large recurrent weights explode under snnTorch's default surrogate."""

    class Large(Recurrent):
        def __init__(self):
            super().__init__()
            with torch.no_grad():
                self.net.lif1.recurrent.weight.mul_(20)

    caplog.set_level(logging.INFO, logger="snn_recon_plugin")
    module, trainer = fit(made(), Large, val=validation())
    assert float(trainer.callback_metrics["recon/damping"]) in (0.5, 0.25)
    assert 1 in module.hooks
    assert any("gradients through lif1 are multiplied by" in line for line in caplog.messages)


@pytest.mark.parametrize("wrong", [0.0, 1.5, True, "half"])
def test_a_damping_is_a_number(wrong):
    with pytest.raises(OptionError, match="damping"):
        made(damping=wrong)


def test_hard_samples_are_drawn_and_the_loader_is_put_back(caplog):
    caplog.set_level(logging.INFO, logger="snn_recon_plugin")
    train = loader()
    own = train.batch_sampler.sampler
    module, _ = fit(made(hard_samples=True), Dense, train=train, val=validation(), epochs=3)
    assert module.samplers == {HardSampler}
    assert len(module.drawn) == 3 * len(train)
    assert train.batch_sampler.sampler is own
    assert not module.net._forward_hooks
    assert any("draws hard samples more often" in line for line in caplog.messages)


def test_few_samples_are_drawn_at_random():
    module, _ = fit(made(), Dense, val=validation())
    assert module.samplers == {RandomSampler}


def test_an_error_puts_the_loader_back():
    class Failing(Dense):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 3:
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx)

    train = loader()
    own = train.batch_sampler.sampler
    with pytest.raises(RuntimeError, match="broken"):
        fit(made(hard_samples=True, damping=0.5), Failing, train=train, val=validation())
    assert train.batch_sampler.sampler is own


@pytest.mark.parametrize(
    ("train", "options", "reason"),
    [
        (lambda: loader(shuffle=False), {}, "does not shuffle"),
        (loader, {"dataloader": DataLoader(data_set(), 50)}, "dataloader="),
        (lambda: DataLoader(data_set(), 50, sampler=RandomSampler(data_set(), num_samples=200)), {}, "draws a part"),
    ],
)
def test_other_loaders_stay_and_the_reason_is_said(train, options, reason, caplog):
    caplog.set_level(logging.INFO, logger="snn_recon_plugin")
    module, _ = fit(made(hard_samples=True, **options), Dense, train=train(), val=validation())
    assert HardSampler not in module.samplers
    assert any("hard samples are not drawn" in line and reason in line for line in caplog.messages)


def test_samples_that_the_start_left_out_are_measured():
    """A batch that is not full is no part of a solve."""
    count = SAMPLES - 7
    train = DataLoader(data_set(count), 50, shuffle=True)
    callback = ReconstructionCallback(ConvexInitializer(hidden="keep", max_samples=200), hard_samples=True)
    module, _ = fit(callback, Dense, train=train, val=validation())
    assert module.samplers == {HardSampler}
    assert sum(len(labels) for labels in module.drawn) == 2 * count


@pytest.mark.parametrize("limit", [1.0, 0.5], ids=["whole epochs", "epochs that are cut short"])
def test_a_resumed_run_draws_as_an_uninterrupted_one(tmp_path, limit):
    def run(epochs, ckpt_path=None):
        pl.seed_everything(0, verbose=False)
        module, callback = Dense(), made(hard_samples=True)
        saved = pl.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        quiet["limit_train_batches"] = limit
        trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[callback, saved], **quiet)
        trainer.fit(module, loader(), validation(), ckpt_path=ckpt_path)
        return module

    whole = run(3)
    resumed = run(3, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert all(torch.equal(one, two) for one, two in zip(whole.drawn[-len(resumed.drawn) :], resumed.drawn, strict=True))
    assert_equal(state(resumed), state(whole))
