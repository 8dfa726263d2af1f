"""The weights that validation, checkpoints and the module after training have."""

from datetime import timedelta

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from snn_recon_plugin.errors import DataError, WriteError

from .runs import (
    MARKS,
    Module,
    Normalised,
    assert_equal,
    averages,
    callback,
    falling,
    fit,
    saying,
    state,
    trained,
    validation,
    weights,
)

pytestmark = MARKS


def same_weights(one, two):
    """Return for each validation of two runs whether they saw the same readout."""
    return [torch.equal(first, second) for first, second in zip(one.seen, two.seen, strict=True)]


# -- the average --------------------------------------------------------------------------------------------------------


class Points(pl.Callback):
    """The weights before the first step and after each."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, pl_module):
        self.seen.append(state(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(state(pl_module))


@pytest.mark.parametrize("metric", [averages, falling])
def test_the_average_is_in_the_net_after_training_which_never_sees_it(metric):
    """Its readout too, if no refit is kept."""
    points = Points()
    plain, _ = fit(points, val=validation(), epochs=1)
    module, trainer = fit(callback(at_start=False, metric=metric(), average=0.9), val=validation(), epochs=1)
    assert module.losses == plain.losses
    shares = weights(0.9, len(points.seen))
    for name, parameter in module.named_parameters():
        wanted = sum(share * point[name] for share, point in zip(shares, points.seen, strict=True))
        refitted = metric is falling and "fc2" in name
        assert torch.allclose(parameter, wanted, rtol=1e-4, atol=1e-6) is not refitted
    assert trainer.callback_metrics["recon/averaged"] == 1
    assert torch.equal(module.seen[-1], module.net.fc2.weight)


def test_an_average_that_is_worse_is_not_evaluated():
    calls = falling()
    module, trainer = fit(callback(at_start=False, metric=lambda module: -calls(module), average=0.9), epochs=1)
    assert_equal(state(module), state(fit(epochs=1)[0]))
    assert trainer.callback_metrics["recon/averaged"] == 0


@pytest.mark.parametrize("val", [None, validation()])
def test_data_decide_whether_the_average_is_evaluated(val):
    """Training that jumps about: its average is better by far, on validation data and on training samples."""

    def jumpy():
        return Module(lambda parameters: torch.optim.SGD(parameters, 0.6))

    _, trainer = fit(callback(at_start=False, average=0.9), jumpy, val=val, epochs=3)
    assert trainer.callback_metrics["recon/averaged"] == 1
    if val is not None:
        assert trainer.callback_metrics["recon/loss"] < trainer.callback_metrics["recon/trained_loss"]


@pytest.mark.parametrize(("interval", "count"), [(4, 4), (timedelta(microseconds=1), 16)])
def test_a_validation_within_an_epoch_sees_the_average(interval, count):
    if isinstance(interval, timedelta):
        pytest.importorskip("lightning", minversion="2.6")
    options = {"val": validation(), "val_check_interval": interval, "num_sanity_val_steps": 0}
    module, trainer = fit(callback(at_start=False, metric=averages(), average=0.9), **options)
    plain, _ = fit(**options)
    assert module.losses == plain.losses
    assert same_weights(module, plain) == [False] * count
    before = state(module)
    trainer.validate(module, validation(), verbose=False)
    assert_equal(state(module), before)


class Steps(Module):
    """Steps an optimizer that Lightning knows nothing of."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.net(inputs).mean(0), labels)
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_an_average_that_saw_no_step_is_not_evaluated():
    module, trainer = fit(callback(at_start=False, metric=averages(), average=0.9), Steps, epochs=1)
    assert trainer.global_step == 0
    assert_equal(state(module), state(fit(None, Steps, epochs=1)[0]))


# -- refits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [1.0, 4])
def test_a_refit_is_evaluated_and_training_never_sees_it(interval):
    """At the end of the first epoch and of the run; without an average other validations see the trained weights."""
    options = {"val": validation(), "val_check_interval": interval, "num_sanity_val_steps": 0, "epochs": 3}
    made = callback(at_start=False, metric=falling())
    module, _ = fit(made, **options)
    plain, _ = fit(**options)
    assert module.losses == plain.losses
    assert [report.undone for report in made.reports] == [False, False]
    assert same_weights(module, plain) == ([False, True, False] if interval == 1.0 else [True, False, True, True, True, False])
    assert torch.equal(module.seen[-1], module.net.fc2.weight)
    assert torch.equal(module.net.fc1.weight, plain.net.fc1.weight)


def test_a_refit_must_be_better_than_what_was_evaluated_before():
    """Though it is better than the net that it was made of: as trained, averaged and refitted, in each of two epochs."""
    made = callback(at_start=False, average=0.9, metric=saying(5.0, 4.0, 1.0, 5.0, 4.0, 2.0))
    module, trainer = fit(made, val=validation())
    first, second = module.seen[-2:]
    assert torch.equal(first, second)
    assert torch.equal(module.net.fc2.weight, first)
    assert (trainer.callback_metrics["recon/kept"], trainer.callback_metrics["recon/held"]) == (1, 1)


@pytest.mark.parametrize("average", [None, 0.9])
def test_a_refit_that_fails_leaves_the_trained_net(monkeypatch, average):
    """Also if the average was found better a moment before; a start that fails ends the run."""

    def fail(*arguments):
        raise DataError("nothing", "something", "give it")

    monkeypatch.setattr("snn_recon_plugin.training.refit.initialize_network", fail)
    with pytest.warns(UserWarning, match="training goes on"):
        module, _ = fit(callback(at_start=False, metric=falling(), average=average), val=validation())
    plain, _ = fit(val=validation())
    assert_equal(state(module), state(plain))
    assert all(same_weights(module, plain))
    with pytest.raises(DataError):
        fit(callback())


def test_undoing_a_report_during_validation_and_after_it():
    """During it the trained readout comes back; after it there is nothing to undo, least of all in a net that has gone on."""

    class Undoes(Module):
        def on_validation_epoch_end(self):
            if len(made.reports) == 2:
                made.report.undo()

    made = callback(at_start=False, metric=falling())
    module, _ = fit(made, Undoes, val=validation())
    plain, _ = fit(val=validation())
    assert module.losses == plain.losses
    assert_equal(state(module), state(plain))
    assert [report.parameters for report in made.reports] == [[], []]
    with pytest.raises(WriteError):
        made.reports[0].undo()


# -- the best weights ---------------------------------------------------------------------------------------------------


class Spoilt(Module):
    """Trained fast, and on wrong labels from the third epoch on."""

    def __init__(self):
        super().__init__(lambda parameters: torch.optim.Adam(parameters, 1e-2))

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        return super().training_step((inputs, (labels + (self.current_epoch > 1)) % 10), batch_idx)


@pytest.mark.parametrize("at_start", [False, True])
def test_a_net_that_gets_worse_is_evaluated_as_it_was(at_start):
    """And training never sees it."""
    options = {"val": validation(), "epochs": 5}
    module, trainer = fit(callback(at_start=at_start, average=0.5), Spoilt, **options)
    before, last = module.seen[-2:]
    assert torch.equal(before, last)
    assert torch.equal(module.net.fc2.weight, last)
    assert trainer.callback_metrics["recon/held"] == 1
    if not at_start:
        assert module.losses == fit(None, Spoilt, **options)[0].losses


def test_a_net_that_gets_better_is_evaluated_as_it_is():
    module, trainer = fit(callback(at_start=False, metric=averages(), average=0.5), val=validation(), epochs=3)
    first, second, third = module.seen[-3:]
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert trainer.callback_metrics["recon/held"] == 0


@pytest.mark.parametrize("options", [{"average": None}, {"val": None}])
def test_nothing_is_held_if_nothing_is_compared(options):
    val = options.pop("val", validation())
    made = callback(**{"average": 0.5, "at_start": False, **options})
    module, trainer = fit(made, Spoilt, val=val, epochs=4)
    assert not trainer.callback_metrics["recon/held"]
    assert not torch.equal(module.net.fc1.weight, fit(made, Spoilt, val=val, epochs=2)[0].net.fc1.weight)


class SpoiltNormalised(Spoilt):
    """With running statistics, which go on changing."""

    def __init__(self):
        super().__init__()
        self.net = Normalised()


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_run_holds_what_was_held_with_its_running_statistics(tmp_path):
    def run(folder, ckpt_path=None):
        made = callback(at_start=False, average=0.5)
        return trained(tmp_path / folder, made, kind=SpoiltNormalised, epochs=5, ckpt_path=ckpt_path)[0]

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


@pytest.mark.parametrize(
    "interval", [{"val_check_interval": 4}, {"val_check_interval": 0.5}, {"val_check_interval": 4, "check_val_every_n_epoch": None}]
)
def test_a_validation_within_an_epoch_sees_the_best_weights(interval):
    """No validation sees what wrong labels make of them."""
    options = {"val": validation(), **interval, "num_sanity_val_steps": 0, "epochs": 4}
    module, _ = fit(callback(at_start=False, average=0.5), Spoilt, **options)
    plain, _ = fit(None, Spoilt, **options)
    assert module.losses == plain.losses
    spoilt = module.seen[4:]
    assert all(torch.equal(weight, spoilt[0]) for weight in spoilt)
    assert not any(torch.equal(weight, spoilt[0]) for weight in plain.seen[4:])
