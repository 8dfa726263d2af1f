"""Faster max pooling: the same values as torch's, as a module and as a function, and torch's own where windows differ."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from snn_recon_plugin.networks.calls.fast_pool import FastPools

POOLS = {
    "2d": (nn.MaxPool2d(2), (3, 4, 8, 6)),
    "rest cut off": (nn.MaxPool2d(2), (3, 4, 7, 5)),
    "unequal windows": (nn.MaxPool2d((3, 1)), (2, 4, 9, 5)),
    "1d": (nn.MaxPool1d(3), (2, 4, 10)),
    "3d": (nn.MaxPool3d(2), (2, 3, 4, 6, 4)),
    "without a batch": (nn.MaxPool2d(2), (4, 8, 8)),
    "windows that overlap": (nn.MaxPool2d(3, 2), (3, 4, 9, 9)),
    "padded": (nn.MaxPool2d(2, padding=1), (3, 4, 8, 8)),
    "dilated": (nn.MaxPool2d(2, dilation=2), (3, 4, 8, 8)),
    "a last window that is cut": (nn.MaxPool2d(2, ceil_mode=True), (3, 4, 7, 7)),
    "one value each": (nn.MaxPool2d(1), (3, 4, 7, 7)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", POOLS)
def test_values_are_those_of_torch(name):
    pool, shape = POOLS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x.view(-1)[::7] = torch.nan
    for values in (x, x.double(), x.half(), x.transpose(-1, -2)):
        with FastPools():
            found = pool(values)
        assert torch.equal(found.nan_to_num(9.0), pool(values).nan_to_num(9.0))
        assert found.dtype == values.dtype


@torch.no_grad()
def test_a_function_is_faster_too_and_others_are_left_alone(monkeypatch):
    x, calls = torch.rand(2, 3, 8, 8), []
    expected, own = functional.max_pool2d(x, 2), torch.maximum
    monkeypatch.setattr(torch, "maximum", lambda *pair: calls.append(1) or own(*pair))
    with FastPools():
        assert torch.equal(functional.max_pool2d(x, 2), expected)
        assert torch.equal(functional.max_pool2d(x, kernel_size=2, stride=2), expected)
        assert calls == [1] * 4
        pooled, places = functional.max_pool2d(x, 2, return_indices=True)
        assert torch.equal(pooled, expected)
        assert places.dtype == torch.int64
        assert torch.equal(functional.avg_pool2d(x, 2), torch.nn.AvgPool2d(2)(x))
        with torch.enable_grad():
            functional.max_pool2d(x.clone().requires_grad_(), 2).sum().backward()
        with pytest.raises(RuntimeError):
            functional.max_pool2d(torch.rand(2, 3, 1, 1), 2)
    assert len(calls) == 4
