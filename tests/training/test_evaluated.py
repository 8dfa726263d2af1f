"""The weights that validation, checkpoints and the module after training have."""

import pytest
import torch

from snn_recon_plugin.errors import DataError

from .runs import (
    MARKS,
    Module,
    assert_equal,
    averages,
    callback,
    falling,
    fit,
    normalised,
    plain,
    shares,
    state,
    trained,
    validation,
)

pytestmark = MARKS


def same_weights(one, two):
    return [torch.equal(first, second) for first, second in zip(one.seen, two.seen, strict=True)]


@pytest.mark.parametrize("metric", [averages, falling])
def test_the_average_is_in_the_net_after_training_which_never_sees_it(metric):
    """Its readout too, if no refit is kept."""
    alone = plain(val=validation(), epochs=1)
    module, trainer = fit(callback(at_start=False, metric=metric(), average=0.9), val=validation(), epochs=1)
    assert module.losses == alone.losses
    points = [*alone.weights, state(alone)]
    parts = shares(0.9, len(points))
    for name, parameter in module.named_parameters():
        wanted = sum(share * point[name] for share, point in zip(parts, points, strict=True))
        refitted = metric is falling and "fc2" in name
        assert torch.allclose(parameter, wanted, rtol=1e-4, atol=1e-6) is not refitted
    assert trainer.callback_metrics["recon/averaged"] == 1
    assert torch.equal(module.seen[-1], module.net.fc2.weight)


@pytest.mark.parametrize(("interval", "same"), [(1.0, [True, False]), (4, [True, True, True, False])])
def test_the_refit_is_evaluated_at_the_end_alone(interval, same):
    """Without an average other validations see the trained weights."""
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
    """Also if the average was found better a moment before; a start that fails ends the run."""

    def fail(*arguments, **options):
        raise DataError("nothing", "something", "give it")

    monkeypatch.setattr("snn_recon_plugin.training.refit.initialize_network", fail)
    with pytest.warns(UserWarning, match="training goes on"):
        module, _ = fit(callback(at_start=False, metric=falling(), average=0.9), val=validation(), epochs=1)
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


@pytest.mark.parametrize("options", [{"epochs": 5}, *OTHERS])
def test_a_net_that_gets_worse_is_evaluated_as_it_was(options):
    """No validation before the refit at the end sees what wrong labels make of it, nor does training see anything but that."""
    options = {"val": validation(), "epochs": 4, "num_sanity_val_steps": 0, **options}
    module, _ = fit(callback(at_start=False, average=0.5), Spoilt, **options)
    alone = plain(Spoilt, **options)
    spoilt = len(alone.seen) // 2
    for weight in module.seen[spoilt:-1]:
        assert torch.equal(weight, module.seen[spoilt])
    assert not any(torch.equal(weight, module.seen[spoilt]) for weight in alone.seen[spoilt:])
    assert module.losses == alone.losses


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_run_holds_what_was_held_with_its_running_statistics(tmp_path):
    def run(folder, ckpt_path=None):
        made, kind = callback(at_start=False, average=0.5), lambda: Spoilt(normalised())
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
