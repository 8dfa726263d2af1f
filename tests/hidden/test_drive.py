"""Drives: the rule of a start without labels on single layers, and convolutions, driven where they hardly spike.

tests/test_hidden_init.py has whole nets.
"""

import copy

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import layer as spiking
from spikingjelly.activation_based import neuron
from torch import nn
from torch.nn.utils import prune

from snn_recon_plugin import convex_init_, hidden_init_
from snn_recon_plugin.hidden.drive import choose_drive
from snn_recon_plugin.networks.calls.calls import CallRecorder
from snn_recon_plugin.networks.calls.forward import plain_forward
from snn_recon_plugin.networks.private.quiet import quiet
from snn_recon_plugin.networks.structure.inspect import inspect_hidden

from ..helpers import BETA, CLASSES, HIDDEN, STEPS, accuracy, batches, divided, train_data, values
from ..nets import conv_net, convolutions, step_through
from .tasks import OVER, stored

IMAGES = train_data(100)[0]


def drive(net, number=0, forward=plain_forward, **options):
    """The drive of one hidden layer, and the values to write."""
    layers = inspect_hidden(net, IMAGES, forward)
    return choose_drive(CallRecorder(net, stored(IMAGES), forward), layers, number, **options)


@pytest.mark.parametrize("mode", ["s", "m"])
def test_a_batch_norm_is_measured_by_channels_in_both_step_modes(mode):
    torch.manual_seed(0)
    norm, steps = spiking.BatchNorm2d(4, step_mode=mode), mode == "m"
    conv = spiking.Conv2d(1, 4, 3, step_mode=mode)
    hidden = nn.Unflatten(1 + steps, (1, 8, 8)), conv, norm, neuron.IFNode(step_mode=mode), nn.Flatten(1 + steps)
    net = nn.Sequential(*hidden, nn.Linear(144, 3)).eval()
    with quiet(net, seed=0):
        _, values = drive(net, forward=OVER)
        current = nn.functional.conv2d(IMAGES.view(-1, 1, 8, 8), conv.weight, conv.bias)
    assert torch.allclose(values[norm, "running_mean"].float(), current.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(values[norm, "running_var"].float(), current.var((0, 2, 3), correction=0), rtol=1e-3)


# -- convolutions -------------------------------------------------------------------------------------------------------------
class Last(nn.Conv1d):
    """A convolution over the channels of what comes in, as for inputs with channels at the end."""

    def __init__(self):
        super().__init__(6, 6, 1)

    def forward(self, x):
        return super().forward(x.transpose(1, 2).transpose(1, 2))


torch.manual_seed(0)
NETS = {
    "1d": ((1, 64), nn.Conv1d(1, 6, 9, stride=6)),
    "1d in groups": ((8, 8), nn.Conv1d(8, 8, 3, groups=4)),
    "depthwise, then pointwise": ((4, 4, 4), nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.Conv2d(8, 6, 1)),
    "circular padding": ((1, 8, 8), nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular")),
    "transposed": ((8, 8), nn.Conv1d(8, 6, 3), Last()),
    "3d": ((1, 4, 4, 4), nn.Conv3d(1, 4, 2)),
    "adaptive pooling": ((1, 8, 8), nn.Sequential(nn.Conv2d(1, 6, 3), nn.AdaptiveMaxPool2d(3))),
    "Norse in groups": ((4, 4, 4), nn.Conv2d(4, 8, 3, groups=2)),
}


@pytest.mark.parametrize("name", NETS)
def test_dead_convolutions_fire_and_undo_brings_all_back(name):
    shape, *convs = copy.deepcopy(NETS[name])
    net = convolutions(shape, *convs, library=norse if "Norse" in name else snn, divisor=100)
    before = values(net)
    report = convex_init_(net, batches(100, 50), forward=OVER, strength=1e-4, progress=False)
    assert all(layer.witnesses is None and not layer.reason for layer in report.layers)
    assert all(layer.stats.firing_rate == pytest.approx(0.05, abs=0.02) for layer in report.layers)
    assert report.exactness.label == "exact"
    assert accuracy(net, OVER) > 0.4  # a tenth is chance
    report.undo()
    assert values(net) == before


def test_the_drive_is_that_of_hidden_init():
    line, alone = (divided(conv_net(), 100, "conv") for _ in range(2))
    convex_init_(line, batches(200), strength=1e-3, progress=False)
    hidden_init_(alone, [train_data(64)[0]])
    assert torch.allclose(line.conv.weight, alone.conv.weight, rtol=0.1)
    assert torch.allclose(line.conv.bias, alone.conv.bias, rtol=0.2, atol=0.05)


@pytest.mark.parametrize("hidden", ["auto", "rescale", "reconstruct"])
def test_convolutions_that_spike_stay(hidden):
    net = conv_net()
    with torch.no_grad():
        net.conv.bias.fill_(0.3)
    own = values(net.conv)
    (layer,) = convex_init_(net, batches(200), hidden=hidden, strength=1e-3, progress=False).layers
    assert layer.reason == "convolutions keep their weights"
    assert layer.gain == 1
    assert values(net.conv) == own


@pytest.mark.parametrize("hidden", ["auto", "rescale"])
@pytest.mark.parametrize(("weight", "bias"), [(0.01, 0.0), (0.1, 5.0)], ids=["silent", "always on"])
def test_convolutions_are_driven_if_they_hardly_spike_or_always_do(weight, bias, hidden):
    net = conv_net()
    with torch.no_grad():
        net.conv.weight.mul_(weight)
        net.conv.bias.fill_(bias)
    (layer,) = convex_init_(net, batches(200), hidden=hidden, strength=1e-3, progress=False).layers
    assert not layer.reason
    assert layer.stats.firing_rate == pytest.approx(0.05, abs=0.02)


class Mixed(nn.Module):
    def __init__(self, divisor=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.lif1 = nn.Conv2d(1, 4, 3), snn.Leaky(beta=BETA)
        self.fc1, self.lif2 = nn.Linear(144, HIDDEN), snn.Leaky(beta=BETA)
        self.fc2, self.out = nn.Linear(HIDDEN, CLASSES), snn.Leaky(beta=BETA, reset_mechanism="none")
        divided(self, divisor, "conv")

    def forward(self, x):
        synapses = lambda x: self.conv(x.view(-1, 1, 8, 8)), lambda spikes: self.fc1(spikes.flatten(1)), self.fc2
        return step_through([x] * STEPS, synapses, (self.lif1, self.lif2, self.out))[1]


@pytest.mark.parametrize("hidden", ["auto", "reconstruct"])
def test_a_dense_layer_behind_a_dead_convolution_is_rebuilt_on_its_new_spikes(hidden):
    net = Mixed(100.0)
    report = convex_init_(net, batches(400), hidden=hidden, strength=1e-3, progress=False)
    conv, dense = report.layers
    assert conv.witnesses is None
    assert conv.gain > 10
    assert dense.witnesses is not None
    assert accuracy(net) > 0.8


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda net: net.conv.requires_grad_(False), "requires_grad=False"),
        (lambda net: prune.random_unstructured(net.conv, "weight", 0.5), "pruning"),
    ],
    ids=["frozen stem", "pruned"],
)
def test_a_convolution_that_may_not_be_written_stays(change, reason):
    net = Mixed(3.0)  # it hardly spikes
    change(net)
    own = values(net.conv)
    conv, dense = convex_init_(net, batches(200), hidden="reconstruct", strength=1e-3, progress=False).layers
    assert reason in conv.reason
    assert dense.witnesses is not None
    assert values(net.conv) == own
