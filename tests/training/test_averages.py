"""The running average of the weights, and when it is evaluated in place of them."""

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snn_recon_plugin import ConvexInitializer
from snn_recon_plugin.errors import DataError
from snn_recon_plugin.training.average import Average
from snn_recon_plugin.training.evaluation import Evaluation
from snn_recon_plugin.training.loan import named

from .runs import MARKS, Module, assert_equal, callback, fit, state, validation

pytestmark = MARKS


def weights(decay, count):
    """How much each of ``count`` points counts in an average, by its definition: 4 / (k + 3) of the k-th, or 1 - decay."""
    shares = [1.0]
    for number in range(2, count + 1):
        taken = max(1 - decay, 4 / (number + 3))
        shares = [share * (1 - taken) for share in shares] + [taken]
    return shares


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.floats(0.1, 0.999), st.lists(st.floats(-2, 2), min_size=1, max_size=40))
def test_an_average_is_a_weighted_mean_of_its_points(decay, values):
    layer = nn.Linear(1, 1, dtype=torch.float64)
    average, parameter = None, layer.weight
    for value in values:
        with torch.no_grad():
            parameter.fill_(value)
        if average is None:
            average = Average(decay, layer)
        else:
            average.follow()
    shares = weights(decay, len(values))
    assert sum(shares) == pytest.approx(1)
    wanted = sum(share * value for share, value in zip(shares, values, strict=True))
    average.show()
    assert float(parameter.detach()) == pytest.approx(wanted, abs=1e-9)


def test_an_average_goes_on_from_a_checkpoint():
    one, two = nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 3))
    first, second = Average(0.9, one), Average(0.9, two)
    for _ in range(5):
        with torch.no_grad():
            one[0].weight.add_(1)
        first.follow()
    second.restore(two, named(one, zip(first.parameters, first.values, strict=True)), first.points)
    two.load_state_dict(one.state_dict())
    for average in (first, second):
        average.follow()
        average.show()
    assert_equal(one.state_dict(), two.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_average_of_16_bits_arrives(dtype):
    """A hundredth of a small difference is less than their precision."""
    layer = nn.Linear(1, 1).to(dtype)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    average = Average(0.99, layer)
    with torch.no_grad():
        layer.weight.fill_(1.125)
    for _ in range(2000):
        average.follow()
    average.show()
    assert layer.weight.dtype == dtype
    assert float(layer.weight.detach()) == 1.125


def test_frozen_parameters_stay_as_they_are():
    layer = nn.Linear(1, 1)
    layer.weight.requires_grad_(False).fill_(-torch.inf)
    average = Average(0.9, layer)
    average.follow()
    average.show()
    assert float(layer.weight) == -torch.inf


class Points(pl.Callback):
    """The weights before the first step and after each."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, pl_module):
        self.seen.append(state(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(state(pl_module))


def averaged(points, decay):
    """What their average should be."""
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
        return torch.optim.SGD(parameters, 2.0)

    options = {"at_start": False, "every_n_epochs": 0, "at_end": False}
    module, _ = fit(callback(average=0.9, **options), lambda: Module(jumpy), val=val, epochs=3)
    plain, _ = fit(callback(average=None, **options), lambda: Module(jumpy), val=val, epochs=3)
    assert module.losses == plain.losses
    assert not torch.equal(module.net.fc1.weight, plain.net.fc1.weight)


def test_a_validation_within_an_epoch_sees_the_average_once_it_was_better():
    made = callback(at_start=False, keep="always", every_n_epochs=0, at_end=False, average=0.9)
    options = {"val": validation(), "val_check_interval": 4, "num_sanity_val_steps": 0}
    module, trainer = fit(made, **options)
    plain, _ = fit(**options)
    assert module.losses == plain.losses
    same = [torch.equal(one, two) for one, two in zip(module.seen, plain.seen, strict=True)]
    assert same == [True, False, False, False]
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

    def fail(self, net, batches):
        raise DataError("nothing", "something", "give it")

    monkeypatch.setattr(ConvexInitializer, "initialize", fail)
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


def test_nothing_is_averaged_where_refits_overwrite():
    made = callback(at_start=False, swap="overwrite", keep="always", average=0.9)
    module, trainer = fit(made)
    other, _ = fit(callback(at_start=False, swap="overwrite", keep="always", average=None))
    assert_equal(state(module), state(other))
    assert trainer.callback_metrics["recon/averaged"] == 0


def test_nothing_is_lent_where_there_is_no_average():
    shown = Evaluation(None)
    shown.better = True
    shown.glimpse(nn.Linear(1, 1))
    shown.follow()
    assert shown.checkpoint(nn.Linear(1, 1)) == {}
