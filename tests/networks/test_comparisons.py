import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from torch import nn

from snn_recon_plugin.networks import compared_once, preserved

FUNCTIONS = {
    "straight through": surrogate.straight_through_estimator(),
    "triangular": surrogate.triangular(),
    "fast sigmoid": surrogate.fast_sigmoid(slope=10),
    "arctangent": surrogate.atan(),
    "heaviside": surrogate.heaviside(),
    "sigmoid": surrogate.sigmoid(),
    "spike rate escape": surrogate.spike_rate_escape(),
    "leaky": surrogate.SFS(),
    "the user's own gradient": surrogate.custom_surrogate(lambda membrane, gradient, spikes: gradient),
}


@pytest.fixture
def compared(monkeypatch):
    """Membranes that are compared by the one operation."""
    seen, plain = [], torch.gt
    monkeypatch.setattr(torch, "gt", lambda *args, **kwargs: seen.append(args[0]) or plain(*args, **kwargs))
    return seen


@torch.no_grad()
@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_of_the_library_gives_the_same_bits(name, compared):
    neuron = snn.Leaky(beta=0.9, spike_grad=FUNCTIONS[name])
    membranes = torch.tensor([-torch.inf, -2.0, -0.0, 0.0, 1e-45, 3.0, torch.inf, torch.nan]).repeat(2, 1)
    expected = neuron.spike_grad(membranes)
    with compared_once(neuron):
        compared.clear()
        found = neuron.spike_grad(membranes)
        assert len(compared) == 1
    assert torch.equal(found, expected)
    assert found.dtype == expected.dtype
    assert neuron.spike_grad is FUNCTIONS[name]


def test_a_net_changes_no_bit_and_is_as_it_was(nets, inputs, compared, snapshot, assert_same):
    net = nets.Mlp()
    before, functions = snapshot(net), [vars(module).get("spike_grad") for module in net.modules()]
    with preserved(net, seed=0), torch.no_grad():
        expected = net(inputs)
        with compared_once(net):
            compared.clear()
            results = net(inputs)
            assert compared
    assert all(torch.equal(one, two) for one, two in zip(expected, results, strict=True))
    assert all(vars(module).get("spike_grad") is own for module, own in zip(net.modules(), functions, strict=True))
    assert_same(before, snapshot(net))
    with pytest.raises(KeyboardInterrupt), compared_once(net):
        raise KeyboardInterrupt
    assert all(vars(module).get("spike_grad") is own for module, own in zip(net.modules(), functions, strict=True))


def test_functions_of_the_users_own_and_a_neuron_without_one_are_left_alone():
    def own(membrane):
        return (membrane > 0.5).float()

    def disguised(membrane):
        return (membrane >= 0).float()

    disguised.__module__ = "snntorch.surrogate"  # a release whose functions compare otherwise
    neurons = [snn.Leaky(beta=0.9, spike_grad=own), snn.Leaky(beta=0.9, spike_grad=disguised)]
    without = snn.Leaky(beta=0.9, surrogate_disable=True)
    bypass = without.spike_grad
    with compared_once(nn.ModuleList([*neurons, without, nn.Linear(2, 2)])):
        assert neurons[0].spike_grad is own
        assert neurons[1].spike_grad is disguised
        assert without.spike_grad == bypass


def test_gradients_and_other_precisions_go_by_the_function_itself(compared):
    neuron = snn.Leaky(beta=0.9, spike_grad=surrogate.straight_through_estimator())
    membranes = torch.tensor([-1.0, 2.0], requires_grad=True)
    with compared_once(neuron):
        compared.clear()
        neuron.spike_grad(membranes).sum().backward()
        with torch.no_grad():
            assert neuron.spike_grad(membranes.double()).dtype == torch.float32  # as the library has it
    assert torch.equal(membranes.grad, torch.ones(2))
    assert compared == []
