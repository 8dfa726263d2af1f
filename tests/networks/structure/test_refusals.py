"""Nets that can't be read or written: each refused before anything is done to it, with what to change."""

import itertools

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from snntorch.functional.quant import state_quant
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from snn_recon_plugin.errors import CaptureError, NetworkError, UnsupportedModuleError
from snn_recon_plugin.networks.calls.forward import plain_forward
from snn_recon_plugin.networks.capture import ActivityRecorder, capture
from snn_recon_plugin.networks.private.quiet import quiet
from snn_recon_plugin.networks.readout.resolve import resolve_readout
from snn_recon_plugin.networks.structure.inspect import inspect_network
from snn_recon_plugin.networks.write import check_writable

from ...helpers import as_batches, assert_as_before, snapshot
from ..nets import STEPS, Dense
from ..reading import assert_says


def read(net, inputs, **options):
    """What every reconstruction does first."""
    net_map = inspect_network(net, inputs, plain_forward, **options)
    check_writable(net, net_map)
    return net_map, resolve_readout(net, net_map, inputs, forward=plain_forward)


def step(module, current, state):
    """Call a neuron or an LSTM cell, whatever its states look like."""
    if isinstance(module, nn.LSTMCell):
        state = module(current, state)
        return state[0], state
    if type(module).__module__.startswith("norse"):
        return module(current, state)
    state = module.reset_mem() if state is None else state
    returned = module(current, *(state if isinstance(state, tuple) else [state]))
    return returned[0], returned[1:]


class Pair(nn.Module):
    """A hidden and an output neuron of either library, which hand their states on from step to step, or forget them."""

    def __init__(self, hidden, output, forgetful=False):
        super().__init__()
        self.fc1, self.l1 = nn.Linear(10, 16), hidden
        self.fc2, self.out, self.forgetful = nn.Linear(16, 3), output, forgetful
        with torch.no_grad():
            self.fc1.weight.mul_(30)

    def forward(self, x):
        hidden = output = None
        record = []
        for _ in range(STEPS):
            z, hidden = step(self.l1, self.fc1(x), hidden)
            value, output = step(self.out, self.fc2(z), output)
            record.append(output[0] if self.forgetful else value)
            if self.forgetful:
                hidden = output = None
        return torch.stack(record)


class Calls(nn.Module):
    """A loop over steps whose readout or neurons are called another number of times."""

    def __init__(self, outputs, last=False):
        super().__init__()
        self.fc1, self.fc2, self.last = nn.Linear(10, 3), nn.Linear(3, 3), last
        self.hidden = snn.Leaky(beta=0.9)
        self.outputs = nn.ModuleList([snn.Leaky(beta=0.9) for _ in range(outputs)] or [self.hidden])

    def forward(self, x):
        one = two = torch.zeros(len(x), 3)
        record = []
        for number in range(STEPS):
            spikes, one = self.hidden(self.fc1(x), one)
            _, two = self.outputs[number % len(self.outputs)](self.fc2(spikes), two)
            record.append(two)
        if self.last:
            self.fc2(spikes)
        return torch.stack(record)


class Rounded(nn.Linear):
    def forward(self, x):
        size = self.weight.abs().max() / 7
        return F.linear(x, torch.round(self.weight / size) * size, self.bias)


def foreign(base, module):
    """Stands for a layer of a package that is not installed, or that not every machine has an engine for."""
    return type("QuantLinear", (base,), {"__module__": module})


BREVITAS = foreign(Rounded, "brevitas.nn.quant_linear")
QUANTIZED = foreign(nn.Linear, torch.ao.nn.quantized.dynamic.Linear.__module__)


class Noisy(nn.Module):
    numbers = itertools.count()

    def forward(self, x):
        return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(next(self.numbers)))


class Doubled(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_forward_hook(lambda module, args, output: 2 * output)


def statistics():
    net = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(4, 3))
    net[1].running_mean[2] = torch.nan
    return net


def quantised_state(**options):
    return snn.Leaky(beta=0.9, state_quant=state_quant(num_bits=4), **options)


def listed(neurons):
    """A net with neurons in a plain container alone."""
    net = nn.Sequential(nn.Linear(10, 4), nn.Linear(4, 3))
    net.lifs = neurons
    return net


def known_neurons():
    net = Dense()
    net.lifs = [net.lif1, net.lif2]
    return net


def with_layer(name, make):
    net = Dense()
    setattr(net, name, make(*getattr(net, name).weight.shape[::-1]))
    return net


def pruned(*sizes):
    return prune.l1_unstructured(nn.Linear(*sizes), "weight", 5)


def noisy(*sizes):
    return nn.Sequential(nn.Linear(*sizes), Noisy())


ENDS = "ends in {}|norse.LICell"
FED_BACK = "the output neuron 'out' (R|), which feeds its spikes back|net.out = snn.Leaky(beta=0.9, reset_mechanism='none')"
NOT_LINEAR = "the readout 'fc3' (|{}), whose output is not input @ weight|quantised or binarised|make net.fc3 an nn.Linear"
QUANTISED = "'lif3' (Leaky), which quantises its membrane"
HIDES = "2 neurons (Leaky) in self.lifs of Sequential, a plain|self.lifs = nn.Module"
UNSUPPORTED = {  # net and message
    "SLSTM": (lambda: Pair(snn.Synaptic(0.8, 0.9), snn.SLSTM(3, 3, threshold=0.1)), "class SLSTM|use one of those"),
    "Coba": (lambda: Pair(norse.LIFCell(), norse.CobaLIFCell(3, 3)), ENDS.format("'out' (CobaLIFCell)")),
    "recurrent": (lambda: Pair(norse.LIFCell(), norse.LIFRecurrentCell(3, 3)), ENDS.format("'out' (LIFRecurrentCell)")),
    "RSynaptic": (lambda: Pair(snn.Synaptic(0.8, 0.9), snn.RSynaptic(0.8, 0.9, linear_features=3)), FED_BACK),
    "quantised without reset": (lambda: Dense(output=quantised_state(reset_mechanism="none")), QUANTISED),
    "Brevitas": (lambda: with_layer("fc3", BREVITAS), NOT_LINEAR.format("brevitas.QuantLinear")),
    "quantized": (lambda: with_layer("fc3", QUANTIZED), "a quantized module at 'fc3' (QuantLinear)|quantize afterwards"),
    "hook on the readout": (lambda: with_layer("fc3", Doubled), "off by 100 % of the largest value|its output is changed"),
    "two libraries": (lambda: Pair(snn.Leaky(0.9), norse.LICell()), "modules of norse and snntorch in one net|or SpikingJelly"),
    "list": (lambda: listed([snn.Leaky(0.9), snn.Leaky(0.9)]), HIDES + "List"),
    "tuple": (lambda: listed((snn.Leaky(0.9), snn.Leaky(0.9))), HIDES),
    "dict": (lambda: listed({0: snn.Leaky(0.9), 1: snn.Leaky(0.9)}), HIDES + "Dict"),
    "list of lists": (lambda: listed([[snn.Leaky(0.9), snn.Leaky(0.9)]]), HIDES),
    "pruned weight": (lambda: with_layer("fc3", pruned), "'fc3.weight' is computed by pruning|prune.remove"),
}
ONCE = " steps|one call of both for each step|one neuron of its own for all steps|once at each step"
NOT_FINITE = "NaN or infinite values, first in "
OTHER_VALUES = "other values each time |first in what enters {}|torch's, NumPy's or Python's global generator"
FORGOTTEN = "changes the state of the output neuron 'out' between time steps|or a reset does|once before the time loop"
UNREADABLE = {
    "LSTM": (lambda: Pair(norse.LIFCell(), nn.LSTMCell(3, 3)), "tensor [6, 8, 3], whose values are none of|no LSTM|scores"),
    "neuron for each step": (lambda: Calls(STEPS), ONCE),
    "readout once more": (lambda: Calls(1, last=True), ONCE),
    "one neuron for both": (lambda: Calls(0), ONCE),
    "forgotten, subtract": (lambda: Pair(snn.Leaky(0.9), snn.Leaky(0.9), forgetful=True), FORGOTTEN),
    "forgotten, Norse": (lambda: Pair(norse.LIFCell(), norse.LICell(), forgetful=True), FORGOTTEN),
    "running mean": (statistics, "'1.running_mean' (BatchNorm1d) holds NaN|net[1].reset_running_stats()"),
    "NaN": (lambda: Dense(lambda spk, mem: mem / 0), NOT_FINITE + "its output"),
    "infinity": (lambda: Dense(lambda spk, mem: (0 * spk).mean(0).log()), NOT_FINITE + "its output"),
    "NaN in currents": (lambda: Dense(encode=lambda x: x / 0), NOT_FINITE + "what enters 'fc1'"),
    "noise": (lambda: Dense(encode=Noisy()), OTHER_VALUES.format("'fc1'")),
    "noise in a layer": (lambda: with_layer("fc2", noisy), OTHER_VALUES.format("'lif2'")),
}


@pytest.mark.parametrize(
    ("kind", "make", "words"),
    [
        pytest.param(kind, *row, id=name)
        for kind, table in ((UnsupportedModuleError, UNSUPPORTED), (NetworkError, UNREADABLE))
        for name, row in table.items()
    ],
)
def test_refused_and_left_as_it_was(inputs, kind, make, words):
    net = make()
    before = snapshot(net)
    with pytest.raises(CaptureError if words.startswith(ONCE) else kind) as error:
        read(net, inputs)
    assert_says(error.value, words)
    assert_as_before(net, before)


@pytest.mark.parametrize(
    ("returns", "shape"),
    [
        (lambda spk, mem: mem[..., None], r"tensor \[6, 8, 3, 1\]"),
        (lambda spk, mem: mem.flatten(0, 1), r"tensor \[48, 3\]"),
        (lambda spk, mem: mem.permute(1, 2, 0), r"tensor \[8, 3, 6\]"),
        (lambda spk, mem: mem.sum(0).argmax(1), r"tensor \[8\]"),
        (lambda spk, mem: mem.mean(), r"tensor \[\]"),
        (lambda spk, mem: float(mem.mean()), "a float"),
    ],
)
def test_outputs_of_other_shapes(inputs, returns, shape):
    with pytest.raises(NetworkError, match=shape) as error:
        read(Dense(returns=returns), inputs)
    assert "[time, batch, classes] or [batch, time, classes]" in error.value.needed


class Early(Dense):
    """Returns before its last layers where the input is 0."""

    def forward(self, x):
        if x.any():
            return super().forward(x)
        self.fc1(x)
        return x.new_zeros(STEPS, len(x), 3)


def test_a_forward_that_does_not_reach_the_readout(inputs):
    net = Early(returns=lambda spk, mem: mem)
    before = snapshot(net)
    with pytest.raises(CaptureError) as error:
        read(net, 0 * inputs, readout_layer="fc3")
    assert_says(error.value, "never calls the readout 'fc3'|it called 'fc1' (Linear)")
    assert_as_before(net, before)
    recorder, hooks = ActivityRecorder(*read(net, inputs)), snapshot(net)["hooks"]
    with pytest.raises(CaptureError, match=r"a forward pass on batch 2 that calls none of 'lif1'"), quiet(net, seed=0):
        capture(net, as_batches([(inputs, torch.zeros(8)), (0 * inputs, torch.zeros(8))]), recorder, forward=plain_forward)
    assert snapshot(net)["hooks"] == hooks


READ = {
    "Coba": lambda: Pair(norse.CobaLIFCell(16, 16), norse.LICell()),
    "Brevitas": lambda: with_layer("fc2", BREVITAS),
    "a subclass of Linear": lambda: with_layer("fc3", type("Named", (nn.Linear,), {})),
    "a plain list of known neurons": known_neurons,
}


@pytest.mark.parametrize("name", READ)
def test_nets_that_are_read(inputs, name):
    net = READ[name]()
    net_map, readout = read(net, inputs)
    assert (readout.kind, readout.exactness) == ("membrane_mean", "exact")
    assert len(net_map.hidden) == (2 if isinstance(net, Dense) else 1)


class Folded(nn.Module):
    """A layer that takes all steps, and one that gets them as samples."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(10, 8), norse.LIF(), nn.Linear(8, 8), norse.LIFCell()
        self.fc3 = nn.Linear(8, 3)

    def forward(self, x):
        steps = self.lif1(self.fc1(x).expand(4, -1, -1))[0]
        return self.fc3(self.lif2(self.fc2(steps).flatten(0, 1))[0]).unflatten(0, (4, -1)).mean(0)


def test_steps_that_are_folded_into_the_batch(inputs):
    with pytest.raises(NetworkError) as error:
        read(Folded(), inputs)
    assert_says(error.value, "'lif2'|takes one step a call|all 4 steps in one|starts from rest|once a step")
