"""Checkpoints, runs that go on from them, runs that fail or are interrupted, and several runs of one callback."""

import copy
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from .runs import MARKS, Module, assert_equal, averages, callback, falling, fit, loader, state, trained, trainer_of, validation

pytestmark = MARKS


def read(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ({"average": 0.9}, {"accumulate_grad_batches": 3}),
        ({"average": 0.9, "at_start": False}, {"val_check_interval": 4}),
        ({}, {"kind": partial(Module, partial(torch.optim.SGD, lr=30.0))}),  # a rate that destroys the start: steps are shorter
    ],
)
def test_resumed_equals_uninterrupted(tmp_path, caplog, options, extra):
    made, resumed = (callback(**options) for _ in range(2))
    with caplog.at_level("INFO", logger="snn_recon_plugin"):
        whole, trainer = trained(tmp_path, made, epochs=4, **extra)
    again, other = trained(tmp_path, resumed, epochs=4, ckpt_path=tmp_path / "epoch=1.ckpt", **extra)
    assert_equal(state(again), state(whole))
    assert again.losses == whole.losses[-len(again.losses) :]
    assert len(resumed.reports) == 1  # the start was before
    for name in ("judged_before", "judged_after", "trained_loss", "loss"):
        assert other.callback_metrics[f"recon/{name}"] == trainer.callback_metrics[f"recon/{name}"]
    assert ("nearly all that was solved was lost; earlier weights restored" in caplog.text) is ("kind" in extra)
    assert trainer.callback_metrics.get("recon/step_share", 1) < 1 or "kind" not in extra


def test_a_finished_run_resumed_keeps_its_refit_and_goes_on_as_if_there_had_been_no_end(tmp_path):
    """The end's refit is one that a longer run has not, so only what is trained is the same."""
    saved = pl.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}", save_on_train_epoch_end=False)
    ended, trainer = trained(tmp_path, callback(average=0.9), saved=saved, epochs=2)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    again, _ = trained(tmp_path, callback(average=0.9), ckpt_path=tmp_path / "epoch=1.ckpt", epochs=2)
    assert again.losses == []
    assert_equal(state(again), state(ended))
    whole, _ = trained(tmp_path / "whole", callback(average=0.9), epochs=3)
    longer, _ = trained(tmp_path, callback(average=0.9), ckpt_path=tmp_path / "after.ckpt", epochs=3)
    assert longer.losses == whole.losses[-len(longer.losses) :]


def test_a_callback_can_be_used_for_several_runs_and_the_same_seed_gives_the_same_bits():
    made = callback(average=0.9)
    first, second = (fit(made, val=validation())[0] for _ in range(2))
    assert first.losses == second.losses
    assert len(made.reports) == 2  # of the second run alone
    assert_equal(state(first), state(second))


@pytest.mark.parametrize(("only", "at_validation"), [(False, False), (True, True)])
def test_a_checkpoint_has_the_evaluated_weights(tmp_path, only, at_validation):
    """Though the trained ones are in the net while it is saved."""
    options = {"save_weights_only": only, "save_on_train_epoch_end": not at_validation}
    saved = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, **options)
    module, trainer = trained(tmp_path, callback(at_start=False, metric=falling(), average=0.9), epochs=1, saved=saved)
    assert_equal(read(tmp_path / "epoch=0.ckpt")["state_dict"], state(module))
    assert "lightning_module_state_dict" not in vars(trainer.strategy)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_checkpoint_within_an_epoch_has_the_average_and_training_goes_on_without_it(tmp_path):
    def run(ckpt_path=None):
        saved = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=11, save_top_k=-1, filename="step")
        made = callback(at_start=False, metric=averages(), average=0.9)
        return trained(tmp_path, made, saved=saved, epochs=2, ckpt_path=ckpt_path)[0]

    module, checkpoint = run(), read(tmp_path / "step.ckpt")
    (beside,) = (value for name, value in checkpoint.items() if name.startswith("recon/"))
    assert beside["trained"].keys() == dict(module.named_parameters()).keys()
    for name, value in beside["trained"].items():
        assert torch.equal(value, module.weights[11][name])
        assert torch.equal(checkpoint["state_dict"][name], beside["average"][name])
    assert_equal(run(tmp_path / "step.ckpt").weights[0], module.weights[11])


def test_the_refit_at_max_steps_is_validated_and_saved(tmp_path):
    saved = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=11, save_top_k=-1, filename="last")
    made = callback(at_start=False, metric=falling())
    module, trainer = trained(tmp_path, made, epochs=-1, max_steps=11, saved=saved)
    assert not made.report.undone
    assert torch.equal(read(tmp_path / "last.ckpt")["state_dict"]["net.fc2.weight"], module.net.fc2.weight)
    assert trainer.global_step == 11


class Interrupting(DummyLogger):
    """Interrupts the run when the first solve is logged."""

    def log_metrics(self, metrics, step=None):
        if "recon/kept" in metrics:
            raise SystemError("now")


@pytest.mark.parametrize(("at_start", "average"), [(False, 0.9), (True, None)])
def test_an_interrupt_right_after_a_write_leaves_the_trained_net(at_start, average):
    module = Module()
    twin = copy.deepcopy(module)
    with pytest.raises(SystemError, match="now"):
        fit(callback(at_start=at_start, metric=falling(), hidden="rescale", average=average), module, logger=Interrupting())
    if not at_start:
        fit(None, twin)
    assert_equal(state(module), state(twin))


class Searching(pl.Callback):
    """Saves and restores in the middle of a run, as a search for a learning rate does."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)
            trainer._checkpoint_connector.restore(self.path)
            trainer.fit_loop.restarting = trainer.fit_loop.epoch_loop.restarting = False


def test_what_is_restored_within_a_run_is_not_what_later_checkpoints_have(tmp_path):
    made, searching = callback(at_start=False, metric=averages(), average=0.9), Searching(tmp_path / "within.ckpt")
    module, trainer = fit(made, beside=[searching], train=loader(shuffle=False), val=validation(), epochs=3)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    within, after = (read(tmp_path / name)[f"recon/{made.state_key}"] for name in ("within.ckpt", "after.ckpt"))
    assert (within["points"], after["points"]) == (9, len(module.losses) + 1)
    assert len(module.losses) > 8
    assert not torch.equal(within["trained"]["net.fc1.weight"], after["trained"]["net.fc1.weight"])


def test_a_checkpoint_that_was_validated_is_saved_as_it_is(tmp_path):
    """Without what training had come to beside it, which is another net's by then."""
    made = callback(average=0.9)
    _, trainer = trained(tmp_path, made)
    trainer.validate(dataloaders=validation(), ckpt_path=tmp_path / "epoch=1.ckpt", verbose=False)
    trainer.save_checkpoint(tmp_path / "again.ckpt")
    one, two = (read(tmp_path / name) for name in ("epoch=1.ckpt", "again.ckpt"))
    assert_equal(one["state_dict"], two["state_dict"])
    assert f"recon/{made.state_key}" in one
    assert f"recon/{made.state_key}" not in two


def test_nothing_happens_in_a_dev_run_or_a_validation():
    made = callback()
    fit(made, fast_dev_run=True, val=validation())
    module = Module()
    before = state(module)
    trainer_of(made).validate(module, validation(), verbose=False)
    assert made.report is None
    assert_equal(state(module), before)
