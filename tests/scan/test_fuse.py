"""Plans: loops as people write them become few operations, with the values and gradients of the loop."""

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from snntorch import spikegen
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from snn_recon_plugin.scan.installed import FastPass
from snn_recon_plugin.scan.plan import over_steps

STEPS, BATCH = 5, 4


class Net(nn.Module):
    """Two dense layers around a neuron; ``loop`` is the forward."""

    def __init__(self, loop):
        super().__init__()
        self.fc1, self.lif = nn.Linear(6, 8), snn.Leaky(beta=0.8)
        self.fc2, self.out, self.loop = nn.Linear(8, 3), snn.Leaky(beta=0.9, reset_mechanism="none"), loop
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8))
        self.encoder = norse.ConstantCurrentLIFEncoder(STEPS)

    def forward(self, x):
        return self.loop(self, x)

    def over(self, frames):
        """Yield membranes and spikes of the output, step by step."""
        hidden, out = self.lif.init_leaky(), self.out.init_leaky()
        for frame in frames:
            spikes, hidden = self.lif(self.fc1(frame), hidden)
            fired, out = self.out(self.fc2(spikes), out)
            yield out, fired


def steps_of(x):
    return (x[:, step] for step in range(STEPS))


def membranes(net, frames):
    return [membrane for membrane, _ in net.over(frames)]


def stacked(net, x):
    return torch.stack(membranes(net, steps_of(x)), dim=1)


def summed(net, x):
    total = 0
    for membrane, _ in net.over(steps_of(x)):
        total += membrane
    return total / STEPS


def summed_from_a_start(net, x):
    total = 2 * net.fc2.bias
    for membrane, _ in net.over(steps_of(x)):
        total = total + membrane
    return total


def summed_in_place(net, x):
    total = torch.zeros(len(x), 3)
    for _, fired in net.over(steps_of(x)):
        total += fired
    return total


def broadcast(net, x):
    hidden, found = net.lif.init_leaky(), []
    for step in range(STEPS):
        spikes, hidden = net.lif(net.fc1(x[:, step]), hidden)
        found.append(spikes * net.scale[None, None])
    return torch.stack(found)


def residual(net, x):
    hidden, found = net.lif.init_leaky(), []
    for step in range(STEPS):
        current = net.fc1(x[:, step]) * net.scale
        spikes, hidden = net.lif(current, hidden)
        found.append(net.fc2(functional.relu(spikes + current)))
    return torch.stack(found)


def feedback(net, x):
    hidden, fired, found = net.lif.init_leaky(), x.new_zeros(len(x), 8), []
    for step in range(STEPS):
        fired, hidden = net.lif(net.fc1(x[:, step]) + fired * net.scale, hidden)
        found.append(net.fc2(fired))
    return torch.stack(found)


def last_steps_of_a_layer(net, x):
    hidden, fired = net.lif.init_leaky(), []
    for step in range(STEPS):
        spikes, hidden = net.lif(net.fc1(x[:, step]), hidden)
        fired.append(spikes)
    return torch.stack([net.fc2(spikes) for spikes in fired[2:]])


def over(frames):
    """The membranes of all steps, of frames that a function makes of the inputs."""
    return lambda net, x: torch.stack(membranes(net, frames(x)))


def encoded(net, x):
    return torch.stack(membranes(net, net.encoder(3 * x[:, 0])))


# A loop, and its layers and neurons that run step by step.
LOOPS = {
    "stack": (stacked, []),
    "sum": (summed, []),
    "sum from a start": (summed_from_a_start, []),
    "broadcast": (broadcast, []),
    "sum in place": (summed_in_place, []),
    "sum of a generator": (lambda net, x: sum(membrane for membrane, _ in net.over(steps_of(x))), []),
    "last step": (lambda net, x: membranes(net, steps_of(x))[-1], []),
    "some steps": (lambda net, x: torch.stack(membranes(net, steps_of(x))[2:]).mean(0), []),
    "last steps of a layer": (last_steps_of_a_layer, []),
    "iteration": (over(lambda x: x.transpose(0, 1)), []),
    "index from the end": (over(lambda x: (x.transpose(1, 2)[..., step] for step in range(STEPS))), []),
    "backwards": (over(lambda x: (x[:, -1 - step] for step in range(STEPS))), []),
    "residual": (residual, []),
    "two passes": (lambda net, x: stacked(net, x) + summed(net, x.flip(1))[:, None], []),
    "feedback": (feedback, ["", "lif"]),
    "one input": (over(lambda x: (x[:, 0] for _ in range(STEPS))), []),
    "noise": (over(lambda x: (x[:, step] + torch.rand(len(x), 6) for step in range(STEPS))), []),
    "a rate code": (over(lambda x: spikegen.rate(x[:, 0], num_steps=STEPS)), []),  # whose sizes Python reads out of a tensor
    "an encoder of Norse": (encoded, ["encoder"]),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_plan_has_the_values_and_gradients_of_the_loop(name):
    loop, step_by_step = LOOPS[name]
    torch.manual_seed(0)
    net, found = Net(loop), []
    passed = FastPass(net, net.forward)
    passed(torch.rand(BATCH, STEPS, 6) * 3)
    x = (torch.rand(BATCH, STEPS, 6) * 3).requires_grad_()
    passed(x)  # an input with a gradient has a plan of its own
    for run in (net, passed):
        torch.manual_seed(1)
        output = run(x)
        weights = torch.cos(torch.arange(output.numel())).reshape(output.shape)
        variables = [x, *net.parameters()]
        gradients = torch.autograd.grad((output * weights).sum(), variables, allow_unused=True)
        found.append(
            [output, *(variable.new_zeros(()) if one is None else one for one, variable in zip(gradients, variables, strict=True))]
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one)
    (first, _) = passed.plans.values()
    assert [layer for layer, module in net.named_modules() if "as usual" in str(first.done.get(module))] == step_by_step


def test_a_layer_behind_a_loop_of_layers_takes_all_steps_at_once():
    net, x = Net(feedback), torch.rand(BATCH, STEPS, 6)
    passed = FastPass(net, net.forward)
    passed(x)
    (plan,) = passed.plans.values()
    assert {str(plan.done[net.fc1]), str(plan.done[net.fc2])} == {f"computed once for {STEPS} steps"}
    assert str(plan.done[net.lif]) == f"as usual, {STEPS} steps"


class Entering(TorchFunctionMode):
    """Notes what enters linear layers and convolutions."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (functional.linear, functional.conv2d):
            self.seen.append(args[0])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("times", "seen"),
    [((STEPS, 1, 1), [BATCH, 6]), ((STEPS, 1), [STEPS * BATCH, 6]), ((1, 2), [BATCH, 12]), ((STEPS, 2, 1), [STEPS, 2 * BATCH, 6])],
)
def test_an_input_that_is_repeated_over_time_is_multiplied_once(times, seen):
    net, x = Net(lambda net, x: functional.linear(x.repeat(*times), net.scale[:1].expand(2, times[-1] * 6))), torch.rand(BATCH, 6)
    passed = FastPass(net, net.forward)
    own = passed(x)
    with Entering() as entering:
        assert torch.equal(passed(x), own)
    assert [list(x.shape) for x in entering.seen] == [seen]


class Frames(nn.Module):
    """A convolution and a neuron, step by step."""

    def __init__(self, channels, options):
        super().__init__()
        self.conv, self.lif, self.pool = nn.Conv2d(channels, 6, 3, padding=1), snn.Leaky(beta=0.8, **options), nn.AvgPool2d(2)

    def forward(self, x):
        membrane, out = self.lif.init_leaky(), []
        for step in range(STEPS):
            spikes, membrane = self.lif(self.conv(x[:, step]), membrane)
            out.append(self.pool(spikes + membrane))
        return torch.stack(out), membrane


@pytest.mark.parametrize(
    "options", [{}, {"reset_mechanism": "zero", "learn_beta": True, "learn_threshold": True}], ids=["", "learned"]
)
@pytest.mark.parametrize("channels", [1, 4, 32])
def test_convolutions_take_channels_last_in_memory_where_that_keeps_the_bits(channels, options):
    torch.manual_seed(0)
    net, x = Frames(channels, options), torch.randn(BATCH, STEPS, channels, 6, 6) * 3
    passed, samples = FastPass(net, net.forward), x.transpose(0, 1).flatten(0, 1)
    last = samples.contiguous(memory_format=torch.channels_last)
    own = passed(x)
    with Entering() as entering:
        planned = passed(x)
    keeps = torch.equal(net.conv(last), net.conv(samples))
    (entered,) = entering.seen
    assert entered.is_contiguous(memory_format=torch.channels_last) is (keeps or channels == 1)
    gradients = [torch.autograd.grad(out[0].square().sum() + out[1].sum(), [*net.parameters()]) for out in (own, planned)]
    for one, other in zip((*own, *gradients[0]), (*planned, *gradients[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
    assert all(map(torch.equal, own, planned))
    assert all(out.is_contiguous() for out in planned)


@pytest.mark.parametrize("channels", [4, 32])
def test_a_convolution_keeps_its_bits_behind_one_that_left_channels_last(channels):
    torch.manual_seed(0)
    x, conv = torch.randn(STEPS, 64, channels, 7, 7), nn.Conv2d(channels, 32, 3, padding=1)
    own = torch.stack([conv(step) for step in x])
    function = over_steps(functional.conv2d, [x[0].shape], [conv.weight.shape, conv.bias.shape], own[0].shape, leads=True)
    last = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
    assert torch.equal(function(last, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups), own)


def test_states_that_a_pass_leaves_are_those_of_the_loop():
    torch.manual_seed(0)
    net, x = (
        Net(lambda net, x: torch.stack([net.lif(net.fc1(x[:, step]))[0] for step in range(STEPS)])),
        torch.rand(BATCH, STEPS, 6),
    )
    passed, found = FastPass(net, net.forward), []
    for run in (net, passed, passed):
        net.lif.reset_mem()
        run(x)
        run(x)  # from the states that the first one left
        found.append(net.lif.mem)
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])
