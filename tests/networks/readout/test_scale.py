"""The scale of each output: fitted, applied and taken back."""

import pytest
import torch

from snn_recon_plugin.networks.readout.filters import Scale, fit_scale

FACTOR, OFFSET = torch.tensor([2.0, -0.5, 1e-3]).double(), torch.tensor([0.0, 3.0, -1.0]).double()
VALUES = torch.randn(6, 8, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_scale_is_found(dtype):
    values = VALUES.to(dtype)
    found = fit_scale(values, Scale(FACTOR, OFFSET).values(values))
    assert torch.allclose(found.factor, FACTOR, rtol=1e-5, atol=1e-6)
    assert torch.allclose(found.offset, OFFSET, rtol=1e-5)
    assert found.offset[0] == 0  # not the rounding of a factor


CHANGES = {
    "a clamp": lambda values: values.clamp(-1, 1),
    "noise": lambda values: values + 0.01 * values.roll(1, 0),
    "another factor at a step": lambda values: torch.cat([values[:1], 2 * values[1:]]),
    "a factor of 0": lambda values: values * torch.tensor([1.0, 0.0, 1.0]),
    "outputs that mix": lambda values: values - values.mean(2, keepdim=True),
    "another shape": lambda values: values[1:],
    "infinite values": lambda values: values / 0,
    "whole numbers": lambda values: (3 * values).long(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_no_scale(name):
    assert fit_scale(VALUES, CHANGES[name](VALUES)) is None


def test_two_rows_show_no_scale():
    assert fit_scale(VALUES[0, :2], torch.randn(2, 3)) is None


def test_a_layer_is_scaled_and_taken_back():
    scale, weight, bias = Scale(FACTOR, OFFSET), torch.randn(3, 5), torch.randn(3)
    values = torch.randn(7, 5)
    scaled = scale.values(values @ weight.T + bias)
    assert torch.allclose(values @ scale.weight(weight).T + scale.bias(bias), scaled, atol=1e-5)
    again, again_bias = scale.invert(scale.weight(weight), scale.bias(bias))
    assert torch.allclose(again.float(), weight, atol=1e-5)
    assert torch.allclose(again_bias.float(), bias, atol=1e-3)  # 1e-3 of its output is the bias


def test_a_scale_after_another_one():
    first, second = Scale(FACTOR, OFFSET), Scale(FACTOR.flip(0), OFFSET.flip(0))
    values = VALUES.double()
    assert torch.allclose(second.after(first).values(values), second.values(first.values(values)))
    assert first.after(None) is first
