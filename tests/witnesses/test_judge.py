"""The temporary readout that says what a hidden layer is worth."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from snn_recon_plugin.convex import make_loss
from snn_recon_plugin.convex.rows import Rows
from snn_recon_plugin.networks import Readout
from snn_recon_plugin.witnesses import judge
from snn_recon_plugin.witnesses.judge import Judge
from snn_recon_plugin.witnesses.looks import looks_of

from ..helpers import mean_filter, train_data

FILTER = mean_filter()
COUNT = 120


def looks(filter_=FILTER):
    return looks_of(Readout("membrane_mean", "exact", filter_, 0.0, None), Rows())


def a_judge(targets, loss="cross_entropy", outputs=10, seed=0):
    return Judge(targets, outputs, looks(), make_loss(loss), seed)


def data(count=COUNT):
    inputs, targets = train_data(count)
    return inputs, targets


def test_every_sample_is_held_out_once():
    targets = data(50)[1]
    parts = a_judge(targets).parts
    assert sorted(torch.cat(parts).tolist()) == list(range(50))
    assert {len(part) for part in parts} <= {12, 13}


def test_samples_that_do_not_count_change_nothing():
    features, targets = data(80)
    among = torch.arange(0, 80, 2)
    own = Judge(targets, 10, looks(), make_loss("cross_entropy"), 0, among)
    assert sorted(torch.cat(own.parts).tolist()) == among.tolist()
    loss = own.of_features(features)
    other = targets.clone()
    other[1::2] = 0
    assert Judge(other, 10, looks(), make_loss("cross_entropy"), 0, among).of_features(features) == loss


def test_the_loss_is_the_cross_validated_one():
    """Against scikit-learn's logistic regression, fitted with the same folds and strengths."""
    features, targets = data()
    own = a_judge(targets)
    column, variance = float(FILTER.sum()), float(features.double().var(0, correction=0).mean())
    total, shares = 0.0, judge._RIDGES
    for number, held in enumerate(own.parts):
        fitted = torch.cat([part for other, part in enumerate(own.parts) if other != number])
        losses = {}
        for share in shares:
            model = LogisticRegression(C=1 / (share * variance * len(fitted)), tol=1e-8, max_iter=10_000)
            model.fit(features[fitted].double().numpy(), targets[fitted].numpy())
            probabilities = model.predict_log_proba(features[held].double().numpy())
            losses[share] = -probabilities[np.arange(len(held)), targets[held].numpy()].mean()
        best = min(losses, key=losses.get)
        shares, total = (best,), total + len(held) * losses[best]
    assert column > 0  # a free bias: its column's size does not matter
    assert own.of_features(features) == pytest.approx(total / COUNT, rel=0.02)


def test_spikes_are_filtered_as_the_readout_filters():
    targets = data()[1]
    spikes = (torch.rand(len(FILTER), COUNT, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    features = torch.einsum("t,tnp->np", FILTER.float(), spikes.flatten(2))
    own = a_judge(targets)
    assert own.of_spikes(spikes) == pytest.approx(own.of_features(features), rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.4517, 1.0])
def test_what_never_changes_is_worth_nothing(value):
    assert a_judge(data()[1]).of_features(torch.full((COUNT, 7), value)) == math.inf


def test_information_is_worth_more_than_noise():
    features, targets = data()
    own = a_judge(targets)
    noise = features[torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))]
    assert own.of_features(features) < 0.7 * own.of_features(noise)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_other_losses(loss):
    features, targets = data()
    chance = a_judge(targets, loss).of_features(1e-3 * torch.randn(features.shape, generator=torch.Generator().manual_seed(0)))
    assert 0 < a_judge(targets, loss).of_features(features) < 0.8 * chance


def test_the_seed_decides_the_parts():
    features, targets = data()
    losses = [a_judge(targets, seed=seed).of_features(features) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_some_of_very_many_features(monkeypatch):
    features, targets = data()
    monkeypatch.setattr(judge, "_MAX_FEATURES", 20)
    wide = nn.functional.pad(features, (0, 0))
    some = judge._some(wide)
    assert some.shape == (COUNT, 20)
    assert torch.equal(some, judge._some(wide))
    assert a_judge(targets).of_features(features) == pytest.approx(a_judge(targets).of_features(some), rel=1e-6)
