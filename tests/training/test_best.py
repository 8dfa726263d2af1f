"""What was evaluated before stays where what comes after it is worse by the judge."""

import math

import numpy as np
import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snn_recon_plugin.training.best import Best, can_be_held
from snn_recon_plugin.training.evaluation import Evaluation
from snn_recon_plugin.training.judge import Judged, Sums
from snn_recon_plugin.training.refit import Refits

from .runs import MARKS, Module, assert_equal, callback, fit, state, trained, validation

pytestmark = MARKS

NO_REFITS = {"at_start": False, "every_n_epochs": 0, "at_end": False, "average": 0.5}


class Spoilt(Module):
    """Trained fast, and on wrong labels from the third epoch on."""

    def __init__(self):
        super().__init__(lambda parameters: torch.optim.Adam(parameters, 1e-2))

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        return super().training_step((inputs, (labels + (self.current_epoch > 1)) % 10), batch_idx)


def says(monkeypatch, *judged):
    """A judge that says what it is told to, each once."""
    said = iter([Judged(9.0), *judged])  # the first before training
    monkeypatch.setattr(Refits, "_judged", lambda *arguments, **options: next(said))
    return said


@pytest.mark.parametrize("at_start", [False, True])
def test_a_net_that_gets_worse_is_evaluated_as_it_was(at_start):
    """And training never sees it."""
    made = callback(**{**NO_REFITS, "at_start": at_start}, protect=0)
    module, trainer = fit(made, Spoilt, val=validation(), epochs=10 if at_start else 4)
    before, last = module.seen[-2:]
    assert torch.equal(before, last)
    assert torch.equal(module.net.fc2.weight, last)
    assert trainer.callback_metrics["recon/held"] == 1
    if not at_start:
        twice, _ = fit(callback(**NO_REFITS), Spoilt, val=validation(), epochs=2)
        assert_equal(state(module), state(twice))
        assert module.losses == fit(None, Spoilt, val=validation(), epochs=4)[0].losses


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


def test_what_is_worse_by_chance_alone_is_evaluated_and_compared_with_the_best(monkeypatch):
    """Else each epoch could be a little worse than the one before."""
    near, further, far = (Judged(1.0 + step, 0.9 - step, 0.02) for step in (0.0, 0.04, 0.08))
    says(monkeypatch, Judged(2.0, 0.5), near, further, far, Judged(3.0, 0.3), far)
    module, trainer = fit(callback(**NO_REFITS), val=validation(), epochs=4)
    first, second, third, fourth = module.seen[-4:]
    assert not torch.equal(first, second)  # within two standard errors of the two
    assert torch.equal(third, first)
    assert torch.equal(fourth, first)
    assert trainer.callback_metrics["recon/held"] == 1


def test_a_refit_must_not_be_clearly_worse_than_what_was_evaluated_before(monkeypatch):
    """Though it is better than the net that it was made of: as trained, averaged, refitted, in each of two epochs."""
    bad, less, good = (Judged(value, accuracy, 0.01) for value, accuracy in ((5.0, 0.6), (4.0, 0.7), (1.0, 0.9)))
    says(monkeypatch, bad, less, good, bad, less, Judged(2.0, 0.8, 0.01))
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


def test_a_validation_within_an_epoch_sees_what_was_held():
    options = {"val": validation(), "val_check_interval": 4, "num_sanity_val_steps": 0, "epochs": 4}
    module, _ = fit(callback(**NO_REFITS), Spoilt, **options)
    plain, _ = fit(None, Spoilt, **options)
    assert module.losses == plain.losses
    inside, at_end = module.seen[::2], module.seen[1::2]  # of the epochs
    assert torch.equal(at_end[2], at_end[1])
    assert torch.equal(inside[3], at_end[1])
    assert not torch.equal(inside[2], at_end[1])  # then the average was not known to be worse


def test_what_a_judge_says_nothing_of_does_not_take_its_place():
    numbers = iter([9.0, 2.0, 1.0, math.nan, math.nan])
    made = callback(**NO_REFITS, judge=lambda module: next(numbers))
    module, _ = fit(made, val=validation())
    assert torch.equal(module.seen[-1], module.seen[-2])


def test_running_statistics_are_not_those_of_earlier_weights():
    net = nn.Sequential(nn.Linear(2, 2), snn.Leaky(beta=0.9, init_hidden=True))
    assert can_be_held(net)
    assert not can_be_held(nn.Sequential(net, nn.BatchNorm1d(2)))
    shown = Evaluation(0.9)
    for layers, held in ((net, True), (nn.Sequential(net, nn.BatchNorm1d(2)), False)):
        shown.hold(layers, Judged(1.0, 0.5))
        assert (shown.best is not None) is held


def test_the_best_is_what_it_was_until_something_is_as_good():
    layer = nn.Linear(3, 2)
    best, before = Best(layer.parameters(), Judged(1.0, 0.5, 0.01)), state(layer)
    assert all(best.beats(worse) for worse in (Judged(2.0, 0.4, 0.01), Judged()))
    assert not any(best.beats(other) for other in (Judged(2.0, 0.48, 0.01), Judged(0.9, 0.4, 0.01), Judged(1.0, 0.5, 0.01)))
    nn.init.zeros_(layer.weight)
    best.follow(Judged(0.9, 0.49, 0.01))
    best.show()
    assert_equal(state(layer), before)
    nn.init.zeros_(layer.weight)
    best.follow(Judged(1.1, 0.5, 0.01))
    nn.init.ones_(layer.weight)
    best.show()
    assert float(layer.weight.detach().abs().sum()) == 0
    assert best.judged.value == 1.1


@pytest.mark.parametrize(("values", "kept"), [((1.0, 0.9), False), ((0.9, 1.0), True)])
def test_without_classes_the_value_decides(values, kept):
    layer = nn.Linear(3, 2)
    before, best = state(layer), Best(layer.parameters(), Judged(values[0], error=0.01))
    nn.init.zeros_(layer.weight)
    best.follow(Judged(values[1], error=0.01))
    best.show()
    assert torch.equal(layer.weight, before["weight"]) is kept
    assert best.beats(Judged(2.0, error=0.01))
    assert not best.beats(Judged(0.92, error=0.01))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), min_size=2, max_size=50), st.booleans())
def test_standard_errors_are_those_of_the_samples(samples, classes):
    """Of a mean of ones and zeros, or of losses, all of the same weight; in whatever batches they came."""
    total = Sums()
    for loss, right in samples:
        total = total.plus(Sums(loss, float(right) if classes else math.nan, 1.0, loss**2, 1))
    judged = total.judged()
    compared = np.array([float(right) if classes else loss for loss, right in samples])
    assert judged.value == pytest.approx(np.mean([loss for loss, _ in samples]))
    assert judged.error == pytest.approx(compared.std() / math.sqrt(len(samples)), abs=1e-6)


def test_what_weighs_nothing_or_comes_from_a_function_has_no_error():
    assert all(math.isnan(part) for part in Sums().judged())
    judged = Sums(0.5, math.nan, 1.0).judged()
    assert judged.value == 0.5
    assert math.isnan(judged.error)
    assert not judged.clearly_better_than(Sums(9.0, math.nan, 1.0).judged())
