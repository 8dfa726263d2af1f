"""Temporary readouts: their rows of a sample, and their held-out loss."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from snn_recon_plugin.convex import make_loss
from snn_recon_plugin.hidden import HiddenTask, hidden_task, make_temporary_readout
from snn_recon_plugin.hidden.hidden_task import CrossValidation, split_in_folds, to_class_labels
from snn_recon_plugin.networks import Readout

from ..helpers import mean_filter, train_data

FILTER = mean_filter()
COUNT = 120


def temporary(filter_=FILTER):
    return make_temporary_readout(Readout("membrane_mean", "exact", filter_, 0.0, None, response=None))


def validation(targets, loss="cross_entropy", outputs=10, seed=0, samples=None, weights=None):
    splits = split_in_folds(len(targets), seed, samples)
    return CrossValidation(temporary(), targets, outputs, make_loss(loss), splits, weights)


def data(count=COUNT):
    inputs, targets = train_data(count)
    return inputs, targets


def test_every_sample_is_held_out_once():
    targets = data(50)[1]
    parts = [held for _, held in validation(targets).splits]
    assert sorted(torch.cat(parts).tolist()) == list(range(50))
    assert {len(part) for part in parts} <= {12, 13}


def test_samples_that_do_not_count_change_nothing():
    features, targets = data(80)
    among = torch.arange(0, 80, 2)
    own = validation(targets, samples=among)
    assert sorted(torch.cat([held for _, held in own.splits]).tolist()) == among.tolist()
    loss = own.evaluate_features(features)
    other = targets.clone()
    other[1::2] = 0
    assert validation(other, samples=among).evaluate_features(features) == loss


def test_samples_of_weight_zero_change_nothing():
    features, targets = data(80)
    weights = (torch.arange(80) % 2 == 0).double()
    loss = validation(targets, weights=weights).evaluate_features(features)
    other = targets.clone()
    other[1::2] = 0
    assert validation(other, weights=weights).evaluate_features(features) == pytest.approx(loss, rel=1e-6)
    assert validation(other).evaluate_features(features) != pytest.approx(loss, rel=0.1)


def test_the_loss_is_the_cross_validated_one():
    """Against scikit-learn's logistic regression, fitted with the same folds and strengths."""
    features, targets = data()
    own = validation(targets)
    column, variance = float(FILTER.sum()), float(features.double().var(0, correction=0).mean())
    total, shares = 0.0, hidden_task.RIDGES
    for fitted, held in own.splits:
        losses = {}
        for share in shares:
            model = LogisticRegression(C=1 / (share * variance * len(fitted)), tol=1e-8, max_iter=10_000)
            model.fit(features[fitted].double().numpy(), targets[fitted].numpy())
            probabilities = model.predict_log_proba(features[held].double().numpy())
            losses[share] = -probabilities[np.arange(len(held)), targets[held].numpy()].mean()
        best = min(losses, key=losses.get)
        shares, total = (best,), total + len(held) * losses[best]
    assert column > 0  # a free bias: its column's size does not matter
    assert own.evaluate_features(features) == pytest.approx(total / COUNT, rel=0.02)


@pytest.mark.parametrize("value", [0.0, 0.4517, 1.0])
def test_what_never_changes_is_worth_nothing(value):
    assert validation(data()[1]).evaluate_features(torch.full((COUNT, 7), value)) == math.inf


def test_information_is_worth_more_than_noise():
    features, targets = data()
    own = validation(targets)
    noise = features[torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))]
    assert own.evaluate_features(features) < 0.7 * own.evaluate_features(noise)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_other_losses(loss):
    features, targets = data()
    noise = 1e-3 * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    chance = validation(targets, loss).evaluate_features(noise)
    assert 0 < validation(targets, loss).evaluate_features(features) < 0.8 * chance


def test_the_seed_decides_the_parts():
    features, targets = data()
    losses = [validation(targets, seed=seed).evaluate_features(features) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_some_of_very_many_features(monkeypatch):
    features, targets = data()
    one, own = features[:, 20:21], validation(targets)
    copies = {count: own.evaluate_features(one.repeat(1, count)) for count in (20, 64)}
    assert copies[20] != copies[64]
    monkeypatch.setattr(hidden_task, "MAX_FEATURES", 20)
    assert own.evaluate_features(one.repeat(1, 64)) == copies[20]
    assert own.evaluate_features(features) == own.evaluate_features(features)


class Stepwise:
    """A readout with a filter for each of three steps."""

    filter, bias_gain = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), 0.7
    matrix = torch.tril(torch.ones(3, 3, dtype=torch.float64))
    bias_gains = matrix.sum(1)


def test_one_target_a_sample_is_one_row():
    whole, spikes = make_temporary_readout(Stepwise()), torch.rand(3, 2, 4, dtype=torch.float64)
    assert (whole.rows_each, whole.steps, whole.bias_column(5)) == (1, None, 0.7)
    torch.testing.assert_close(whole.filters, Stepwise.filter[None])
    features = spikes.cumsum(0).movedim(0, 1)
    torch.testing.assert_close(whole.take_features(features), features.mean(1))


def test_a_target_at_every_step_is_a_row_for_each_of_a_few_steps():
    steps, spikes = make_temporary_readout(Stepwise(), stepwise=True), torch.rand(3, 2, 4, dtype=torch.float64)
    assert steps.steps.tolist() == [0, 1, 2]
    assert steps.bias_column(2).tolist() == [1, 2, 3, 1, 2, 3]
    features = spikes.cumsum(0).movedim(0, 1)
    torch.testing.assert_close(steps.filters, Stepwise.matrix)
    torch.testing.assert_close(steps.take_features(features), features.flatten(0, 1))
    assert steps.find_rows(torch.tensor([0, 2])).tolist() == [0, 1, 2, 6, 7, 8]
    long = type("Long", (Stepwise,), {"matrix": torch.eye(25), "bias_gains": torch.zeros(25)})()
    assert make_temporary_readout(long, stepwise=True).steps.tolist() == [5, 11, 18, 24]
    assert make_temporary_readout(long, stepwise=True).bias_column(3).tolist() == [0] * 12
    # Few sequences are fitted at more of their steps.
    assert make_temporary_readout(long, stepwise=True, samples=5000).rows_each == 4
    assert make_temporary_readout(long, stepwise=True, samples=500).rows_each == 10
    assert make_temporary_readout(long, stepwise=True, samples=20).rows_each == 25


def test_targets_of_any_kind_become_classes():
    assert to_class_labels(torch.tensor([2, 0, 1])).tolist() == [2, 0, 1]
    assert to_class_labels(torch.eye(3)[[2, 0, 1]]).tolist() == [2, 0, 1]
    values = torch.arange(80.0)
    found = to_class_labels(values)
    assert found.unique().tolist() == list(range(8))
    assert found.bincount().tolist() == [10] * 8
    assert (found.diff() >= 0).all()


def test_each_layer_draws_other_numbers_from_the_same_seed():
    task = HiddenTask(None, [], data(20)[1], None, None, None, temporary(), make_loss("cross_entropy"), seed=3)
    first, second, again = (torch.rand(4, generator=task.make_generator(number)) for number in (0, 1, 1))
    assert torch.equal(second, again)
    assert not torch.equal(first, second)
