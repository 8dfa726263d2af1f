"""What lies between a synapse and its neuron: the functions that one pass shows, and the norm among them.

Norms are the identity behind rebuilt rows, get statistics from the data elsewhere, and stay where they are trained.
"""

import copy

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.hidden.stage import follow_stage, measure_statistics
from snn_recon_plugin.networks.calls.calls import CallRecorder
from snn_recon_plugin.networks.calls.forward import plain_forward
from snn_recon_plugin.networks.calls.record import StoredBatch
from snn_recon_plugin.networks.private.quiet import quiet
from snn_recon_plugin.networks.structure.layers import HiddenLayer
from snn_recon_plugin.scan.passes import fast_passes

from ..helpers import HIDDEN, batches, test_data, train_data, values
from ..nets import normalised_net
from .tasks import stored

STEPS, WIDTH = 3, 40


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
        recorder = CallRecorder(net, [StoredBatch(x, slice(0, 5))], plain_forward)
        stage = follow_stage(recorder, HiddenLayer("conv", net.conv, "lif", net.lif))
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
        recorder = CallRecorder(net, [StoredBatch(torch.randn(5, 1, 8, 8), slice(0, 5))], plain_forward)
        stage = follow_stage(recorder, HiddenLayer("conv", net.conv, "lif", net.lif))
    assert stage.norm is None
    assert len(stage.behind) == 1


# -- norms in nets ---------------------------------------------------------------------------------------------------------
class Normed(nn.Module):
    """Two hidden layers with norms, the second one with a shortcut from the input or without, and a readout."""

    def __init__(self, shortcut=False):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.norm1, self.lif1 = nn.Linear(64, WIDTH, bias=False), nn.BatchNorm1d(WIDTH), snn.Leaky(beta=0.7)
        self.fc2, self.norm2, self.lif2 = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), snn.Leaky(beta=0.7)
        self.short, self.norm3 = nn.Linear(64, WIDTH, bias=False), nn.BatchNorm1d(WIDTH)
        self.shortcut, self.fc = shortcut, nn.Linear(WIDTH, 10)

    def forward(self, x):
        one, two, total = self.lif1.reset_mem(), self.lif2.reset_mem(), 0
        for _ in range(2 * STEPS):
            spikes, one = self.lif1(self.norm1(self.fc1(x)), one)
            current = self.norm2(self.fc2(spikes))
            spikes, two = self.lif2(current + self.norm3(self.short(x)) if self.shortcut else current, two)
            total = total + self.fc(spikes)
        return total / (2 * STEPS)


@torch.no_grad()
def accuracy(net):
    inputs, labels = test_data()
    return float((net(inputs).argmax(1) == labels).float().mean())


def line(net, **options):
    return convex_init_(net, batches(400), progress=False, **{"hidden": "reconstruct", "strength": 1e-3, **options})


def test_rebuilt_rows_get_a_norm_that_changes_nothing_in_evaluation_and_little_in_training():
    net = Normed()
    before = values(net)
    report = line(net)
    assert all(layer.witnesses is not None for layer in report.layers)
    assert report.exactness.label == "exact"
    for norm in (net.norm1, net.norm2):
        x = torch.randn(3, WIDTH)
        assert torch.allclose(norm.eval()(x) - x, (norm.bias - norm.running_mean).expand_as(x), atol=1e-4)
        assert not torch.allclose(norm.running_mean, torch.zeros(WIDTH))
    assert torch.equal(net.fc2.bias, torch.zeros(WIDTH))
    tested = accuracy(net)
    assert tested > 0.8
    with torch.no_grad():
        outputs = net.fc1(train_data(400)[0])
        evaluated, trained = net.norm1(outputs), copy.deepcopy(net.norm1).train()(outputs)
    assert float((trained - evaluated).std() / evaluated.std()) < 0.05
    report.undo()
    assert values(net) == before


def test_a_shortcut_keeps_the_weights_and_its_norm_gets_statistics():
    net = Normed(shortcut=True)
    report = line(net)
    first, second = report.layers
    assert first.witnesses is not None
    assert second.witnesses is None
    assert "shortcut" in second.reason
    for norm in (net.norm2, net.norm3):
        assert not torch.equal(norm.running_var, torch.ones(WIDTH))
    assert accuracy(net) > 0.6


class Rolled(nn.Module):
    """Each row in the place of the next one."""

    def forward(self, values):
        return values.roll(1, 1)


class Half(nn.Module):
    """The first rows, in the width of all."""

    def forward(self, values):
        return functional.pad(values[:, : HIDDEN // 2], (0, HIDDEN // 2))


def test_a_maxout_keeps_the_weights():
    net = normalised_net()
    net[0], net[1] = nn.Linear(64, 2 * HIDDEN), Maxout()
    report = convex_init_(net, batches(300), forward=over_time(STEPS))
    assert "currents are not those of its synapse" in report.layers[0].reason
    assert report.accuracy_after > 0.6


class Maxout(nn.Module):
    """The larger of each two rows."""

    def forward(self, values):
        return values.view(len(values), -1, 2).amax(2)


@pytest.mark.parametrize("between", [nn.LayerNorm(HIDDEN), nn.GroupNorm(4, HIDDEN), nn.PReLU(HIDDEN), Rolled(), Half()])
def test_functions_that_join_rows_or_have_a_value_for_each_keep_the_weights(between):
    net = normalised_net()
    net[1] = between
    kept = net[0].weight.clone()
    report = convex_init_(net, batches(300), forward=over_time(STEPS))
    assert "join its rows, or have a value for each" in report.layers[0].reason
    assert torch.allclose(net[0].weight, report.layers[0].gain * kept)
    assert report.accuracy_after > 0.6 > report.accuracy_before


def test_statistics_are_those_of_all_samples_however_they_are_batched():
    net, inputs = Normed(), train_data(100)[0]
    with quiet(net, seed=0), fast_passes(net):  # in which equal calls of a step are one
        found = measure_statistics(CallRecorder(net, stored(inputs, 24), plain_forward), [net.norm1])
        outputs = net.fc1(inputs).double()
    torch.testing.assert_close(found[net.norm1, "running_mean"], outputs.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[net.norm1, "running_var"], outputs.var(0, correction=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fixed", ["trained", "frozen"])
def test_statistics_of_a_trained_or_frozen_norm_stay(fixed):
    net = Normed(shortcut=True)
    if fixed == "trained":
        net.norm3.running_mean.fill_(0.1)
    else:
        net.norm3.weight.requires_grad_(False)
    before = net.norm3.running_mean.clone(), net.norm3.running_var.clone()
    line(net, hidden="auto")
    assert torch.equal(net.norm3.running_mean, before[0])
    assert torch.equal(net.norm3.running_var, before[1])


def test_a_kept_net_keeps_its_norms():
    net = Normed()
    net.norm1.weight.data.fill_(4.0)
    net.norm2.weight.data.fill_(4.0)
    line(net, hidden="keep")
    assert torch.equal(net.norm1.running_mean, torch.zeros(WIDTH))
