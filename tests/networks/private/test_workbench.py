"""A private copy shares no tensor with the net, gives the same bits, and takes what deepcopy alone refuses."""

import threading

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.errors import NetworkError
from snn_recon_plugin.networks.private.workbench import Workbench, private_copy, probe_copy, same_values, take_over

from ...helpers import values
from ..nets import Dense


def stepped():
    """A net whose neurons keep membranes of a training step, which hang in its graph."""
    neurons = [snn.Leaky(beta=0.9, init_hidden=True) for _ in range(2)]
    net = nn.Sequential(nn.Linear(4, 6), neurons[0], nn.Linear(6, 2), neurons[1])
    for _ in range(3):
        net(torch.rand(5, 4))
    return net


@pytest.mark.parametrize("make", [Dense, stepped, lambda: norse.LIFRecurrentCell(4, 6)], ids=["loop", "stepped", "recurrent"])
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


def test_states_in_a_graph_are_copied_as_values():
    net = stepped()
    net.record = {"states": [(net[0].weight * 2, 3)]}
    copied = private_copy(net)
    assert net[1].mem.grad_fn is not None
    for mine, theirs in ((copied[1].mem, net[1].mem), (copied.record["states"][0][0], net.record["states"][0][0])):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()
        assert mine.grad_fn is None


def test_training_the_copy_leaves_the_net_as_it_was(inputs):
    net, seen = Dense(), set()
    net.fc1.register_forward_hook(lambda module, arguments, output: seen.add(module))
    before = values(net), [parameter._version for parameter in net.parameters()]
    copied = Workbench.of(net).net
    copied(inputs)[1].sum().backward()
    assert seen == {copied.fc1}
    torch.optim.SGD(copied.parameters(), lr=1.0).step()
    assert not torch.equal(copied.fc3.bias, net.fc3.bias)
    assert (values(net), [parameter._version for parameter in net.parameters()]) == before
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_copy_made_in_inference_mode_can_be_trained(inputs):
    net = Dense()
    with torch.inference_mode():
        copied = private_copy(net)
    copied(inputs)[1].sum().backward()
    assert copied.fc1.weight.grad is not None


def test_a_copy_for_a_probe_has_its_own_state_and_the_parameters_of_the_net():
    net = stepped()
    copied, own = probe_copy(net)
    assert all(one is other for one, other in zip(copied.parameters(), net.parameters(), strict=True))
    assert own[net[1]] is copied[1]
    copied[1].mem = torch.zeros(1)
    assert net[1].mem.shape == (5, 6)


class Recorder:
    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, *_):
        return None


def test_what_cannot_be_copied_and_named_objects_are_shared():
    net, recorder, trainer = Dense(), Recorder(), object()
    net.fc1.register_forward_hook(recorder)
    net.lock, net.note, net.trainer = threading.Lock(), ["a"], trainer
    copied = Workbench.of(net, shared=[trainer]).net
    assert list(copied.fc1._forward_hooks.values()) == [recorder]
    assert copied.lock is net.lock
    assert copied.trainer is trainer
    assert copied.note == ["a"]
    assert copied.note is not net.note


def test_of_a_compiled_net_the_net_inside_is_copied():
    net = Dense()
    bench = Workbench.of(torch.compile(net, backend="eager"))
    assert bench.origin is net
    assert type(bench.net) is type(net)


class Stubborn(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def __deepcopy__(self, memo):
        raise self.error


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            nn.Sequential(nn.Linear(2, 2), Stubborn(RuntimeError("one of a kind"))),
            r"Sequential that can't be copied \(RuntimeError: one of a kind\)[\s\S]*__deepcopy__",
        ),
        (Stubborn(MemoryError()), r"Stubborn of 0.0 GiB[\s\S]*free memory"),
        (Stubborn(torch.OutOfMemoryError()), r"Stubborn of 0.0 GiB[\s\S]*free memory"),
    ],
    ids=["refuses", "no memory", "no memory on a GPU"],
)
def test_a_net_that_cannot_be_copied_is_named(net, message):
    with pytest.raises(NetworkError, match=message):
        private_copy(net)


def test_values_agree_up_to_rounding():
    values = torch.rand(3, 4) + 1
    assert same_values(values, values * (1 + 1e-6))
    assert not same_values(values, values * 1.01)
    assert same_values(values.bfloat16(), values)
    assert not same_values(values, values[:2])


def test_a_kept_copy_holds_what_a_fresh_one_does_and_its_modules_stay():
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    kept = private_copy(net)
    modules = list(kept.modules())
    with torch.no_grad():
        net[0].weight.add_(1)
        net[1].running_mean.add_(1)
    net.note, net.first = [1], [net[0]]
    net.eval()
    assert take_over(kept, private_copy(net))
    assert list(kept.modules()) == modules
    assert (kept.note, kept.first, kept[0].training) == ([1], [kept[0]], False)
    assert all(
        torch.equal(one, other) and one is not other
        for one, other in zip(kept.state_dict().values(), net.state_dict().values(), strict=True)
    )


def test_what_kept_and_fresh_copies_share_with_the_net_stays_shared():
    net, trainer = nn.Sequential(nn.Linear(3, 2)), [threading.Lock()]
    net.trainer, net[0].lock = trainer, threading.Lock()
    kept = private_copy(net, [trainer])
    assert take_over(kept, private_copy(net, [trainer]))
    assert kept.trainer is trainer
    assert kept[0].lock is net[0].lock


def test_copies_of_other_kinds_and_what_cannot_be_copied_are_not_taken_over():
    kept, net = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Linear(3, 2))
    net[0].lock = threading.Lock()
    for fresh in (nn.Sequential(nn.Tanh()), nn.Sequential(nn.Linear(3, 2), nn.Tanh()), net):
        assert not take_over(kept, fresh)
    assert isinstance(kept[0], nn.Linear)
