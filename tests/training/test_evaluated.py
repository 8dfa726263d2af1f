"""The weights that validation, checkpoints and the module after training have."""

import copy
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from snn_recon_plugin.errors import DataError

from .runs import (
    MARKS,
    SAMPLES,
    Module,
    assert_equal,
    callback,
    falling,
    fit,
    loader,
    normalised,
    plain,
    rising,
    state,
    trained,
    trainer_of,
    validation,
)

pytestmark = MARKS


def same_weights(one, two):
    return [torch.equal(first, second) for first, second in zip(one.seen, two.seen, strict=True)]


@pytest.mark.parametrize(("interval", "same"), [(1.0, [True, False]), (4, [True, True, True, False])])
def test_the_refit_is_evaluated_at_the_end_alone(interval, same):
    """Without best weights other validations see the trained weights."""
    options = {"val": validation(), "val_check_interval": interval, "num_sanity_val_steps": 0, "epochs": 2}
    made = callback(at_start=False, metric=falling(), fast=False)
    module, trainer = fit(made, **options)
    alone = plain(**options)
    assert module.losses == alone.losses
    assert [report.undone for report in made.reports] == [False]
    assert same_weights(module, alone) == same
    assert torch.equal(module.seen[-1], module.net.fc2.weight)
    assert torch.equal(module.net.fc1.weight, alone.net.fc1.weight)
    trainer.validate(module, validation(), verbose=False)
    assert len(made.reports) == 1


def test_a_refit_that_fails_leaves_the_trained_net(monkeypatch):
    """Also with best weights; a start that fails ends the run."""

    def fail(*arguments, **options):
        raise DataError("nothing", "something", "give it")

    monkeypatch.setattr("snn_recon_plugin.training.refit.initialize_network", fail)
    with pytest.warns(UserWarning, match="training goes on"):
        module, _ = fit(callback(at_start=False, metric=falling(), best_weights=True), val=validation(), epochs=1)
    alone = plain(val=validation(), epochs=1)
    assert_equal(state(module), state(alone))
    assert all(same_weights(module, alone))
    with pytest.raises(DataError):
        fit(callback())


def test_undoing_a_report_during_validation_and_after_it():
    """During it the trained readout comes back; after it there is nothing to undo."""

    class Undoes(Module):
        def on_validation_epoch_end(self):
            if made.reports:
                made.report.undo()

    made, options = callback(at_start=False, metric=falling(), fast=False), {"val": validation(), "epochs": 2}
    module, _ = fit(made, Undoes, **options)
    made.report.undo()
    assert module.losses == plain(**options).losses
    assert_equal(state(module), state(plain(**options)))
    assert made.report.parameters == []


class Spoilt(Module):
    """Trained fast, and on wrong labels from the third epoch on."""

    def __init__(self, net=None):
        super().__init__(lambda parameters: torch.optim.Adam(parameters, 1e-2), net)

    def on_train_batch_start(self, batch, batch_idx):
        super().on_train_batch_start(batch, batch_idx)
        batch[1].add_(self.current_epoch > 1).remainder_(10)


OTHERS = {"val_check_interval": 0.5}, {"val_check_interval": 4, "check_val_every_n_epoch": None}


@pytest.mark.parametrize("options", [{"epochs": 5}, OTHERS[0], pytest.param(OTHERS[1], marks=pytest.mark.slow)])
def test_a_net_that_gets_worse_is_evaluated_as_it_was(options):
    """No validation before the refit at the end sees what wrong labels make of it, nor does training see anything but that."""
    options = {"val": validation(), "epochs": 4, "num_sanity_val_steps": 0, **options}
    module, _ = fit(callback(at_start=False, best_weights=True), Spoilt, **options)
    alone = plain(Spoilt, **options)
    spoilt = len(alone.seen) // 2
    for weight in module.seen[spoilt:-1]:
        assert torch.equal(weight, module.seen[spoilt])
    assert not any(torch.equal(weight, module.seen[spoilt]) for weight in alone.seen[spoilt:])
    assert module.losses == alone.losses


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_run_holds_what_was_held_with_its_running_statistics(tmp_path):
    def run(folder, ckpt_path=None):
        made, kind = callback(at_start=False, best_weights=True), lambda: Spoilt(normalised())
        return trained(tmp_path / folder, made, kind=kind, epochs=5, ckpt_path=ckpt_path)[0]

    def saved(folder, epoch):
        return torch.load(tmp_path / folder / f"epoch={epoch}.ckpt", weights_only=True)

    whole, again = run("whole"), run("again", tmp_path / "whole" / "epoch=2.ckpt")
    held = saved("whole", 2)
    (beside,) = (value for name, value in held.items() if name.startswith("recon/"))
    assert not torch.equal(held["state_dict"]["net.norm.running_mean"], beside["trained"]["net.norm.running_mean"])
    for folder in ("whole", "again"):
        assert_equal(saved(folder, 3)["state_dict"], held["state_dict"])
    assert again.losses == whole.losses[-len(again.losses) :]
    assert_equal(state(again), state(whole))


# -- checkpoints, runs that go on from them, runs that fail, and several runs of one callback -------------------------------
def read(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ({"best_weights": True}, {"accumulate_grad_batches": 3}),
        ({"best_weights": True, "at_start": False}, {"val_check_interval": 4}),
        ({}, {"kind": partial(Module, partial(torch.optim.SGD, lr=30.0))}),  # a rate that destroys the start: steps are shorter
    ],
)
def test_resumed_equals_uninterrupted(tmp_path, caplog, options, extra):
    made, resumed = (callback(**options) for _ in range(2))
    with caplog.at_level("INFO", logger="snn_recon_plugin"):
        whole, trainer = trained(tmp_path, made, epochs=3, **extra)
    again, other = trained(tmp_path, resumed, epochs=3, ckpt_path=tmp_path / "epoch=1.ckpt", **extra)
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
    ended, trainer = trained(tmp_path, callback(best_weights=True), saved=saved, epochs=2)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    again, _ = trained(tmp_path, callback(best_weights=True), ckpt_path=tmp_path / "epoch=1.ckpt", epochs=2)
    assert again.losses == []
    assert_equal(state(again), state(ended))
    whole, _ = trained(tmp_path / "whole", callback(best_weights=True), epochs=3)
    longer, _ = trained(tmp_path, callback(best_weights=True), ckpt_path=tmp_path / "after.ckpt", epochs=3)
    assert longer.losses == whole.losses[-len(longer.losses) :]


def test_a_checkpoint_of_version_0_4_resumes_without_its_average_and_its_sampler(tmp_path):
    made = callback(at_start=False, best_weights=True)
    whole, _ = trained(tmp_path, made)
    checkpoint = read(tmp_path / "epoch=1.ckpt")
    beside, weights = checkpoint[f"recon/{made.state_key}"], checkpoint["state_dict"]
    assert not beside["held"]
    parameters = {name: weights[name] for name, _ in whole.named_parameters()}
    average = {name: value + 1.0 for name, value in parameters.items()}
    sampler = {"labels": torch.zeros(SAMPLES), "hardness": torch.zeros(SAMPLES), "keep": 0.5, "epoch": 1, "updated": True}
    beside.update(trained=parameters, average=average, points=17, averaged=True, sampler=sampler)
    weights.update(average)  # 0.4 evaluated it, and went on from the trained weights
    torch.save(checkpoint, tmp_path / "earlier.ckpt")
    resumed, _ = trained(tmp_path, callback(at_start=False, best_weights=True), ckpt_path=tmp_path / "earlier.ckpt")
    assert resumed.losses == whole.losses[-len(resumed.losses) :]
    assert_equal(state(resumed), state(whole))


def test_a_callback_can_be_used_for_several_runs_and_the_same_seed_gives_the_same_bits():
    made = callback(best_weights=True)
    first, second = (fit(made, val=validation())[0] for _ in range(2))
    assert first.losses == second.losses
    assert len(made.reports) == 2  # of the second run alone
    assert_equal(state(first), state(second))


@pytest.mark.parametrize(("only", "at_validation"), [(False, False), (True, True)])
def test_a_checkpoint_has_the_evaluated_weights(tmp_path, only, at_validation):
    """Though the trained ones are in the net while it is saved."""
    options = {"save_weights_only": only, "save_on_train_epoch_end": not at_validation}
    saved = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, **options)
    module, trainer = trained(tmp_path, callback(at_start=False, metric=falling(), best_weights=True), epochs=1, saved=saved)
    assert_equal(read(tmp_path / "epoch=0.ckpt")["state_dict"], state(module))
    assert "lightning_module_state_dict" not in vars(trainer.strategy)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_checkpoint_within_an_epoch_has_the_best_weights_and_training_goes_on_without_it(tmp_path):
    def run(ckpt_path=None):
        saved = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=11, save_top_k=-1, filename="step")
        made = callback(metric=rising(), best_weights=True)
        return trained(tmp_path, made, saved=saved, epochs=2, ckpt_path=ckpt_path)[0]

    module, checkpoint = run(), read(tmp_path / "step.ckpt")
    (beside,) = (value for name, value in checkpoint.items() if name.startswith("recon/"))
    for name, _ in module.named_parameters():
        assert torch.equal(beside["trained"][name], module.weights[11][name])
        assert torch.equal(checkpoint["state_dict"][name], beside["best"][name])
        assert not torch.equal(beside["best"][name], beside["trained"][name])
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


@pytest.mark.parametrize(("at_start", "best_weights"), [(False, True), (True, False)])
def test_an_interrupt_right_after_a_write_leaves_the_trained_net(at_start, best_weights):
    module = Module()
    twin = copy.deepcopy(module)
    made = callback(at_start=at_start, metric=falling(), hidden="rescale", best_weights=best_weights)
    with pytest.raises(SystemError, match="now"):
        fit(made, module, logger=Interrupting())
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
    made, searching = callback(metric=rising(), best_weights=True), Searching(tmp_path / "within.ckpt")
    module, trainer = fit(made, beside=[searching], train=loader(shuffle=False), val=validation(), epochs=3)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    within, after = (read(tmp_path / name)[f"recon/{made.state_key}"] for name in ("within.ckpt", "after.ckpt"))
    assert len(module.losses) > 8
    assert torch.equal(within["trained"]["net.fc1.weight"], module.weights[8]["net.fc1.weight"])
    assert not torch.equal(within["trained"]["net.fc1.weight"], after["trained"]["net.fc1.weight"])


def test_a_checkpoint_that_was_validated_is_saved_as_it_is(tmp_path):
    """Without what training had come to beside it, which is another net's by then."""
    made = callback(best_weights=True)
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
