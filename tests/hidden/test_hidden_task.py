"""Temporary readouts: their rows of a sample, and their held-out loss."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from snn_recon_plugin.convex import make_loss
from snn_recon_plugin.hidden import hidden_task
from snn_recon_plugin.hidden.gains import choose_gain
from snn_recon_plugin.hidden.hidden_task import (
    CrossValidation,
    HiddenTask,
    change_layers,
    make_temporary_readout,
    split_in_folds,
    to_class_labels,
)
from snn_recon_plugin.networks.private.parameters import with_values
from snn_recon_plugin.networks.private.quiet import quiet
from snn_recon_plugin.networks.readout.readout import Readout

from ..helpers import mean_filter, train_data
from ..nets import Stack
from .tasks import make_task

COUNT = 120
FEATURES, TARGETS = train_data(COUNT)
READOUT = Readout("membrane_mean", None, exactness="exact", filter=mean_filter(), constant=0.0, response=None)


def validation(targets=TARGETS, loss="squared_hinge", seed=0, samples=None, weights=None):
    splits = split_in_folds(len(targets), seed, samples)
    return CrossValidation(make_temporary_readout(READOUT), targets, 10, make_loss(loss), splits, weights)


def shuffled(features):
    return features[torch.randperm(len(features), generator=torch.Generator().manual_seed(0))]


def test_every_sample_is_held_out_once_and_fitted_otherwise():
    for samples in (None, torch.arange(0, COUNT, 2)):
        splits = validation(samples=samples).splits
        parts = [held for _, held in splits]
        assert all(torch.cat(split).unique().numel() == len(split[0]) + len(split[1]) == sum(map(len, parts)) for split in splits)
        assert sorted(torch.cat(parts).tolist()) == (torch.arange(COUNT) if samples is None else samples).tolist()
        assert len({len(part) for part in parts}) == 1


def test_samples_that_do_not_count_or_have_a_weight_of_zero_change_nothing():
    other = TARGETS.clone()
    other[1::2] = 0
    even = torch.arange(COUNT) % 2 == 0
    for options, tolerance in (({"samples": even.nonzero()[:, 0]}, 0), ({"weights": even.double()}, 1e-6)):
        losses = [validation(targets, **options).evaluate_features(FEATURES) for targets in (TARGETS, other)]
        assert losses[1] == pytest.approx(losses[0], rel=tolerance, abs=0)
    assert validation(other).evaluate_features(FEATURES) != pytest.approx(losses[0], rel=0.1)


@pytest.mark.parametrize("count", [COUNT, 60])
def test_the_loss_is_the_cross_validated_one(count):
    """Of scikit-learn's ridge, fitted with the same folds and strengths; also with fewer samples than features."""
    features, targets = FEATURES[:count], TARGETS[:count]
    own, variance = validation(targets), float(features.double().var(0, correction=0).mean())
    signs = 2.0 * np.eye(10)[targets.numpy()] - 1
    total, shares = 0.0, hidden_task.RIDGES
    for fitted, held in own.splits:
        losses = {}
        for share in shares:
            model = Ridge(alpha=share * variance * len(fitted)).fit(features[fitted].double().numpy(), signs[fitted])
            scores = model.predict(features[held].double().numpy())
            losses[share] = 0.5 * np.square((1 - signs[held] * scores).clip(0)).sum(1).mean()
            if losses[share] > min(losses.values()):
                break
        best = min(losses, key=losses.get)
        shares, total = (best,), total + len(held) * losses[best]
    assert own.evaluate_features(features) == pytest.approx(total / count, rel=1e-3)


def test_rows_of_several_classes_are_compared_by_their_own_loss():
    """As indicators are, of which a row may mark none or more than one."""
    marks = (torch.eye(10)[TARGETS] + torch.eye(10)[TARGETS.roll(1)]).clamp_max(1).long()
    own = validation(marks, loss="logistic")
    assert 0 < own.evaluate_features(FEATURES) < own.evaluate_features(shuffled(FEATURES))


@pytest.mark.parametrize("value", [0.0, 0.4517, 1.0])
def test_what_never_changes_is_worth_nothing(value):
    assert validation().evaluate_features(torch.full((COUNT, 7), value)) == math.inf


@pytest.mark.parametrize("loss", ["squared_hinge", "squared", "huber"])
def test_information_is_worth_more_than_noise(loss):
    own = validation(loss=loss)
    assert 0 < own.evaluate_features(FEATURES) < 0.8 * own.evaluate_features(shuffled(FEATURES))


def test_the_seed_decides_the_parts():
    losses = [validation(seed=seed).evaluate_features(FEATURES) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_some_of_very_many_features(monkeypatch):
    one, own = FEATURES[:, 20:21], validation()
    copies = {count: own.evaluate_features(one.repeat(1, count)) for count in (20, 64)}
    assert copies[20] != copies[64]
    monkeypatch.setattr(hidden_task, "MAX_FEATURES", 20)
    assert own.evaluate_features(one.repeat(1, 64)) == copies[20]
    assert own.evaluate_features(FEATURES) == own.evaluate_features(FEATURES)


class Stepwise:
    """A readout with a filter for each of some steps."""

    filter, bias_gain = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), 0.7

    def __init__(self, steps=3):
        self.matrix = torch.tril(torch.ones(steps, steps, dtype=torch.float64))
        self.bias_gains = self.matrix.sum(1)


def test_one_target_a_sample_is_one_row():
    whole = make_temporary_readout(Stepwise())
    assert (whole.rows_each, whole.steps, whole.bias_column(5)) == (1, None, 0.7)
    torch.testing.assert_close(whole.filters, Stepwise.filter[None])
    features = torch.rand(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(whole.take_features(features), features.mean(1))


def test_a_target_at_every_step_is_a_row_for_each_of_a_few_steps():
    steps = make_temporary_readout(Stepwise(), stepwise=True)
    assert steps.steps.tolist() == [0, 1, 2]
    assert steps.bias_column(2).tolist() == [1, 2, 3, 1, 2, 3]
    assert steps.find_rows(torch.tensor([0, 2])).tolist() == [0, 1, 2, 6, 7, 8]
    torch.testing.assert_close(steps.filters, Stepwise().matrix)
    features = torch.rand(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(steps.take_features(features), features.flatten(0, 1))
    long = make_temporary_readout(Stepwise(25), stepwise=True)
    assert long.steps.tolist() == [5, 11, 18, 24]
    assert long.bias_column(3).tolist() == [6, 12, 19, 25] * 3
    # Few sequences are fitted at more of their steps.
    for samples, rows in ((5000, 4), (500, 10), (20, 25)):
        assert make_temporary_readout(Stepwise(25), stepwise=True, samples=samples).rows_each == rows


def test_targets_of_any_kind_become_classes():
    assert to_class_labels(torch.tensor([2, 0, 1])).tolist() == [2, 0, 1]
    assert to_class_labels(torch.eye(3)[[2, 0, 1]]).tolist() == [2, 0, 1]
    assert to_class_labels(torch.arange(80.0)).tolist() == torch.arange(8).repeat_interleave(10).tolist()


def test_each_layer_draws_other_numbers_from_the_same_seed():
    task = HiddenTask(None, TARGETS, None, None, None, None, seed=3)
    first, second, again = (torch.rand(4, generator=task.make_generator(number)) for number in (0, 1, 1))
    assert torch.equal(second, again)
    assert not torch.equal(first, second)


@pytest.mark.usefixtures("two_rates")
def test_layers_are_written_into_the_net_and_the_old_values_can_be_tried_again():
    net, inputs = Stack((20.0, 40.0)), FEATURES[:50]
    with quiet(net, seed=0):
        scores = net(inputs)
        decisions, before = change_layers((task := make_task(net, count=100)).net_map.hidden, partial(choose_gain, task))
        assert set(before) == {(synapse, name) for synapse in net.synapses for name in ("weight", "bias")}
        for synapse, decision in zip(net.synapses, decisions, strict=True):
            assert decision.gain > 1  # the second one needs the spikes of the first one as it was written
            assert torch.equal(synapse.weight, before[synapse, "weight"] * decision.gain)
        assert not torch.equal(net(inputs), scores)
        with with_values(before):
            assert torch.equal(net(inputs), scores)
