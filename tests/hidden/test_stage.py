"""What lies between a synapse and its neuron: the functions that one pass shows, and the norm among them."""

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional

from snn_recon_plugin.hidden.stage import follow_stages
from snn_recon_plugin.networks.calls.forward import plain_forward
from snn_recon_plugin.networks.calls.record import StoredBatch
from snn_recon_plugin.networks.private.quiet import quiet
from snn_recon_plugin.networks.structure.layers import HiddenLayer

STEPS = 3


class Stages(nn.Module):
    """A convolution, a function of its outputs, and a neuron, for a few steps."""

    def __init__(self, between):
        super().__init__()
        self.conv, self.norm, self.lif, self.between = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), snn.Leaky(beta=0.5), between
        self.shortcut, self.factor = nn.Conv2d(1, 4, 3), nn.Parameter(torch.tensor(2.0))
        self.seen = []

    def forward(self, x):
        membrane, self.seen = self.lif.reset_mem(), []
        for _ in range(STEPS):
            current = self.between(self, self.conv(x), x)
            self.seen.append(current)
            spikes, membrane = self.lif(current, membrane)
        return spikes


BETWEEN = {
    "nothing": lambda net, value, x: value,
    "a pool": lambda net, value, x: functional.max_pool2d(value, 2),
    "a norm and a pool": lambda net, value, x: functional.avg_pool2d(net.norm(value), 2),
    "a pool and a norm": lambda net, value, x: net.norm(functional.max_pool2d(value, 2)),
    "a norm as a function": lambda net, value, x: functional.batch_norm(
        value, net.norm.running_mean, net.norm.running_var, net.norm.weight, net.norm.bias
    ),
    "dropout and a parameter": lambda net, value, x: functional.dropout(value, 0.5, training=False) * net.factor,
    "reshapes": lambda net, value, x: functional.relu(value.flatten(2).view(len(value), 4, 6, 6)),
}
JOINED = {
    "a shortcut": lambda net, value, x: net.norm(value) + net.shortcut(x),
    "a shortcut in place": lambda net, value, x: value.add_(net.shortcut(x)),
    "another layer": lambda net, value, x: net.shortcut(x),
}


def follow(between):
    torch.manual_seed(0)
    net, x = Stages(between).eval(), torch.randn(5, 1, 8, 8)
    net.norm.running_var.uniform_(0.5, 2)
    with quiet(net, seed=0):
        (stage,) = follow_stages(net, StoredBatch(x, slice(0, 5)), [HiddenLayer("conv", net.conv, "lif", net.lif)], plain_forward)
    assert not net.conv._forward_hooks
    assert not net.lif._forward_pre_hooks
    return net, stage, x


@torch.no_grad()
@pytest.mark.parametrize("name", BETWEEN)
def test_it_makes_the_currents_of_other_outputs_too(name):
    net, stage, x = follow(BETWEEN[name])
    assert not stage.joined
    assert (stage.norm is net.norm) == ("norm" in name)
    more = torch.cat([x, 3 * x])[:7]
    net.norm.bias.data.uniform_()  # as it is now, not as it was
    net(more)
    made = stage.run(net.conv(more))
    assert torch.allclose(made, net.seen[0].reshape(made.shape), atol=1e-6)


@torch.no_grad()
def test_without_its_norm_it_does_the_rest():
    net, stage, x = follow(BETWEEN["a norm and a pool"])
    outputs = net.conv(x)
    assert torch.equal(stage.run_without_norm(outputs), functional.avg_pool2d(outputs, 2))
    assert torch.equal(stage.run_to_norm(outputs), outputs)
    assert stage.scales(outputs)
    other = follow(lambda net, value, x: value + net.factor)[1]
    assert not other.scales(outputs)


@pytest.mark.parametrize("name", JOINED)
def test_other_values_that_come_in_are_seen(name):
    assert follow(JOINED[name])[1].joined


def test_a_norm_that_may_not_be_written_is_a_function_like_others():
    torch.manual_seed(0)
    net = Stages(lambda net, value, x: net.norm(value)).eval()
    net.norm.weight.requires_grad_(False)
    with quiet(net, seed=0):
        batch = StoredBatch(torch.randn(5, 1, 8, 8), slice(0, 5))
        (stage,) = follow_stages(net, batch, [HiddenLayer("conv", net.conv, "lif", net.lif)], plain_forward)
    assert stage.norm is None
    assert len(stage.behind) == 1
