"""Snapshots of weights, and their running average."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snn_recon_plugin.training.protect import Average, Snapshot

from .runs import assert_equal, shares, state


def averaged(values, decay=0.9, dtype=torch.float64):
    """Return a weight after its average over some values was written."""
    layer, average = nn.Linear(1, 1, dtype=dtype), None
    for value in values:
        with torch.no_grad():
            layer.weight.fill_(value)
        if average is None:
            average = Average.begin(decay, layer)
        else:
            average.update()
    average.snapshot.write()
    assert layer.weight.dtype == dtype
    return float(layer.weight.detach())


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.floats(0.1, 0.999), st.lists(st.floats(-2, 2), min_size=1, max_size=40))
def test_an_average_is_a_weighted_mean_of_its_points(decay, values):
    parts = shares(decay, len(values))
    assert sum(parts) == pytest.approx(1)
    wanted = sum(share * value for share, value in zip(parts, values, strict=True))
    assert averaged(values, decay) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_average_of_16_bits_arrives(dtype):
    """A hundredth of a small difference is less than their precision."""
    assert averaged([1.0, *[1.125] * 2000], 0.99, dtype) == 1.125


def test_frozen_parameters_stay_as_they_are():
    layer = nn.Linear(1, 1)
    layer.weight.requires_grad_(False).fill_(-torch.inf)
    average = Average.begin(0.9, layer)
    average.update()
    average.snapshot.write()
    assert float(layer.weight) == -torch.inf


def normalised():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    net(torch.randn(8, 2))
    return net


def test_a_snapshot_holds_running_statistics_and_comes_back_from_the_names_of_a_checkpoint():
    net = normalised()
    before, kept = state(net), Snapshot.take(net)
    net(torch.randn(8, 2))
    assert not torch.equal(net[1].running_mean, before["1.running_mean"])
    net[1].running_mean = net[1].running_mean.clone()  # some layers of users' own replace the buffer
    kept.write()
    assert_equal(state(net), before)
    outer, other = (nn.ModuleDict({"net": inner}) for inner in (net, normalised()))
    loaded = Snapshot.of_names(other, kept.named(outer))
    other["net"] = nn.SyncBatchNorm.convert_sync_batchnorm(other["net"])  # as Lightning does after it has read a checkpoint
    loaded.write()
    assert_equal(state(other), state(outer))


def test_an_average_leaves_running_statistics_alone():
    net = normalised()
    average, before = Average.begin(0.5, net), net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight.add_(1)
    net(torch.randn(8, 2))
    average.update()
    kept = net[1].running_var.clone()
    average.snapshot.write()
    torch.testing.assert_close(net[0].weight.detach(), before + shares(0.5, 2)[1])
    assert torch.equal(net[1].running_var, kept)
