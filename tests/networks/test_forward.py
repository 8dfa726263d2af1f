import pickle
from typing import NamedTuple

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.errors import DataError, NetworkError, OptionError
from snn_recon_plugin.networks import drop_autocast, keep_autocast, over_time, plain_forward, quiet
from snn_recon_plugin.networks.guard import autocast_rounding, full_precision


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


@pytest.mark.parametrize("steps", [0, -1, True, 2.0, "3"])
def test_bad_steps(steps):
    with pytest.raises(OptionError, match=f"num_steps={steps!r}"):
        over_time(steps)


def test_it_pickles_compares_and_prints():
    forward = over_time(25)
    assert pickle.loads(pickle.dumps(forward)) == forward == over_time(25)
    assert repr(forward) == "over_time(25)"


def test_plain_forward_calls_once():
    assert plain_forward(nn.Identity(), "x") == "x"


class Echo(nn.Module):
    """Returns what each call sees."""

    def forward(self, x):
        return x + 0


def test_rate_coded_inputs():
    x = torch.tensor([[0.0, 0.3, 1.0, 2.0, -1.0]]).expand(400, 5)
    torch.manual_seed(0)
    seen = over_time(20, encoding="rate")(Echo(), x)
    assert seen.shape == (20, 400, 5)
    assert torch.equal(seen.mean((0, 1)).round(decimals=1), torch.tensor([0.0, 0.3, 1.0, 1.0, 0.0]))
    assert not torch.equal(seen[0], seen[1])


def test_rates_are_drawn_from_the_guards_generator():
    net, x, forward = Echo(), torch.rand(3, 4), over_time(5, encoding="rate")
    seen = []
    for _ in range(2):
        with quiet(net, seed=7):
            seen.append(forward(net, x))
    assert torch.equal(*seen)


def test_latency_coded_inputs():
    x = torch.tensor([[0.0, 0.1, 0.5, 1.0, 3.0]])
    seen = over_time(5, encoding="latency")(Echo(), x)[:, 0]
    assert seen.sum(0).tolist() == [0, 1, 1, 1, 1]
    assert seen.argmax(0)[1:].tolist() == [4, 2, 0, 0]
    assert over_time(5, encoding="latency")(Echo(), torch.tensor([[0, 1]])).dtype == torch.float32


@pytest.mark.parametrize("time_dim", [0, 1])
def test_inputs_with_a_time_axis(time_dim):
    x = torch.randn(4, 2, 3)
    given = x if time_dim == 0 else x.movedim(0, 1)
    assert torch.equal(over_time(4, time_dim=time_dim)(Echo(), given), x)
    with pytest.raises(DataError, match=r"over_time\(5, time_dim="):
        over_time(5, time_dim=time_dim)(Echo(), given)


def test_a_state_is_handed_on():
    net = norse.SequentialState(nn.Linear(3, 4), norse.LIFCell(), nn.Linear(4, 2), norse.LICell())
    x, state, expected = torch.randn(6, 5, 3) * 20, None, []
    for step in x:
        out, state = net(step, state)
        expected.append(out)
    assert torch.equal(over_time(6, time_dim=0)(net, x), torch.stack(expected))

    class Named(nn.Module):
        def forward(self, x, hidden=None):
            return x, (hidden or 0) + 1

    assert over_time(3)(Named(), torch.ones(2)).shape == (3, 2)

    class Odd(nn.Module):
        def forward(self, x, state=None):
            return x

    with pytest.raises(NetworkError, match="takes a state, but returns tensor"):
        over_time(3)(Odd(), torch.ones(2))


@pytest.mark.parametrize("encoding", ["direct", "latency"])
def test_multi_step_nets_are_called_once(encoding):
    net, x = norse.SequentialState(nn.Linear(3, 4), norse.LIF(), nn.Linear(4, 2), norse.LI()), torch.rand(5, 3)
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    out, state = over_time(6, encoding=encoding)(net, x)
    assert out.shape == (6, 5, 2)
    assert len(state) == 4
    assert calls == [1]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"encoding": "phase"}, "encoding='phase'"),
        ({"time_dim": 2}, "time_dim=2"),
        ({"time_dim": True}, "time_dim=True"),
        ({"time_dim": 0, "encoding": "rate"}, "encoding='rate' for inputs over time"),
        ({"flatten": 1}, "flatten=1"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(OptionError, match=match):
        over_time(3, **options)


@pytest.mark.parametrize("time_dim", [0, 1])
def test_the_number_of_steps_is_taken_from_each_batch(time_dim):
    forward = over_time(time_dim=time_dim)
    for steps in (3, 5):
        x = torch.randn(steps, 2, 4)
        assert torch.equal(forward(Echo(), x if time_dim == 0 else x.movedim(0, 1)), x)


def test_without_a_number_time_comes_first():
    assert over_time() == over_time(time_dim=0)
    assert repr(over_time()) == "over_time(time_dim=0)"


def test_static_inputs_need_a_number_of_steps():
    with pytest.raises(DataError, match=r"\[6, 4\]") as caught:
        over_time()(Echo(), torch.ones(6, 4))
    assert "over_time(25)" in caught.value.fix
    with pytest.raises(OptionError, match="encoding='rate' without a number") as missing:
        over_time(encoding="rate")
    assert "over_time(25, encoding='rate')" in missing.value.fix


def test_inputs_of_different_lengths_in_one_batch():
    class First(nn.Module):
        def forward(self, pair):
            return pair[0]

    with pytest.raises(DataError, match=r"inputs of \[3, 4\] time steps"):
        over_time()(First(), (torch.ones(3, 2, 1), torch.ones(4, 2, 1)))


@pytest.mark.parametrize(
    ("forward", "shape"),
    [
        (over_time(5, flatten=True), (2, 1, 3, 4)),
        (over_time(5, flatten=True, encoding="latency"), (2, 3, 4)),
        (over_time(5, flatten=True, time_dim=0), (5, 2, 1, 12)),
        (over_time(flatten=True, time_dim=1), (2, 5, 3, 2, 2)),
        (over_time(5, flatten=True), (2, 12)),
    ],
    ids=repr,
)
def test_each_step_is_flattened(forward, shape):
    assert forward(Echo(), torch.rand(shape)).shape == (5, 2, 12)


def test_options_print():
    assert repr(over_time(3, flatten=True)) == "over_time(3, flatten=True)"
    assert repr(over_time(3, encoding="rate")) == "over_time(3, encoding='rate')"
    assert repr(over_time(3, time_dim=1)) == "over_time(3, time_dim=1)"


def test_autocast_is_kept_dropped_and_suspended():
    layer, x = nn.Linear(3, 2), torch.ones(1, 3)
    plain = keep_autocast(plain_forward)
    assert plain is plain_forward
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept = keep_autocast(plain_forward)
        assert autocast_rounding(x.device) == torch.finfo(torch.bfloat16).eps
        assert drop_autocast(kept)(layer, x).dtype == torch.float32
        assert drop_autocast(plain_forward)(layer, x).dtype == torch.float32
        with full_precision():
            assert layer(x).dtype == torch.float32
    assert kept(layer, x).dtype == torch.bfloat16
    assert autocast_rounding(x.device) == 0.0
