"""A private copy shares no tensor with the net, gives the same bits, and takes what deepcopy alone refuses."""

import threading

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.errors import NetworkError
from snn_recon_plugin.networks import Workbench, private_copy
from snn_recon_plugin.networks.workbench import probe_copy

from ..helpers import loop_net


def stepped(steps=3):
    """A net whose neurons keep membranes of a training step, which hang in its graph."""
    torch.manual_seed(0)
    neurons = [snn.Leaky(beta=0.9, init_hidden=True) for _ in range(2)]
    net = nn.Sequential(nn.Linear(4, 6), neurons[0], nn.Linear(6, 2), neurons[1])
    for _ in range(steps):
        net(torch.rand(5, 4))
    return net


def recurrent():
    torch.manual_seed(0)
    return norse.LIFRecurrentCell(4, 6)


@pytest.mark.parametrize("make", [loop_net, stepped, recurrent])
def test_a_copy_has_the_same_values_and_no_tensor_of_the_net(make):
    net = make()
    bench = Workbench.of(net)
    assert bench.origin is net
    mine, theirs = bench.net.state_dict(keep_vars=True), net.state_dict(keep_vars=True)
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        assert torch.equal(value, theirs[name])
        assert value.data_ptr() != theirs[name].data_ptr() or not value.numel()
        assert value.requires_grad == theirs[name].requires_grad


def test_hidden_states_in_a_graph_are_copied_as_values():
    net = stepped()
    copied = private_copy(net)
    assert torch.equal(copied[1].mem, net[1].mem)
    assert net[1].mem.grad_fn is not None
    assert copied[1].mem.grad_fn is None


def test_states_in_nested_containers_are_copied_as_values():
    net = loop_net()
    net.record = {"states": [(net.fc1.weight * 2, 3)]}
    copied = private_copy(net)
    assert torch.equal(copied.record["states"][0][0], 2 * copied.fc1.weight)
    assert copied.record["states"][0][0].grad_fn is None


def test_training_the_copy_leaves_the_net_as_it_was():
    net = loop_net()
    before = {name: (value.clone(), value._version) for name, value in net.state_dict(keep_vars=True).items()}
    copied = Workbench.of(net).net
    optimizer = torch.optim.SGD(copied.parameters(), lr=1.0)
    copied(torch.rand(5, 64)).sum().backward()
    optimizer.step()
    assert not torch.equal(copied.fc2.bias, net.fc2.bias)
    for name, value in net.state_dict(keep_vars=True).items():
        assert torch.equal(value, before[name][0])
        assert value._version == before[name][1]
        assert value.grad is None


def test_a_copy_made_in_inference_mode_can_be_trained():
    with torch.inference_mode():
        copied = private_copy(loop_net())
    copied(torch.rand(5, 64)).sum().backward()
    assert copied.fc1.weight.grad is not None


def test_a_copy_for_a_probe_has_its_own_state_and_the_parameters_of_the_net():
    net = stepped()
    copied, own = probe_copy(net)
    assert all(one is other for one, other in zip(copied.parameters(), net.parameters(), strict=True))
    assert own[net[1]] is copied[1]
    copied[1].mem = torch.zeros(1)
    assert net[1].mem.shape == (5, 6)


def test_hooks_that_cannot_be_copied_are_shared():
    class Recorder:
        def __init__(self):
            self.lock = threading.Lock()

        def __call__(self, *_):
            return None

    net, recorder = loop_net(), Recorder()
    net.fc1.register_forward_hook(recorder)
    assert list(private_copy(net).fc1._forward_hooks.values()) == [recorder]


def test_attributes_that_cannot_be_copied_are_shared():
    net = loop_net()
    net.lock, net.note = threading.Lock(), ["a"]
    copied = private_copy(net)
    assert copied.lock is net.lock
    assert copied.note == ["a"]
    assert copied.note is not net.note


def test_named_objects_are_shared():
    net, trainer = loop_net(), object()
    net.trainer = trainer
    assert Workbench.of(net, shared=[trainer]).net.trainer is trainer


def test_of_a_compiled_net_the_net_inside_is_copied():
    net = loop_net()
    bench = Workbench.of(torch.compile(net, backend="eager"))
    assert bench.origin is net
    assert type(bench.net) is type(net)


def test_hooks_run_on_the_copy():
    net, seen = loop_net(), []
    net.fc1.register_forward_hook(lambda module, arguments, output: seen.append(module))
    copied = private_copy(net)
    copied(torch.rand(2, 64))
    assert seen
    assert all(module is copied.fc1 for module in seen)


class Stubborn(nn.Module):
    def __deepcopy__(self, memo):
        raise RuntimeError("one of a kind")


def test_a_module_that_refuses_to_be_copied_is_named():
    net = nn.Sequential(nn.Linear(2, 2), Stubborn())
    with pytest.raises(NetworkError, match=r"Sequential that can't be copied \(RuntimeError: one of a kind\)[\s\S]*__deepcopy__"):
        private_copy(net)


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_a_net_that_does_not_fit_twice_is_named(error):
    class Huge(nn.Module):
        def __deepcopy__(self, memo):
            raise error

    with pytest.raises(NetworkError, match=r"Huge of 0.0 GiB[\s\S]*free memory"):
        private_copy(Huge())
