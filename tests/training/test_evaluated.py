"""The weights that validation, checkpoints and the module after training have."""

import math
from datetime import timedelta

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from snn_recon_plugin.errors import DataError, WriteError
from snn_recon_plugin.training.judge import Judge

from .runs import MARKS, Module, Normalised, assert_equal, callback, fit, state, trained, validation, weights

pytestmark = MARKS

NO_REFITS = {"at_start": False, "every_n_epochs": 0, "at_end": False, "average": 0.5}


class Points(pl.Callback):
    """The weights before the first step and after each."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, pl_module):
        self.seen.append(state(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(state(pl_module))


def averaged(points, decay):
    """Return the expected average."""
    shares = weights(decay, len(points))
    return {name: sum(share * point[name] for share, point in zip(shares, points, strict=True)) for name in points[0]}


@pytest.mark.parametrize("val", [None, validation()])
def test_the_average_is_in_the_net_after_training_which_never_sees_it(val):
    """Without refits too."""
    points = Points()
    plain, _ = fit(points, val=val)
    made = callback(at_start=False, every_n_epochs=0, at_end=False, keep="always", average=0.9)
    module, _ = fit(made, val=val)
    assert module.losses == plain.losses
    wanted = averaged(points.seen, 0.9)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), wanted[name], rtol=1e-4, atol=1e-6)
    assert not torch.equal(module.net.fc1.weight, plain.net.fc1.weight)
    if val is not None:
        assert torch.equal(module.seen[-1], module.net.fc2.weight)


def test_a_refit_is_on_the_averaged_hidden_layers():
    points = Points()
    plain, _ = fit(points, epochs=1)
    module, trainer = fit(callback(at_start=False, keep="always", average=0.9), epochs=1)
    wanted = averaged(points.seen, 0.9)
    torch.testing.assert_close(module.net.fc1.weight.detach(), wanted["net.fc1.weight"], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(module.net.fc2.weight, wanted["net.fc2.weight"], rtol=1e-2)
    assert module.losses == plain.losses
    assert trainer.callback_metrics["recon/averaged"] == 1


@pytest.mark.parametrize("refits", [0, 1])
def test_an_average_that_is_not_better_is_not_shown(refits):
    """A judge to whom all are alike; it is asked of the trained net and of the average, and again after a refit."""
    asked = []

    def judge(module):
        asked.append(module.net.fc1.weight.detach().clone())
        return 0.0

    made = callback(at_start=False, every_n_epochs=refits, at_end=False, average=0.9, judge=judge)
    module, trainer = fit(made)
    plain, _ = fit()
    assert_equal(state(module), state(plain))
    assert len(asked) == 1 + (3 if refits else 2) * 2  # once before training
    assert torch.equal(asked[-2 - refits], plain.net.fc1.weight)
    assert not torch.equal(asked[-1 - refits], plain.net.fc1.weight)
    if refits:
        assert trainer.callback_metrics["recon/averaged"] == 0


def test_an_average_that_was_better_is_compared_with_what_was_evaluated_alone_until_the_next_refit():
    asked = []

    def judge(module):
        asked.append(module.net.fc1.weight.detach().clone())
        return -float(len(asked))

    made = callback(at_start=False, every_n_epochs=3, at_end=False, average=0.9, judge=judge)
    module, _ = fit(made, epochs=4)
    plain, _ = fit(epochs=4)
    # Before training, after the first epoch, the average after the second, at the refit of the third with the net that it made,
    # and at the end.
    assert len(asked) == 1 + 2 + 1 + 3 + 2
    assert not torch.equal(module.net.fc1.weight, plain.net.fc1.weight)
    assert module.losses == plain.losses


@pytest.mark.parametrize("val", [None, validation()])
def test_data_decide_whether_the_average_is_shown(val):
    """Training that jumps about: its average is better by far, on validation data and on training samples."""

    def jumpy(parameters):
        return torch.optim.SGD(parameters, 0.6)

    options = {"at_start": False, "every_n_epochs": 0, "at_end": False}
    module, _ = fit(callback(average=0.9, **options), lambda: Module(jumpy), val=val, epochs=3)
    plain, _ = fit(callback(average=None, **options), lambda: Module(jumpy), val=val, epochs=3)
    assert module.losses == plain.losses
    assert not torch.equal(module.net.fc1.weight, plain.net.fc1.weight)


@pytest.mark.parametrize(("interval", "count"), [(4, 4), (timedelta(microseconds=1), 16)])
def test_a_validation_within_an_epoch_sees_the_average(interval, count):
    if isinstance(interval, timedelta):
        pytest.importorskip("lightning", minversion="2.6")
    made = callback(at_start=False, keep="always", every_n_epochs=0, at_end=False, average=0.9)
    options = {"val": validation(), "val_check_interval": interval, "num_sanity_val_steps": 0}
    module, trainer = fit(made, **options)
    plain, _ = fit(**options)
    assert module.losses == plain.losses
    same = [torch.equal(one, two) for one, two in zip(module.seen, plain.seen, strict=True)]
    assert same == [False] * count
    before = state(module)
    trainer.validate(module, validation(), verbose=False)
    assert_equal(state(module), before)


class Steps(Module):
    """Steps an optimizer that Lightning knows nothing of."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.net(inputs).mean(0), labels)
        self.losses.append(float(loss.detach()))
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_an_average_that_saw_no_step_is_not_shown():
    options = {"at_start": False, "every_n_epochs": 0, "at_end": False, "keep": "always"}
    module, trainer = fit(callback(average=0.9, **options), Steps, epochs=1)
    assert trainer.global_step == 0
    plain, _ = fit(None, Steps, epochs=1)
    assert_equal(state(module), state(plain))


def test_a_refit_that_fails_leaves_the_trained_net_to_validation(monkeypatch):
    """Also where the average had been found better a moment before."""

    def fail(*arguments):
        raise DataError("nothing", "something", "give it")

    monkeypatch.setattr("snn_recon_plugin.training.refit.initialize_network", fail)
    with pytest.warns(UserWarning, match="training goes on"):
        module, _ = fit(callback(at_start=False, keep="always", average=0.9), val=validation())
    plain, _ = fit(val=validation())
    assert_equal(state(module), state(plain))
    assert all(torch.equal(one, two) for one, two in zip(module.seen, plain.seen, strict=True))


def test_the_last_epoch_is_averaged_where_it_is_not_validated_too():
    options = {"at_start": False, "every_n_epochs": 0, "at_end": False, "keep": "always"}
    module, _ = fit(callback(average=0.9, **options), val=validation(), epochs=3, check_val_every_n_epoch=2)
    plain, _ = fit(val=validation(), epochs=3, check_val_every_n_epoch=2)
    assert not torch.equal(module.net.fc1.weight, plain.net.fc1.weight)
    assert module.losses == plain.losses


class Spoilt(Module):
    """Trained fast, and on wrong labels from the third epoch on."""

    def __init__(self):
        super().__init__(lambda parameters: torch.optim.Adam(parameters, 1e-2))

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        return super().training_step((inputs, (labels + (self.current_epoch > 1)) % 10), batch_idx)


def says(monkeypatch, *judged):
    """A judge that says what it is told to, each once."""
    said = iter([9.0, *judged])  # the first before training
    monkeypatch.setattr(Judge, "measure", lambda *arguments, **options: next(said))
    return said


@pytest.mark.parametrize("at_start", [False, True])
def test_a_net_that_gets_worse_is_evaluated_as_it_was(at_start):
    """And training never sees it."""
    made = callback(**{**NO_REFITS, "at_start": at_start})
    module, trainer = fit(made, Spoilt, val=validation(), epochs=10 if at_start else 4)
    before, last = module.seen[-2:]
    assert torch.equal(before, last)
    assert torch.equal(module.net.fc2.weight, last)
    assert trainer.callback_metrics["recon/held"] == 1
    if not at_start:
        twice, _ = fit(callback(**NO_REFITS), Spoilt, val=validation(), epochs=2)
        assert_equal(state(module), state(twice))
        assert module.losses == fit(None, Spoilt, val=validation(), epochs=4)[0].losses


class SpoiltNormalised(Spoilt):
    """With running statistics, which go on changing."""

    def __init__(self):
        super().__init__()
        self.net = Normalised()


def test_running_statistics_are_evaluated_with_the_weights_they_belong_to(tmp_path):
    made = callback(**NO_REFITS)
    module, trainer = trained(tmp_path, made, kind=SpoiltNormalised, epochs=4)
    assert trainer.callback_metrics["recon/held"] == 1
    twice, _ = trained(tmp_path / "twice", callback(**NO_REFITS), kind=SpoiltNormalised, epochs=2)
    assert_equal(state(module), state(twice))
    plain, _ = trained(tmp_path / "plain", pl.Callback(), kind=SpoiltNormalised, epochs=4)
    assert module.losses == plain.losses
    again, _ = trained(tmp_path, callback(**NO_REFITS), ckpt_path=tmp_path / "epoch=2.ckpt", kind=SpoiltNormalised, epochs=4)
    assert_equal(state(again), state(module))
    saved = torch.load(tmp_path / "epoch=3.ckpt", weights_only=True)["state_dict"]
    assert_equal(saved, state(module))


def test_a_net_that_gets_better_is_evaluated_as_it_is():
    module, trainer = fit(callback(**NO_REFITS), val=validation(), epochs=3)
    first, second, third = module.seen[-3:]
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert trainer.callback_metrics["recon/held"] == 0


@pytest.mark.parametrize("options", [{"keep": "always"}, {"judge": "held_out"}, {"average": None}])
def test_nothing_is_held_where_nothing_is_compared(options):
    module, trainer = fit(callback(**{**NO_REFITS, **options}), Spoilt, val=validation(), epochs=4)
    second, third = module.seen[-3:-1]
    assert not torch.equal(second, third)
    assert not trainer.callback_metrics.get("recon/held", 0)


def test_what_is_worse_is_compared_with_the_best(monkeypatch):
    """Else each epoch could be a little worse than the one before."""
    best, worse, good = 1.0, 1.1, 0.9
    says(monkeypatch, 2.0, best, worse, worse, good, good)
    module, trainer = fit(callback(**NO_REFITS), val=validation(), epochs=4)
    first, second, third, fourth = module.seen[-4:]
    assert torch.equal(second, first)
    assert torch.equal(third, first)
    assert not torch.equal(fourth, first)
    assert trainer.callback_metrics["recon/held"] == 0


def test_a_refit_must_not_be_worse_than_what_was_evaluated_before(monkeypatch):
    """Though it is better than the net that it was made of: as trained, averaged, refitted, in each of two epochs."""
    bad, less, good = 5.0, 4.0, 1.0
    says(monkeypatch, bad, less, good, bad, less, 2.0)
    made = callback(at_start=False, average=0.9)
    module, trainer = fit(made, val=validation())
    first, second = module.seen[-2:]
    assert torch.equal(first, second)
    assert torch.equal(module.net.fc2.weight, first)
    assert len(made.reports) == 2
    assert trainer.callback_metrics["recon/kept"] == 0
    assert trainer.callback_metrics["recon/held"] == 1


def test_a_resumed_run_holds_what_was_held(tmp_path):
    made, resumed = (callback(**NO_REFITS) for _ in range(2))
    whole, _ = trained(tmp_path, made, kind=Spoilt, epochs=4)
    again, trainer = trained(tmp_path, resumed, ckpt_path=tmp_path / "epoch=2.ckpt", kind=Spoilt, epochs=4)
    assert_equal(state(again), state(whole))
    assert torch.equal(again.seen[-1], whole.seen[-3])
    assert trainer.callback_metrics["recon/held"] == 1
    torch.load(tmp_path / "epoch=2.ckpt", weights_only=True)


@pytest.mark.parametrize(
    "interval", [{"val_check_interval": 4}, {"val_check_interval": 0.5}, {"val_check_interval": 4, "check_val_every_n_epoch": None}]
)
def test_a_validation_within_an_epoch_sees_the_best_weights(interval):
    """Wrong labels from the third epoch on spoil the trained weights; no validation sees these."""
    options = {"val": validation(), **interval, "num_sanity_val_steps": 0, "epochs": 4}
    module, _ = fit(callback(**NO_REFITS), Spoilt, **options)
    plain, _ = fit(None, Spoilt, **options)
    assert module.losses == plain.losses
    spoilt = module.seen[4:]
    assert all(torch.equal(weight, spoilt[0]) for weight in spoilt)
    assert not any(torch.equal(weight, spoilt[0]) for weight in plain.seen[4:])


def test_what_a_judge_says_nothing_of_does_not_take_its_place():
    numbers = iter([9.0, 2.0, 1.0, math.nan, math.nan])
    made = callback(**NO_REFITS, judge=lambda module: next(numbers))
    module, _ = fit(made, val=validation())
    assert torch.equal(module.seen[-1], module.seen[-2])


def test_evaluate_leaves_training_as_it_is():
    """Not a bit of the training differs from one without the callback; validation and the end have the refitted readout."""
    made = callback(at_start=False, keep="always")
    module, _ = fit(made, val=validation())
    plain, _ = fit(val=validation())
    assert module.losses == plain.losses
    assert len(made.reports) == 2
    assert not torch.equal(module.net.fc2.weight, plain.net.fc2.weight)
    assert torch.equal(module.net.fc1.weight, plain.net.fc1.weight)
    assert torch.equal(module.seen[-1], module.net.fc2.weight)
    assert not torch.equal(module.seen[-1], plain.seen[-1])


def test_a_validation_within_an_epoch_sees_the_training_as_it_is():
    made = callback(at_start=False, keep="always", every_n_epochs=1)
    module, _ = fit(made, val=validation(), val_check_interval=4, num_sanity_val_steps=0)
    plain, _ = fit(val=validation(), val_check_interval=4, num_sanity_val_steps=0)
    same = [torch.equal(one, two) for one, two in zip(module.seen, plain.seen, strict=True)]
    assert same == [True, False, True, False]


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"val_check_interval": 3}, [0, 1, 0, 1]),  # of 8 batches: after batches 3 and 6
        ({"val_check_interval": 0.4}, [0, 1, 0, 1]),
        ({"val_check_interval": 12, "check_val_every_n_epoch": None, "epochs": 3}, [1, 1]),  # within epoch 2, after epoch 3
        ({"val_check_interval": 3, "check_val_every_n_epoch": None}, [0, 1, 0, 0, 1]),
        ({"val_check_interval": 3, "check_val_every_n_epoch": 2}, [0, 1]),
    ],
)
def test_the_last_validation_of_an_epoch_sees_its_refit(options, seen):
    """Also if batches follow it."""
    made = callback(at_start=False, keep="always")
    options = {"val": validation(), "num_sanity_val_steps": 0, **options}
    module, _ = fit(made, **options)
    plain, _ = fit(**options)
    assert module.losses == plain.losses
    assert [not torch.equal(one, two) for one, two in zip(module.seen, plain.seen, strict=True)] == seen


def test_undoing_a_report_during_validation_and_after_it():
    """During it the trained readout comes back; after it there is nothing to undo, least of all in a net that has gone on."""

    class Undoes(Module):
        def on_validation_epoch_end(self):
            if made.report is not None and len(made.reports) == 2:
                made.report.undo()

    made = callback(at_start=False, keep="always")
    module, _ = fit(made, Undoes, val=validation())
    plain, _ = fit(val=validation())
    assert module.losses == plain.losses
    assert_equal(state(module), state(plain))
    assert [report.parameters for report in made.reports] == [[], []]
    with pytest.raises(WriteError):
        made.reports[0].undo()
