import pickle
from typing import NamedTuple

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.errors import NetworkError, OptionError
from snn_recon_plugin.networks import over_time, plain_forward


def manual(net, inputs, steps):
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            module.reset_mem()
    spk, mem = [], []
    for _ in range(steps):
        s, m = net(inputs)
        spk.append(s)
        mem.append(m)
    return torch.stack(spk), torch.stack(mem)


@pytest.mark.parametrize("kind", ["sequential", "Nested"])
def test_over_time_is_the_manual_loop(nets, inputs, kind):
    net = getattr(nets, kind)()
    net(inputs)  # leaves a membrane behind, which must not matter
    spk, mem = over_time(5)(net, inputs)
    expected = manual(net, inputs, 5)
    assert torch.equal(spk, expected[0])
    assert torch.equal(mem, expected[1])
    assert mem.requires_grad


class Out(NamedTuple):
    a: torch.Tensor
    b: list


@pytest.mark.parametrize(
    ("make", "check"),
    [
        (lambda x: x, lambda out: out.shape == (3, 2)),
        (lambda x: [x, (x,)], lambda out: isinstance(out, list) and out[1][0].shape == (3, 2)),
        (lambda x: {"k": x}, lambda out: out["k"].shape == (3, 2)),
        (lambda x: Out(x, [x]), lambda out: isinstance(out, Out) and out.b[0].shape == (3, 2)),
    ],
)
def test_structures_are_stacked_element_by_element(make, check):
    class Net(nn.Module):
        def forward(self, x):
            return make(x)

    assert check(over_time(3)(Net(), torch.ones(2)))


def test_outputs_that_cannot_be_stacked():
    class Net(nn.Module):
        def forward(self, x):
            return None

    with pytest.raises(NetworkError, match="a NoneType at each step"):
        over_time(3)(Net(), torch.ones(2))


@pytest.mark.parametrize("steps", [0, -1, True, 2.0, "3", None])
def test_bad_steps(steps):
    with pytest.raises(OptionError, match=f"num_steps={steps!r}"):
        over_time(steps)


def test_it_pickles_compares_and_prints():
    forward = over_time(25)
    assert pickle.loads(pickle.dumps(forward)) == forward == over_time(25)
    assert repr(forward) == "over_time(25)"


def test_plain_forward_calls_once():
    assert plain_forward(nn.Identity(), "x") == "x"
