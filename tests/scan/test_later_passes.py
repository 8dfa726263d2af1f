"""Later passes are those of the loop: whatever has changed in between, and whatever the user does to what they return."""

import itertools
import types

import pytest
import snntorch as snn
import torch
from matplotlib import pyplot
from torch import nn
from torch.nn import functional

from snn_recon_plugin.scan.installed import install
from snn_recon_plugin.scan.surroundings import surroundings_of

STEPS, BATCH = 5, 4
SCALE = [1.0]


class Net(nn.Module):
    """Two dense layers with neurons; ``loop`` is the forward."""

    def __init__(self, loop, **options):
        super().__init__()
        self.fc1, self.lif, self.fc2, self.out = (
            nn.Linear(6, 8),
            snn.Leaky(0.8, **options),
            nn.Linear(8, 3),
            snn.Leaky(0.9, **options),
        )
        self.loop, self.scales, self.config, self.norm = loop, [0.5], types.SimpleNamespace(steps=STEPS), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.loop(self, x)

    def steps(self, x, between=lambda spikes: spikes):
        hidden, out, found = self.lif.reset_mem(), self.out.reset_mem(), []
        for step in range(self.config.steps):
            spikes, hidden = self.lif(self.fc1(x[:, step]), hidden)
            _, out = self.out(self.fc2(between(spikes)), out)
            found.append(out)
        return found


def stacked(net, x):
    return torch.stack(net.steps(x))


def hidden(net, x):
    return torch.stack([net.out(net.fc2(net.lif(net.fc1(x[:, step])))) for step in range(STEPS)])


def closed(box):
    return lambda net, x: stacked(net, x * box[0])


def counted(net, x):
    net.scales[0] *= 0.5
    return stacked(net, x * net.scales[0])


def clamped(net, x):
    net.fc1.weight.data.clamp_(min=0)
    return stacked(net, x)


def written(net, x):
    return torch.stack(net.steps(x, lambda spikes: (spikes.data.mul_(0.5), spikes)[1]))


def halved(net, x):
    state, found = net.lif.reset_mem(), []
    for step in range(STEPS):
        spikes, state = net.lif(net.fc1(x[:, step]), state.mul_(0.5))
        found.append(net.fc2(spikes))
    return torch.stack(found)


def reset_after(net, x):
    found = hidden(net, x)
    net.lif.reset_mem(), net.out.reset_mem()
    return found


def two_norms(net, x):
    return torch.stack([net.norm(x[:, 0]) + net.norm(3 * x[:, 1]) for _ in range(STEPS)]) * stacked(net, x).sum()


def flags(net, x):
    found = [membrane > 0.1 for membrane in net.steps(x)]
    total = found[0]
    for each in found[1:]:
        total = total + each
    return total.float()


def named(net, x):
    return torch.stack(
        tensors=[torch.sigmoid(input=functional.linear(input=each, weight=net.fc2.weight.T)) for each in net.steps(x)]
    )


def mixed(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        return torch.stack([net.fc1(x[:, step]) for step in range(STEPS)]).float() + stacked(net, x).sum()


def joined(net, x):
    return torch.stack(net.steps(x), 1).view(len(x), -1)


def replaced(net):
    net.fc1 = nn.Linear(6, 8)
    net.fc1.load_state_dict({"weight": torch.ones(8, 6), "bias": torch.zeros(8)})


def hook_replaced(net):
    replaced(net)
    net.fc1.register_forward_hook(lambda module, args, output: 0.1 * output)


def set_closure(net):
    net.loop = closed([3.0])


def set_global(net):
    SCALE[0] += 1


# fmt: off
def cases():
    """Return the loops, options of the neurons, and what happens between passes."""
    numbers = itertools.count(1)
    return {
        "a list": (lambda net, x: stacked(net, x * net.scales[0]), {}, lambda net: net.scales.__setitem__(0, 2.0)),
        "an object": (stacked, {}, lambda net: setattr(net.config, "steps", 3)),
        "a closure": (closed([1.0]), {}, lambda net: net.loop.__closure__[0].cell_contents.__setitem__(0, 0.3)),
        "a function of the same code": (closed([1.0]), {}, set_closure),
        "a global": (lambda net, x: stacked(net, x * SCALE[0]), {}, set_global),
        "a counter": (counted, {}, None),
        "an iterator": (lambda net, x, numbers=numbers: stacked(net, x * next(numbers)), {}, None),
        "a reset that is set later": (stacked, {}, lambda net: setattr(net.lif, "reset_mechanism", "none")),
        "an option of a neuron": (stacked, {}, lambda net: setattr(net.lif, "reset_delay", False)),
        "a layer": (stacked, {}, replaced),
        "a backward hook": (stacked, {}, lambda net: net.fc2.register_full_backward_hook(lambda module, to, out: (to[0] * 0.5,))),
        "a hook of a layer put in": (stacked, {}, hook_replaced),
        "a parameter that is frozen": (lambda net, x: stacked(net, x * (2 if net.fc1.weight.requires_grad else 1)), {},
                                       lambda net: net.fc1.weight.requires_grad_(False)),
        "data of a weight": (clamped, {}, lambda net: net.fc1.weight.data.sub_(0.1)),
        "data of spikes": (written, {}, None),
        "states written into": (halved, {}, None),
        "a reset after the loop": (reset_after, {"init_hidden": True}, None),
        "states detached in place": (hidden, {"init_hidden": True}, lambda net: (net.lif.mem.detach_(), net.out.mem.detach_())),
        "two inputs of a norm": (two_norms, {}, None),
        "a sum of flags": (flags, {}, None),
        "a count of values": (lambda net, x: stacked(net, x) * len((x > 1).nonzero()), {}, None),
        "a mask": (lambda net, x: stacked(net, x) * len(x[x > 1]), {}, None),
        "arguments by name": (named, {}, None),
        "a norm over samples": (lambda net, x: torch.stack(net.steps(x, lambda s: functional.layer_norm(s, s.shape))), {}, None),
        "autocast inside": (mixed, {}, None),
        "a view of a stack": (joined, {}, None),
        "one of many": (lambda net, x: net.steps(x)[-2], {}, None),
    }
# fmt: on


def play(net, between):
    """Return outputs, gradients, states and statistics of some passes."""
    seen = []
    for number in range(4):
        x = torch.rand(BATCH, STEPS, 6, generator=torch.Generator().manual_seed(number)) * 3
        output = net(x)
        output *= 2  # what a pass returns is the user's
        net.zero_grad()
        if output.requires_grad:
            (output * torch.arange(output.numel()).cos().view(output.shape)).sum().backward()
        seen += [output.detach().clone(), *(each.grad.clone() for each in net.parameters() if each.grad is not None)]
        seen += [buffer.detach().clone() for buffer in net.buffers()]
        if between is not None:
            between(net)
        for neuron in (net.lif, net.out):
            neuron.mem = neuron.mem.detach()
    return seen


@pytest.mark.parametrize("name", cases())
def test_passes_after_a_change(name):
    found = []
    for fast in (False, True):
        SCALE[0], (loop, options, between) = 1.0, cases()[name]
        torch.manual_seed(0)
        net = Net(loop, **options)
        if fast:
            install([net])
        found.append(play(net, between))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_settings_in_settings_are_the_same_until_one_changes():
    net = Net(stacked)
    net.settings = {"layers": {"lif": {"leak": 0.8}}}
    found = surroundings_of(net, net.forward)
    assert surroundings_of(net, net.forward) == found
    net.settings["layers"]["lif"]["leak"] = 0.9
    assert surroundings_of(net, net.forward) != found


def test_what_a_loop_plots_or_logs_is_not_looked_into():
    def plots(net, x):
        pyplot.plot(x.mean(0).tolist())
        return stacked(net, x)

    net = Net(plots)
    found = surroundings_of(net, net.forward)
    assert found == surroundings_of(net, net.forward)
    assert len(found) < 200  # of pyplot alone thousands
