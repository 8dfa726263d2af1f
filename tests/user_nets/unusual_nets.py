"""Nets without a convex readout, or that hide what is needed; and nets whose hidden layers other tools have quantised."""

from copy import deepcopy

import torch
from torch import nn
from torch.ao.nn import qat
from torch.ao.quantization import disable_observer, get_default_qat_qconfig

from ..nets import step_through
from .data import CLASSES, HIDDEN, STEPS, digits
from .snntorch_nets import Loop, leaky


class Autoencoder(nn.Module):
    """Spikes in the middle, images out."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), leaky(init_hidden=True))
        self.decoder = nn.Sequential(nn.ConvTranspose2d(8, 1, 2, stride=2), nn.Sigmoid())

    def forward(self, x):
        self.encoder[1].reset_mem()
        return torch.stack([self.decoder(self.encoder(x)) for _ in range(STEPS)]).mean(0)


class InLists(Loop):
    """Neurons in a plain list, which PyTorch does not see."""

    def __init__(self):
        super().__init__()
        self.neurons = [self.lif1, self.lif2]
        del self.lif1, self.lif2

    def forward(self, x):
        return step_through([x] * STEPS, (self.fc1, self.fc2), self.neurons)


class Binarised(nn.Linear):
    """A Linear that computes with its weights' signs."""

    def forward(self, x):
        scale = self.weight.abs().mean()
        return nn.functional.linear(x, scale * torch.sign(self.weight), self.bias)


def binary_readout():
    net = Loop()
    net.fc2 = Binarised(HIDDEN, CLASSES)
    return net


class Forgetful(Loop):
    """States that are never handed on: every step begins at rest."""

    def forward(self, x):
        mem1, mem2, spikes, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), [], []
        for _ in range(STEPS):
            spk1, _ = self.lif1(self.fc1(x), mem1)
            spk2, out = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(out)
        return torch.stack(spikes), torch.stack(membranes)


class NeverReset(nn.Sequential):
    """Neurons that keep their membranes, in a net whose forward loops and leaves resetting to the script."""

    def __init__(self):
        super().__init__(nn.Linear(64, HIDDEN), leaky(init_hidden=True), nn.Linear(HIDDEN, CLASSES), leaky(init_hidden=True))

    def forward(self, x):
        return torch.stack([super(NeverReset, self).forward(x) for _ in range(STEPS)])


# -- quantised ---------------------------------------------------------------------------------------------------------------
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
