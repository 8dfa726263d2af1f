import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import weight_norm as older_weight_norm

from snn_recon_plugin.errors import UnsupportedModuleError, WriteError
from snn_recon_plugin.networks import Transaction, can_replace, trying, write_values


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_the_originals_come_back(nets, inputs, error):
    net = nets.Mlp()
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in net.named_parameters()}
    values = {(net.fc1, "weight"): torch.ones(16, 10), (net.fc1, "bias"): torch.zeros(16)}
    try:
        with trying(values):
            assert torch.equal(net.fc1(torch.ones(1, 10)), torch.full((1, 16), 10.0))
            assert not net.fc1.weight.requires_grad
            if error is not None:
                raise error
    except KeyboardInterrupt:
        pass
    after = dict(net.named_parameters())
    assert list(after) == list(before)
    for name, (parameter, value) in before.items():
        assert after[name] is parameter
        assert torch.equal(parameter, value)
        assert parameter.requires_grad


def test_trial_weights_spike_as_written_ones(nets, inputs):
    net = nets.Mlp()
    values = {(net.fc1, "weight"): torch.randn(16, 10), (net.fc2, "bias"): torch.randn(16)}
    with trying(values):
        tried = net(inputs)
    with Transaction(net) as transaction:
        for (module, name), value in values.items():
            transaction.write(module, name, value)
    written = net(inputs)
    assert tried[0].any()
    assert torch.equal(tried[0], written[0])
    assert torch.equal(tried[1], written[1])


def spectrally_normed():
    """One whose buffers change as soon as its weight is looked at in training."""
    layer = parametrizations.spectral_norm(nn.Linear(3, 3))
    nn.init.normal_(layer.parametrizations.weight.original)
    return layer


def parametrized(step):
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", step)
    return layer


UNTRIED = {
    "spectral_norm": spectrally_normed,
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(3, 3)),
    "no inverse": lambda: parametrized(nn.Tanh()),
    "pruning": lambda: prune.l1_unstructured(nn.Linear(3, 3), "weight", 2),
    "an older weight_norm": lambda: older_weight_norm(nn.Linear(3, 3)),
    "no such parameter": nn.ReLU,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("case", UNTRIED)
def test_computed_parameters_that_take_no_value(case):
    layer = UNTRIED[case]()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    parameters = list(layer.parameters())
    assert not can_replace(layer, "weight")
    with pytest.raises((UnsupportedModuleError, WriteError), match="'weight'"), Transaction(layer) as transaction:
        transaction.write(layer, "weight", torch.full((3, 3), 2.0))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert all(one is other for one, other in zip(layer.parameters(), parameters, strict=True))


def test_values_of_any_shape_are_replaced_for_a_while():
    layer = nn.BatchNorm1d(2)
    weight, mean = layer.weight, layer.running_mean
    with trying({(layer, "weight"): torch.ones(5), (layer, "running_mean"): torch.zeros(3)}):
        assert (layer.weight.shape, layer.running_mean.shape) == ((5,), (3,))
    assert layer.weight is weight
    assert layer.running_mean is mean


def test_plain_parameters_can_be_tried():
    layer = nn.Linear(2, 3, bias=False)
    assert can_replace(layer, "weight")
    assert not can_replace(layer, "bias")
    assert can_replace(norse.LILinearCell(2, 3), "input_weights")


@pytest.mark.parametrize("dim", [0, None])
def test_weight_norm_is_tried_through(nets, inputs, dim):
    net = nets.Mlp()
    parametrizations.weight_norm(net.fc2, dim=dim)
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in net.named_parameters()}
    assert can_replace(net.fc2, "weight")
    values = {(net.fc2, "weight"): 4 * torch.randn(16, 16), (net.fc2, "bias"): torch.randn(16)}
    with trying(values):
        assert torch.allclose(net.fc2.weight, values[net.fc2, "weight"], rtol=1e-5)
        tried = net(inputs)
    for name, parameter in net.named_parameters():
        assert parameter is before[name][0]
        assert torch.equal(parameter, before[name][1])
    with Transaction(net) as transaction:
        for (module, name), value in values.items():
            transaction.write(module, name, value)
    assert tried[0].any()
    assert torch.equal(net(inputs)[1], tried[1])
    with pytest.raises(WriteError, match=r"shape \[3\] for 'fc2.weight'"), Transaction(net) as transaction:
        transaction.write(net.fc2, "weight", torch.zeros(3))


@pytest.mark.parametrize("normed", [False, True])
def test_written_values_are_those_tried_and_the_old_ones_can_be_tried_again(nets, inputs, normed):
    net = nets.Mlp()
    if normed:
        parametrizations.weight_norm(net.fc1)
    parameters, before = list(net.parameters()), net(inputs)
    values = {(net.fc1, "weight"): torch.randn(16, 10), (net.fc2, "bias"): torch.randn(16)}
    with trying(values):
        tried = net(inputs)
    replaced = write_values(values)
    assert all(one is other for one, other in zip(net.parameters(), parameters, strict=True))
    assert torch.equal(net(inputs)[1], tried[1])
    with trying(replaced):
        assert torch.equal(net(inputs)[1], before[1])
    assert torch.equal(net(inputs)[1], tried[1])


def test_a_shared_leak_becomes_one_for_each_unit():
    neuron = snn.Leaky(beta=0.9)
    beta = neuron.beta
    replaced = write_values({(neuron, "beta"): torch.full((4,), 0.5)})
    assert neuron.beta is beta
    assert neuron.beta.shape == (4,)
    assert replaced == {(neuron, "beta"): torch.tensor(0.9)}
