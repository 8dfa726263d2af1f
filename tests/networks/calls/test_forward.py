import pickle
from typing import NamedTuple

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.errors import DataError, NetworkError, OptionError
from snn_recon_plugin.networks.calls.forward import drop_autocast, keep_autocast, over_time, plain_forward
from snn_recon_plugin.networks.private.quiet import autocast_rounding, full_precision, quiet

from ..nets import Nested, sequential


class Returning(nn.Module):
    """Returns what a function makes of its input; by default the input."""

    def __init__(self, make=lambda x: x + 0):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


@pytest.mark.parametrize("make", [sequential, Nested])
def test_over_time_is_the_manual_loop(make, inputs):
    net = make()
    net(inputs)  # leaves a membrane behind, which must not matter
    spk, mem = over_time(5)(net, inputs)
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            module.reset_mem()
    expected = [net(inputs) for _ in range(5)]
    assert torch.equal(spk, torch.stack([step[0] for step in expected]))
    assert torch.equal(mem, torch.stack([step[1] for step in expected]))
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
    assert check(over_time(3)(Returning(make), torch.ones(2)))


PRINTED = {
    "over_time(25)": over_time(25),
    "over_time(time_dim=0)": over_time(),
    "over_time(3, flatten=True)": over_time(3, flatten=True),
    "over_time(3, encoding='rate')": over_time(3, encoding="rate"),
    "over_time(3, time_dim=1)": over_time(3, time_dim=1),
}


@pytest.mark.parametrize("text", PRINTED)
def test_it_prints_pickles_and_compares(text):
    forward = PRINTED[text]
    assert repr(forward) == text
    assert pickle.loads(pickle.dumps(forward)) == forward == eval(text)


@pytest.mark.parametrize(
    ("options", "match", "fix"),
    [
        *(({"num_steps": steps}, f"num_steps={steps!r}", "") for steps in (0, -1, True, 2.0, "3")),
        ({"num_steps": 3, "encoding": "phase"}, "encoding='phase'", ""),
        ({"num_steps": 3, "time_dim": 2}, "time_dim=2", ""),
        ({"num_steps": 3, "time_dim": True}, "time_dim=True", ""),
        ({"num_steps": 3, "time_dim": 0, "encoding": "rate"}, "encoding='rate' for inputs over time", ""),
        ({"num_steps": 3, "flatten": 1}, "flatten=1", ""),
        ({"encoding": "rate"}, "encoding='rate' without a number", "over_time(25, encoding='rate')"),
    ],
)
def test_bad_options(options, match, fix):
    with pytest.raises(OptionError, match=match) as error:
        over_time(**options)
    assert fix in error.value.fix


class Odd(nn.Module):
    """Takes a state, but returns none."""

    def forward(self, x, state=None):
        return x


@pytest.mark.parametrize(
    ("forward", "net", "inputs", "kind", "match", "fix"),
    [
        (over_time(3), Returning(lambda x: None), torch.ones(2), NetworkError, "a NoneType at each step", ""),
        (over_time(3), Odd(), torch.ones(2), NetworkError, "takes a state, but returns tensor", ""),
        (over_time(5, time_dim=0), Returning(), torch.ones(4, 2, 3), DataError, r"over_time\(5, time_dim=0", ""),
        (over_time(5, time_dim=1), Returning(), torch.ones(2, 4, 3), DataError, r"over_time\(5, time_dim=1", ""),
        (over_time(), Returning(), torch.ones(6, 4), DataError, r"\[6, 4\]", "over_time(25)"),
        (
            over_time(),
            Returning(lambda pair: pair[0]),
            (torch.ones(3, 2, 1), torch.ones(4, 2, 1)),
            DataError,
            r"inputs of \[3, 4\] time steps",
            "",
        ),
    ],
    ids=["no tensor", "no state", "time_dim=0", "time_dim=1", "static inputs", "lengths"],
)
def test_passes_that_are_refused(forward, net, inputs, kind, match, fix):
    with pytest.raises(kind, match=match) as error:
        forward(net, inputs)
    assert fix in error.value.fix


def test_rate_coded_inputs():
    x = torch.tensor([[0.0, 0.3, 1.0, 2.0, -1.0]]).expand(400, 5)
    seen = over_time(20, encoding="rate")(Returning(), x)
    assert seen.shape == (20, 400, 5)
    assert torch.equal(seen.mean((0, 1)).round(decimals=1), torch.tensor([0.0, 0.3, 1.0, 1.0, 0.0]))
    assert not torch.equal(seen[0], seen[1])
    drawn = []
    for _ in range(2):
        with quiet(net := Returning(), seed=7):  # draws from the guard's generator
            drawn.append(over_time(5, encoding="rate")(net, x))
    assert torch.equal(*drawn)


def test_latency_coded_inputs():
    x = torch.tensor([[0.0, 0.1, 0.5, 1.0, 3.0]])
    seen = over_time(5, encoding="latency")(Returning(), x)[:, 0]
    assert seen.sum(0).tolist() == [0, 1, 1, 1, 1]
    assert seen.argmax(0)[1:].tolist() == [4, 2, 0, 0]
    assert over_time(5, encoding="latency")(Returning(), torch.tensor([[0, 1]])).dtype == torch.float32


@pytest.mark.parametrize("time_dim", [0, 1])
def test_inputs_with_a_time_axis_of_any_length(time_dim):
    for steps in (3, 5):
        x = torch.randn(steps, 2, 4)
        for forward in (over_time(steps, time_dim=time_dim), over_time(time_dim=time_dim)):
            assert torch.equal(forward(Returning(), x if time_dim == 0 else x.movedim(0, 1)), x)


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


@pytest.mark.parametrize("encoding", ["direct", "latency"])
def test_multi_step_nets_get_all_steps_in_one_call(encoding):
    net, x = norse.SequentialState(nn.Linear(3, 4), norse.LIF(), nn.Linear(4, 2), norse.LI()), torch.rand(5, 3)
    out, state = over_time(6, encoding=encoding)(net, x)
    assert out.shape == (6, 5, 2)
    assert len(state) == 4


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
    assert forward(Returning(), torch.rand(shape)).shape == (5, 2, 12)


def test_autocast_is_kept_dropped_and_suspended():
    layer, x = nn.Linear(3, 2), torch.ones(1, 3)
    assert keep_autocast(plain_forward) is plain_forward
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept = keep_autocast(plain_forward)
        assert autocast_rounding(x.device) == torch.finfo(torch.bfloat16).eps
        assert drop_autocast(kept)(layer, x).dtype == torch.float32
        assert drop_autocast(plain_forward) is plain_forward, "passes of the package have no autocast around them"
        with full_precision():
            assert layer(x).dtype == torch.float32
    assert kept(layer, x).dtype == torch.bfloat16
    assert autocast_rounding(x.device) == 0.0
