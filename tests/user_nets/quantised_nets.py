"""Nets whose hidden layers were quantised by other tools, which the line and the quantised readout leave as they are."""

from copy import deepcopy

import torch
from torch import nn
from torch.ao.nn import qat
from torch.ao.quantization import disable_observer, get_default_qat_qconfig

from .data import HIDDEN, digits
from .snntorch_nets import Loop

BITS = 4


def fake_quantised(layer: str = "fc1", observes: bool = False) -> nn.Module:
    """A Loop with a layer of torch.ao's quantisation-aware training, as ``prepare_qat`` makes it."""
    net = Loop()
    linear = getattr(net, layer)
    linear.qconfig = get_default_qat_qconfig("x86")
    setattr(net, layer, qat.Linear.from_float(linear))
    net(digits()[0].images[:32].flatten(1))
    if not observes:
        net.apply(disable_observer)
    return net


def brevitas_net(layer: str = "fc1") -> nn.Module:
    """A Loop with a layer of Brevitas."""
    from brevitas.nn import QuantLinear

    net = Loop()
    linear = getattr(net, layer)
    made = QuantLinear(linear.in_features, linear.out_features, bias=True, weight_bit_width=BITS)
    made.load_state_dict(deepcopy(linear.state_dict()), strict=False)
    setattr(net, layer, made)
    return net


class RoundedByHand(nn.Linear):
    """A layer that rounds its weights, with straight-through gradients."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step = self.weight.detach().abs().amax(1, keepdim=True) / (2 ** (BITS - 1) - 1)
        rounded = (self.weight / step).round() * step
        return nn.functional.linear(x, self.weight + (rounded - self.weight).detach(), self.bias)


def rounded_by_hand() -> nn.Module:
    net = Loop()
    net.fc1 = RoundedByHand(64, HIDDEN)
    return net
