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

from benchmarks.nets import SEQUENCE_NETS
from benchmarks.study import Places
from benchmarks.tasks import load_task
from snn_recon_plugin import ConvexInitializer
from snn_recon_plugin.errors import OptionError
from snn_recon_plugin.networks import reset_states
from snn_recon_plugin.stages import Options
from snn_recon_plugin.training.damping import Damping, choose_damping, measure_growth

WIDTH, STEPS, BATCH = 4, 5, 6


class OverTime(nn.Module):
    """Recurrent layers one after the other, each behind a Linear; the spikes of the last one, (T, B, N)."""

    def __init__(self, *neurons):
        super().__init__()
        self.synapses = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in neurons)
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
            recorded.append(output[0])
        return torch.stack(recorded)


class ConvOverTime(nn.Module):
    def __init__(self):
        super().__init__()
        self.synapse, self.neuron = nn.Conv2d(1, 2, 3, padding=1), snn.RLeaky(0.9, conv2d_channels=2, kernel_size=3)

    def forward(self, inputs):
        spikes, membrane = self.neuron.reset_mem()
        recorded = []
        for values in inputs:
            spikes, membrane = self.neuron(self.synapse(values.view(-1, 1, 2, 2)), spikes, membrane)
            recorded.append(spikes.flatten(1))
        return torch.stack(recorded)


class Layer(nn.Module):
    """A layer of Norse that takes all steps in one call."""

    def __init__(self):
        super().__init__()
        self.layer = norse.LIFRecurrent(WIDTH, WIDTH)

    def forward(self, inputs):
        return self.layer(inputs)[0]


def dense(**options):
    return snn.RLeaky(0.9, linear_features=WIDTH, **options)


WIDE = torch.as_tensor(1.0)  # width of Norse's surrogate derivative, so that gradients are seen over a few steps
LIF = norse.LIFParameters(alpha=WIDE, tau_mem_inv=torch.as_tensor(900.0))


NETS_OVER_TIME = {
    "RLeaky": lambda: OverTime(dense()),
    "RLeaky, one weight a neuron": lambda: OverTime(snn.RLeaky(0.9, V=torch.rand(WIDTH), all_to_all=False)),
    "RLeaky, one weight": lambda: OverTime(snn.RLeaky(0.9, V=0.7, all_to_all=False)),
    "RLeaky, fixed weights": lambda: OverTime(dense(learn_recurrent=False)),
    "RLeaky, convolution": ConvOverTime,
    "RSynaptic": lambda: OverTime(snn.RSynaptic(0.8, 0.9, linear_features=WIDTH)),
    "LIFRecurrentCell": lambda: OverTime(norse.LIFRecurrentCell(WIDTH, WIDTH, p=LIF)),
    "LSNNRecurrentCell": lambda: OverTime(
        norse.LSNNRecurrentCell(WIDTH, WIDTH, p=norse.LSNNParameters(alpha=torch.as_tensor(1.0)))
    ),
    "LIFRefracRecurrentCell": lambda: OverTime(LIFRefracRecurrentCell(WIDTH, WIDTH, p=norse.LIFRefracParameters(lif=LIF))),
    "two layers": lambda: OverTime(dense(), snn.RSynaptic(0.8, 0.9, linear_features=WIDTH)),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=NETS_OVER_TIME)
def net(request):
    return NETS_OVER_TIME[request.param]()


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


# -- hooks ---------------------------------------------------------------------------------------------------------------------


def test_scores_keep_their_bits_and_gradients_are_a_polynomial_of_the_factor(net, inputs):
    """At most four passages lie between the last step and the first one: five factors give the gradient at any other one."""
    before, (scores, whole) = hooks_of(net), gradient(net, inputs)
    found = {}
    for factor in (0.0, 0.2, 0.4, 0.6, 0.8):
        with Damping(net, factor) as damping:
            damped, found[factor] = gradient(net, inputs)
        assert len(damping.sites) == sum(name.startswith("neuron") for name in damping.sites) > 0
        assert torch.equal(damped, scores)
        assert hooks_of(net) == before
    assert torch.equal(gradient(net, inputs)[1], whole)
    assert not torch.allclose(found[0.4], whole, rtol=0.01, atol=0)
    at_one = 5 * found[0.8] - 10 * found[0.6] + 10 * found[0.4] - 5 * found[0.2] + found[0.0]
    torch.testing.assert_close(at_one, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("factor", [0.0, 0.25, 1.0])
def test_two_steps_have_the_gradient_of_the_chain(factor):
    neuron, currents = dense(), torch.rand(2, BATCH, WIDTH, requires_grad=True)
    with Damping(neuron, factor) as damping:
        assert damping.sites == [""]
        first = neuron(currents[0], *neuron.reset_mem())
        second = neuron(currents[1], *first)
        (found,) = torch.autograd.grad(second[0].sum(), currents)
    slopes = [1 / (1 + (math.pi * (membrane - 1)) ** 2) for _, membrane in (first, second)]
    through = slopes[1] @ neuron.recurrent.weight
    torch.testing.assert_close(found[0], neuron.beta * slopes[1] + factor * through * slopes[0])
    torch.testing.assert_close(found[1], slopes[1])


def test_recurrent_weights_learn_from_whole_spikes(inputs):
    """Only the gradient in earlier spikes is damped: with one passage that of the weights is the same."""
    net = NETS_OVER_TIME["RLeaky"]()
    found = []
    for factor in (1.0, 0.0):
        with Damping(net, factor):
            net(3 * inputs[:2])[-1].sum().backward()
        found.append(net.neurons[0].recurrent.weight.grad)
        net.zero_grad()
    assert torch.equal(*found)
    assert found[0].abs().sum() > 0


def test_nothing_happens_without_gradients_or_below_what_is_trained(inputs):
    net = NETS_OVER_TIME["RLeaky"]()
    seen = []
    net.neurons[0].recurrent.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with Damping(net, 0.5), torch.no_grad():
        net(inputs)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    with Damping(net, 0.5):
        net(inputs)
    assert all(spikes.grad_fn is None for spikes in seen)


def test_signed_zeros_and_what_is_no_number_pass_unchanged():
    neuron, values = dense(), torch.tensor([[-0.0, math.nan, math.inf, 1.0]], requires_grad=True)
    seen = []
    neuron.recurrent.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
    with Damping(neuron, 0.5):
        neuron.recurrent(values * 1)
    assert torch.equal(seen[0].view(torch.int32), values.detach().view(torch.int32))


@pytest.mark.parametrize("make", [lambda: nn.Sequential(nn.Linear(WIDTH, 2), snn.Leaky(0.9, init_hidden=True)), Layer, nn.Module])
def test_nets_without_a_place_keep_their_gradients(make):
    net = make()
    before = hooks_of(net)
    with Damping(net, 0.5) as damping:
        assert hooks_of(net) == before
    assert damping.sites == []


def test_factor_one_installs_nothing_and_names_the_layers():
    net = NETS_OVER_TIME["two layers"]()
    before = hooks_of(net)
    with Damping(net, 1) as damping:
        assert hooks_of(net) == before
    assert damping.sites == ["neurons.0", "neurons.1"]


@pytest.mark.parametrize("factor", [-0.5, 1.5, math.nan, True, "0.5", None])
def test_other_factors_are_refused(factor):
    with pytest.raises(OptionError, match="a number from 0 to 1"):
        Damping(dense(), factor)


def test_damping_is_replaced_and_hooks_of_the_user_stay(inputs):
    net = NETS_OVER_TIME["RLeaky"]()
    handle = net.neurons[0].recurrent.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    before, (_, whole) = hooks_of(net), gradient(net, inputs)
    first = Damping(net, 0.5)
    _, once = gradient(net, inputs)
    second = Damping(net, 0.5)
    assert torch.equal(gradient(net, inputs)[1], once)
    first.remove()
    first.remove()
    second.remove()
    assert hooks_of(net) == before
    assert torch.equal(gradient(net, inputs)[1], whole)
    handle.remove()


def test_copies_are_damped_until_they_get_a_factor_of_their_own(net, inputs):
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
    neuron.recurrent = other
    Damping(neuron, 1)
    assert torch.equal(torch.autograd.grad(other(spikes).sum(), spikes)[0], found[0])


def test_layers_that_share_their_recurrence_are_damped_once(inputs):
    one, two = dense(), dense()
    two.recurrent = one.recurrent
    net = OverTime(one, two)
    with Damping(net, 0.5) as damping:
        assert len(one.recurrent._forward_pre_hooks) == 1
    assert damping.sites == ["neurons.0", "neurons.1"]
    assert len(one.recurrent._forward_pre_hooks) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler about torch itself
def test_a_net_that_is_compiled_is_damped_from_its_first_call(inputs):
    class Explicit(OverTime):
        def forward(self, inputs):
            state = (torch.zeros(BATCH, WIDTH),) * 2
            for values in inputs:
                state = self.neurons[0](self.synapses[0](values), *state)
            return state[0][None]

    net = Explicit(dense())
    compiled, (_, whole) = torch.compile(net, backend="eager"), gradient(net, inputs)
    with Damping(compiled, 0.5) as damping:
        _, damped = gradient(net, inputs)
        torch.testing.assert_close(gradient(compiled, inputs)[1], damped)
    assert damping.sites == ["neurons.0"]
    torch.testing.assert_close(gradient(compiled, inputs)[1], whole)
    assert not torch.allclose(damped, whole)


# -- growth --------------------------------------------------------------------------------------------------------------------

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


@pytest.mark.parametrize(("weight", "factor"), [(0.5, 1.0), (1.0, 1.0), (2.0, 0.5), (4.0, 0.25), (16.0, 0.25), (1e30, 0.25)])
def test_the_largest_factor_without_growth_is_chosen(batches, weight, factor):
    """A weight of 1 keeps gradients over any number of steps: long memory is not damped."""
    assert choose_damping(Chain(weight), batches, Options()) == factor


@pytest.mark.parametrize(("weight", "factor"), [(0.4, 1.0), (1.0, 0.5), (2.0, 0.25)])
def test_fresh_weights_are_measured_as_if_twice_as_large(batches, weight, factor):
    assert choose_damping(Chain(weight), batches, Options(), fresh=True) == factor


def test_gradients_that_overflow_grow_infinitely(batches):
    assert measure_growth(Chain(1e30), batches, Options()) == math.inf


def test_a_net_is_left_as_it_was_and_measured_without_its_damping(batches):
    net = Chain(2.0)
    net(batches[0][0]).sum().backward()
    growth, damping = measure_growth(net, batches, Options()), Damping(net, 0.5)
    before, hooks, drawn = copy.deepcopy(net.state_dict()), hooks_of(net), torch.get_rng_state()
    state, gradients = net.neuron.spk, [parameter.grad.clone() for parameter in net.parameters()]
    with torch.no_grad():
        assert measure_growth(net, batches, Options()) == growth
    assert choose_damping(net, batches, Options()) == 0.5
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert hooks_of(net) == hooks
    assert net.neuron.spk is state
    assert net.training
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(map(torch.equal, gradients, [parameter.grad for parameter in net.parameters()]))
    damping.remove()


def test_a_net_without_recurrence_is_not_run():
    net = nn.Sequential(nn.Linear(WIDTH, 2), snn.Leaky(0.9, init_hidden=True))
    assert choose_damping(net, None, Options()) == 1.0
    assert measure_growth(net, None, Options()) == 1.0
    assert choose_damping(Layer(), None, Options()) == 1.0


def test_growth_is_one_where_no_gradient_passes(batches):
    net = Chain(2.0)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith("readout"))
    assert measure_growth(net, batches, Options()) == 1.0


def test_objects_can_be_shared_with_the_copy(batches):
    class Uncopyable:
        def __deepcopy__(self, memo):
            raise AssertionError

    net = Chain(2.0)
    net.trainer = Uncopyable()
    assert choose_damping(net, batches, Options(), shared=[net.trainer]) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("slope", "factors"), [(None, {0.25, 0.5}), (5.0, {1.0}), (25.0, {1.0})])
def test_a_built_clock_explodes_under_the_arc_tangent_alone(slope, factors):
    """Delayed match, from the line: damping trains better under the arc tangent, and worse under fast sigmoids."""
    data = load_task("match", Places())
    net = SEQUENCE_NETS["snntorch-recurrent"](data.train_inputs.shape[2], 128, 2)
    if slope is not None:
        net.neuron.spike_grad = surrogate.fast_sigmoid(slope=slope)
    batches = [(data.train_inputs, data.train_labels)]
    ConvexInitializer(progress=False).initialize(net, batches)
    assert choose_damping(net, batches, Options()) in factors
