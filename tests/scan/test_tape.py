"""Records of passes: what one can't show lets a module run as it is written."""

import random
import re

import numpy as np
import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import nn

from snn_recon_plugin import fast_steps
from snn_recon_plugin.scan.installed import FastPass

from .loops import BATCH, STEPS, Dense, vectors


def in_forward(change):
    """Return a net that passes its inputs through a function of them and itself before its loop."""

    class Changed(Dense):
        def forward(self, x):
            return super().forward(change(self, x))

    torch.manual_seed(0)
    net = Changed()
    net.calls = 0
    return net


def count(net, x):
    net.calls += 1
    return x


def without_gradients(net, x):
    with torch.no_grad():
        return x * 2


def write(net, x):
    found = torch.zeros_like(x)
    found[0] = x[0]
    return found


class Clamp(torch.autograd.Function):
    """Clamps gradients, which at first are smaller."""

    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clamp(-100, 100)


REFUSED = {
    "a gradient of its own": (lambda net, x: Clamp.apply(x * net.fc1.bias[:12]), r"calls a torch\.autograd\.Function"),
    "a number that Python reads": (lambda net, x: x * float(x.sum()), r"reads values of tensors \(__float__\)"),
    "a number drawn": (lambda net, x: x * float(torch.rand(3).max()), r"reads values of tensors \(__float__\)"),
    "memory that nothing filled": (lambda net, x: x * len(torch.empty(3).tolist()), r"reads values of tensors \(tolist\)"),
    "a condition": (lambda net, x: x if x.sum() > 0 else 2 * x, r"reads values of tensors \(__bool__\)"),
    "an attribute that counts": (count, "changes the attribute calls"),
    "random numbers of Python": (lambda net, x: x * random.random(), "draws random numbers outside of torch"),
    "random numbers of NumPy": (lambda net, x: x * np.random.rand(), "draws random numbers outside of torch"),
    "a tensor from elsewhere": (lambda net, x: x + torch.from_numpy(np.ones(12, np.float32)), "neither made in the pass nor an"),
    "gradients turned off": (without_gradients, r"reads values of tensors \(_set_grad_enabled\)"),
    "a write into a part": (write, r"writes into a tensor \(__setitem__\)|reads values of tensors \(__setitem__\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_record_cannot_show_runs_as_it_is_written(name):
    change, reason = REFUSED[name]
    handle = fast_steps(in_forward(change), [(vectors(), torch.zeros(BATCH))])
    assert re.search(reason, handle.reason)
    assert handle.layers["lif1"] == f"as usual, {STEPS} steps"
    assert f"runs as it is written: it {handle.reason[3:]}" in str(handle)


def alpha(net, x):
    """An Alpha neuron, whose own code must run, from states that the loop changes."""
    return net.alpha(net.fc1(x), *(state + 1 for state in net.alpha.init_alpha()))[0][:, :12]


def test_a_reason_names_the_layer():
    net = in_forward(alpha)
    net.alpha = snn.Alpha(alpha=0.9, beta=0.8)
    assert fast_steps(net, [(vectors(), torch.zeros(BATCH))]).reason.startswith("it gives 'alpha' (Alpha), whose own code must run")


def test_a_net_with_hooks_has_a_table_and_a_reason():
    net = Dense()
    net.fc1.register_forward_hook(lambda module, args, output: 2 * output)
    handle = fast_steps(net, [(vectors(), torch.zeros(BATCH))])
    assert handle.reason == "'fc1' (Linear) has hooks"
    assert handle.layers == dict.fromkeys(("lif1", "lif2"), f"as usual, {STEPS} steps")


def test_a_net_under_autocast_has_a_table_and_a_reason():
    def forward(net, x):
        with torch.autocast("cpu", torch.bfloat16):
            return net(x)

    handle = fast_steps(Dense(), [(vectors(), torch.zeros(BATCH))], forward=forward)
    assert handle.reason == "autocast is on"
    assert handle.layers["lif2"] == f"as usual, {STEPS} steps"


def test_records_that_are_refused_again_and_again_end():
    net = in_forward(lambda net, x: x if x.sum() > 0 else 2 * x)
    passed = FastPass(net, net.forward)
    for samples in range(1, 7):
        passed(vectors(samples))
    assert list(passed.plans.values()) == [None] * 3


def test_what_is_returned_keeps_its_structure():
    net = Dense()
    own = net.forward

    def run(x):
        membranes = own(x)
        return {"last": membranes[-1], "all": list(membranes.unbind(0)), "steps": len(membranes), "none": None}

    passed, x = FastPass(net, run), vectors()
    first, second = passed(x), passed(x)
    assert next(iter(passed.plans.values())) is not None
    assert (second["steps"], second["none"], len(second["all"])) == (STEPS, None, STEPS)
    torch.testing.assert_close(second["last"], first["last"])
    torch.testing.assert_close(second["all"], first["all"])


def test_another_kind_of_input_or_mode_has_a_record_of_its_own():
    net, x = Dense(), vectors()
    passed = FastPass(net, net.forward)
    for inputs in (x, x[:3], x.double().float().T.contiguous().T):
        passed(inputs)
        passed(inputs)
    net.eval()
    passed(x)
    with torch.no_grad():
        passed(x)
    net.steps = 2
    assert len(passed(x)) == 2
    net.fc1 = torch.nn.Linear(12, 20)
    assert torch.equal(passed(x), net(x))
    assert len(passed.plans) == 7


@pytest.mark.usefixtures("no_other_neurons")
@pytest.mark.parametrize("kind", [snn.Lapicque, snn.Alpha, snn.Synaptic])
@pytest.mark.parametrize("reset", ["given", "inside", "before"])
def test_states_of_any_neuron_start_as_in_the_loop(kind, reset):
    options = {"beta": 0.8, "init_hidden": reset != "given"} | ({} if kind is snn.Lapicque else {"alpha": 0.9})
    torch.manual_seed(0)
    first, hidden, last = nn.Linear(12, 8), kind(**options), nn.Linear(8, 3)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.hidden, self.last = first, hidden, last

        def forward(self, x):
            if reset == "inside":
                utils.reset(self)
            states, out = hidden.reset_mem() if reset == "given" else (), []
            for _ in range(STEPS):
                spikes = hidden(first(x), *(states if isinstance(states, tuple) else (states,)))
                spikes, *states = spikes if isinstance(spikes, tuple) else (spikes,)
                states = tuple(states)
                out.append(last(spikes))
            return torch.stack(out)

    net, x, found = Net(), vectors() * 3, []
    passed = FastPass(net, net.forward)
    for run in (net, passed, passed):
        hidden.reset_mem()
        found.append(torch.stack([run(x), run(x)]))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])
