"""The running average of weights, and the best ones so far."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snn_recon_plugin.training.candidates import Average, Best, Snapshot
from snn_recon_plugin.training.measure import Judged

from .runs import weights


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.floats(0.1, 0.999), st.lists(st.floats(-2, 2), min_size=1, max_size=40))
def test_an_average_is_a_weighted_mean_of_its_points(decay, values):
    layer = nn.Linear(1, 1, dtype=torch.float64)
    average, parameter = None, layer.weight
    for value in values:
        with torch.no_grad():
            parameter.fill_(value)
        if average is None:
            average = Average.begin(decay, layer.parameters())
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
    average = Average.begin(0.99, layer.parameters())
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
    average = Average.begin(0.9, layer.parameters())
    average.update()
    average.snapshot.write()
    assert float(layer.weight) == -torch.inf


def test_the_best_gives_way_to_what_is_as_good():
    layer = nn.Linear(3, 2)
    best = Best(Snapshot.take(layer.parameters()), Judged(1.0, 0.5))
    assert all(best.beats(worse) for worse in (Judged(0.9, 0.4), Judged(1.1, 0.5), Judged()))
    assert not any(best.beats(other) for other in (Judged(2.0, 0.51), Judged(0.9, 0.5), Judged(1.0, 0.5)))
    nn.init.zeros_(layer.weight)
    best.update(Judged(0.9, 0.5))
    nn.init.ones_(layer.weight)
    best.snapshot.write()
    assert float(layer.weight.detach().abs().sum()) == 0
    assert best.judged == (0.9, 0.5)
