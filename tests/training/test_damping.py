"""Damped recurrence: hooks that scale a gradient, the growth of gradients, and the factor chosen by it."""

import copy
import math
import pickle

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from norse.torch.module.lif_refrac import LIFRefracRecurrentCell
from snntorch import surrogate
from torch import nn

from snn_recon_plugin.networks.libraries import reset_states
from snn_recon_plugin.options import Options
from snn_recon_plugin.training.damping import Damping, choose_damping, measure_growth

from ..helpers import assert_as_before, snapshot

WIDTH, STEPS, BATCH = 4, 5, 6


class OverTime(nn.Module):
    """Recurrent layers one after the other, each behind a Linear or another synapse; the spikes of the last one, (T, B, N)."""

    def __init__(self, *neurons, synapse=lambda: nn.Linear(WIDTH, WIDTH)):
        super().__init__()
        self.synapses = nn.ModuleList(synapse() for _ in neurons)
        self.neurons = nn.ModuleList(neurons)

    def forward(self, inputs):
        reset_states(self)
        states, recorded = [()] * len(self.neurons), []
        for values in inputs:
            output = (values,)
            for index, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                output = neuron(synapse(output[0]), *states[index])
                # snnTorch's neurons take their own spikes with the state, Norse's hold them in it.
                states[index] = output[1:] if hasattr(output[1], "_fields") else output
            recorded.append(output[0].flatten(1))
        return torch.stack(recorded)


def dense(**options):
    return snn.RLeaky(0.9, linear_features=WIDTH, **options)


def feed_forward():
    return nn.Sequential(nn.Linear(WIDTH, 2), snn.Leaky(0.9, init_hidden=True))


def layer_over_time():
    return norse.LIFRecurrent(WIDTH, WIDTH)


def convolution():
    neuron = snn.RLeaky(0.9, conv2d_channels=2, kernel_size=3)
    return OverTime(neuron, synapse=lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 3, padding=1)))


WIDE = torch.as_tensor(1.0)  # width of Norse's surrogate derivative, so that gradients are seen over a few steps
LIF = norse.LIFParameters(alpha=WIDE, tau_mem_inv=torch.as_tensor(900.0))

NETS_OVER_TIME = {
    "RLeaky": lambda: OverTime(dense()),
    "RLeaky, one weight a neuron": lambda: OverTime(snn.RLeaky(0.9, V=torch.rand(WIDTH), all_to_all=False)),
    "RLeaky, convolution": convolution,
    "RSynaptic": lambda: OverTime(snn.RSynaptic(0.8, 0.9, linear_features=WIDTH)),
    "LIFRecurrentCell": lambda: OverTime(norse.LIFRecurrentCell(WIDTH, WIDTH, p=LIF)),
    "LSNNRecurrentCell": lambda: OverTime(norse.LSNNRecurrentCell(WIDTH, WIDTH, p=norse.LSNNParameters(alpha=WIDE))),
    "LIFRefracRecurrentCell": lambda: OverTime(LIFRefracRecurrentCell(WIDTH, WIDTH, p=norse.LIFRefracParameters(lif=LIF))),
    "two layers": lambda: OverTime(dense(), snn.RSynaptic(0.8, 0.9, linear_features=WIDTH)),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def inputs():
    return 3 * torch.rand(STEPS, BATCH, WIDTH, generator=torch.Generator().manual_seed(0))


def gradient(net, inputs):
    """Scores, and the gradient of a sum of their last step in the inputs of the first one."""
    inputs = inputs.clone().requires_grad_()
    scores = net(inputs)
    draw = torch.Generator().manual_seed(1)
    (found,) = torch.autograd.grad((torch.randn(scores[-1].shape, generator=draw) * scores[-1]).sum(), inputs)
    return scores.detach(), found[0]


def hooks_of(net):
    return [dict(module._forward_pre_hooks) for module in net.modules()]


@pytest.mark.parametrize("name", NETS_OVER_TIME)
def test_scores_keep_their_bits_and_gradients_are_a_polynomial_of_the_factor(name, inputs):
    """At most four passages lie between the last step and the first one: five factors give the gradient at any other one."""
    net = NETS_OVER_TIME[name]()
    before, (scores, whole) = hooks_of(net), gradient(net, inputs)
    found = {}
    for factor in (0.0, 0.2, 0.4, 0.6, 0.8):
        with Damping(net, factor) as damping:
            damped, found[factor] = gradient(net, inputs)
        assert damping.sites == [f"neurons.{number}" for number in range(len(net.neurons))]
        assert torch.equal(damped, scores)
        assert hooks_of(net) == before
    assert torch.equal(gradient(net, inputs)[1], whole)
    assert not torch.allclose(found[0.4], whole, rtol=0.01, atol=0)
    at_one = 5 * found[0.8] - 10 * found[0.6] + 10 * found[0.4] - 5 * found[0.2] + found[0.0]
    torch.testing.assert_close(at_one, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))


def test_two_steps_have_the_gradient_of_the_chain():
    """That of the recurrent weights is not damped."""
    factor, neuron, currents = 0.25, dense(), (2 * torch.rand(2, BATCH, WIDTH)).requires_grad_()
    with Damping(neuron, factor) as damping:
        assert damping.sites == [""]
        first = neuron(currents[0], *neuron.reset_mem())
        second = neuron(currents[1], *first)
        found, of_weight = torch.autograd.grad(second[0].sum(), [currents, neuron.recurrent.weight])
    slopes = [1 / (1 + (math.pi * (membrane - 1)) ** 2) for _, membrane in (first, second)]
    through = slopes[1] @ neuron.recurrent.weight
    torch.testing.assert_close(found[0], neuron.beta * slopes[1] + factor * through * slopes[0])
    torch.testing.assert_close(found[1], slopes[1])
    torch.testing.assert_close(of_weight, slopes[1].T @ first[0])
    assert of_weight.abs().sum() > 0


def test_spikes_keep_their_bits_and_pass_as_they_are_where_nothing_below_them_is_trained():
    neuron, seen = dense(), []
    values = torch.tensor([[-0.0, math.nan, math.inf, 1.0]], requires_grad=True)
    neuron.recurrent.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with Damping(neuron, 0.5):
        neuron.recurrent(values)
        neuron.recurrent(values.detach())
        with torch.no_grad():
            neuron.recurrent(values)
    assert all(torch.equal(spikes.detach().view(torch.int32), values.detach().view(torch.int32)) for spikes in seen)
    assert [spikes.grad_fn is None for spikes in seen] == [False, True, True]


@pytest.mark.parametrize(
    ("make", "factor", "sites"),
    [
        (feed_forward, 0.5, []),
        (layer_over_time, 0.5, []),
        (NETS_OVER_TIME["two layers"], 1, ["neurons.0", "neurons.1"]),  # of a factor of 1 the layers are named all the same
    ],
)
def test_no_hook_is_installed_without_need(make, factor, sites):
    net = make()
    before = hooks_of(net)
    with Damping(net, factor) as damping:
        assert hooks_of(net) == before
    assert damping.sites == sites


def test_damping_is_replaced_and_hooks_of_the_user_stay(inputs):
    net = NETS_OVER_TIME["RLeaky"]()
    net.neurons[0].recurrent.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    before, (_, whole) = hooks_of(net), gradient(net, inputs)
    first = Damping(net, 0.5)
    _, once = gradient(net, inputs)
    second = Damping(net, 0.5)
    assert torch.equal(gradient(net, inputs)[1], once)
    for damping in (first, first, second):
        damping.remove()
    assert hooks_of(net) == before
    assert torch.equal(gradient(net, inputs)[1], whole)


@pytest.mark.parametrize("name", ["LIFRecurrentCell", "two layers"])
def test_copies_are_damped_until_they_get_a_factor_of_their_own(name, inputs):
    net = NETS_OVER_TIME[name]()
    (_, whole), damping = gradient(net, inputs), Damping(net, 0.5)
    _, damped = gradient(net, inputs)
    reset_states(net)  # states in a graph can't be copied
    other = copy.deepcopy(net)
    damping.remove()
    assert torch.equal(gradient(other, inputs)[1], damped)
    assert torch.equal(gradient(net, inputs)[1], whole)
    Damping(other, 1)
    assert torch.equal(gradient(other, inputs)[1], whole)


def test_pickled_weights_are_damped():
    """Of a whole neuron snnTorch's surrogate, and Norse's parameters, can't be pickled."""
    neuron = dense()
    with Damping(neuron, 0.5):
        other = pickle.loads(pickle.dumps(neuron.recurrent))
    spikes = torch.ones(WIDTH, requires_grad=True)
    found = [torch.autograd.grad(module(spikes).sum(), spikes)[0] for module in (neuron.recurrent, other)]
    torch.testing.assert_close(found[1], 0.5 * found[0])


def test_layers_that_share_their_recurrence_are_damped_once(inputs):
    one, two = dense(), dense()
    two.recurrent = one.recurrent
    with Damping(OverTime(one, two), 0.5) as damping:
        assert len(one.recurrent._forward_pre_hooks) == 1
    assert damping.sites == ["neurons.0", "neurons.1"]
    assert len(one.recurrent._forward_pre_hooks) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler about torch itself
def test_a_net_that_is_compiled_is_damped_from_its_first_call(inputs):
    net = NETS_OVER_TIME["RLeaky"]()
    compiled, (_, whole) = torch.compile(net, backend="eager"), gradient(net, inputs)
    with Damping(compiled, 0.5) as damping:
        _, damped = gradient(net, inputs)
        torch.testing.assert_close(gradient(compiled, inputs)[1], damped)
    assert damping.sites == ["neurons.0"]
    torch.testing.assert_close(gradient(compiled, inputs)[1], whole)
    assert not torch.allclose(damped, whole)


LONG = 10  # steps


class Chain(nn.Module):
    """Neurons that see themselves alone, through a weight, with a derivative of 1: each step multiplies gradients by the weight."""

    def __init__(self, weight):
        super().__init__()
        self.synapse, self.readout = nn.Linear(WIDTH, 64), nn.Linear(64, 2)
        self.neuron = snn.RLeaky(0.0, V=weight, all_to_all=False, spike_grad=surrogate.straight_through_estimator())

    def forward(self, inputs):
        state = self.neuron.reset_mem()
        for values in inputs.transpose(0, 1):
            state = self.neuron(self.synapse(values), *state)
        return self.readout(state[0])


@pytest.fixture
def batches():
    draw = torch.Generator().manual_seed(0)
    return [(torch.rand(40, LONG, WIDTH, generator=draw), torch.randint(2, (40,), generator=draw)) for _ in range(3)]


@pytest.mark.parametrize(("weight", "factor"), [(0.5, 1.0), (1.0, 1.0), (2.0, 1.0), (2.0, 0.5), (4.0, 0.5), (4.0, 0.0)])
def test_growth_is_that_of_the_recurrent_weight(batches, weight, factor):
    squares = [(factor * weight) ** (2 * step) for step in range(LONG - 1)]  # the last spikes return to no step
    expected = max(math.sqrt(sum(squares[:count]) / count) for count in range(1, LONG))
    assert measure_growth(Chain(weight), batches, Options(), factor) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("weight", "fresh", "factor"),
    [
        (0.5, False, 1.0),
        (1.0, False, 1.0),  # gradients are kept over any number of steps: long memory is not damped
        (2.0, False, 0.5),
        (4.0, False, 0.25),
        (16.0, False, 0.25),
        (1e30, False, 0.25),
        (0.4, True, 1.0),  # fresh weights count twice
        (1.0, True, 0.5),
        (2.0, True, 0.25),
    ],
)
def test_the_largest_factor_without_growth_is_chosen(batches, weight, fresh, factor):
    assert choose_damping(Chain(weight), batches, Options(), fresh=fresh) == factor


def test_growth_is_infinite_where_gradients_overflow_and_one_where_none_passes(batches):
    assert measure_growth(Chain(1e30), batches, Options()) == math.inf
    net = Chain(2.0).requires_grad_(False)
    net.readout.requires_grad_(True)
    assert measure_growth(net, batches, Options()) == 1.0
    for net in (feed_forward(), layer_over_time()):  # nets without recurrence are not run
        assert choose_damping(net, None, Options()) == measure_growth(net, None, Options()) == 1.0


def test_a_net_is_left_as_it_was_and_measured_without_its_damping(batches):
    class Uncopyable:
        def __deepcopy__(self, memo):
            raise AssertionError

    net = Chain(2.0)
    net(batches[0][0]).sum().backward()
    growth, _, net.trainer = measure_growth(net, batches, Options()), Damping(net, 0.5), Uncopyable()
    before = snapshot(net)
    assert choose_damping(net, batches, Options(), shared=[net.trainer]) == 0.5
    assert_as_before(net, before)
    with torch.no_grad():
        assert measure_growth(net, batches, Options(), shared=[net.trainer]) == growth
