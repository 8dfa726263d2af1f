"""Regression I of snnTorch's tutorials; tests/user_nets/test_user_nets.py has the classifiers."""

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import convex_init_

from ..nets import Sequence

BATCH, STEPS, HIDDEN = 100, 8, 50


def functions(count):
    """Regression I: a line over time for each sample, and its end as the input at each step, both [B, T, 1]."""
    ends = torch.rand(count, 1, 1, generator=torch.Generator().manual_seed(count))
    return ends.expand(count, 2 * STEPS, 1).clone(), ends * torch.linspace(0, 1, 2 * STEPS)[:, None]


def test_regression_1_follows_a_function_of_time():
    torch.manual_seed(0)
    output = snn.Leaky(beta=0.9, threshold=1.0, learn_beta=True, reset_mechanism="none")
    net, loss = Sequence(1, HIDDEN, HIDDEN, 1, output=output), nn.MSELoss()

    def error(samples):
        feature, label = (part.swapaxes(0, 1) for part in samples)
        with torch.no_grad():
            return float(loss(net(feature), label))

    train, fresh = functions(300), functions(100)
    before = error(fresh)
    report = convex_init_(
        net,
        DataLoader(TensorDataset(*train), BATCH),
        forward=lambda net, data: net(data.swapaxes(0, 1)),
        loss=loss,
        readout="membrane_per_step",
        progress=False,
    )
    assert report.exactness.label == "exact"
    assert error(fresh) < 0.1 * before
    # Both are of samples that the readout was not fitted on, the report's of 60.
    assert 2 * report.after.loss == pytest.approx(error(fresh), rel=0.5)
