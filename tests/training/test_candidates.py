"""Snapshots of weights, and their running average."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snn_recon_plugin.training.candidates import Average, Snapshot

from .runs import assert_equal, state, weights


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.floats(0.1, 0.999), st.lists(st.floats(-2, 2), min_size=1, max_size=40))
def test_an_average_is_a_weighted_mean_of_its_points(decay, values):
    layer = nn.Linear(1, 1, dtype=torch.float64)
    average, parameter = None, layer.weight
    for value in values:
        with torch.no_grad():
            parameter.fill_(value)
        if average is None:
            average = Average.begin(decay, layer)
        else:
            average.update()
    shares = weights(decay, len(values))
    assert sum(shares) == pytest.approx(1)
    wanted = sum(share * value for share, value in zip(shares, values, strict=True))
    average.snapshot.write()
    assert float(parameter.detach()) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_average_of_16_bits_arrives(dtype):
    """A hundredth of a small difference is less than their precision."""
    layer = nn.Linear(1, 1).to(dtype)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    average = Average.begin(0.99, layer)
    with torch.no_grad():
        layer.weight.fill_(1.125)
    for _ in range(2000):
        average.update()
    average.snapshot.write()
    assert layer.weight.dtype == dtype
    assert float(layer.weight.detach()) == 1.125


def test_frozen_parameters_stay_as_they_are():
    layer = nn.Linear(1, 1)
    layer.weight.requires_grad_(False).fill_(-torch.inf)
    average = Average.begin(0.9, layer)
    average.update()
    average.snapshot.write()
    assert float(layer.weight) == -torch.inf


def normalised():
    """A batch norm that has seen some batches, inside another module."""
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    net(torch.randn(8, 2))
    return net


def test_running_statistics_are_weights_too():
    net = normalised()
    before, kept = state(net), Snapshot.take(net)
    net(torch.randn(8, 2))
    assert not torch.equal(net[1].running_mean, before["1.running_mean"])
    net[1].running_mean = net[1].running_mean.clone()  # some layers of users' own replace the buffer
    kept.write()
    assert_equal(state(net), before)
    assert_equal(kept.named(net), before)


def test_a_snapshot_comes_back_from_the_names_of_a_checkpoint():
    net = normalised()
    outer = nn.ModuleDict({"net": net})
    named = Snapshot.take(net).named(outer)
    assert set(named) == set(outer.state_dict())
    other = nn.ModuleDict({"net": normalised()})
    loaded = Snapshot.of_names(other, named)
    other["net"] = nn.SyncBatchNorm.convert_sync_batchnorm(other["net"])  # as Lightning does after it has read a checkpoint
    loaded.write()
    assert_equal(state(other), state(outer))


def test_running_statistics_are_averaged():
    net = normalised()
    average, points = Average.begin(0.5, net), [state(net)]
    for _ in range(3):
        net(torch.randn(8, 2))
        average.update()
        points.append(state(net))
    shares, name = weights(0.5, 4), "1.running_var"
    average.snapshot.write()
    wanted = sum(share * point[name] for share, point in zip(shares, points, strict=True))
    torch.testing.assert_close(net[1].running_var, wanted)
    assert net[1].num_batches_tracked == 4
