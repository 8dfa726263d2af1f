"""Every way in which the tutorials of both libraries put a net together, read and captured without a change to it."""

import itertools

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin.networks import capture, inspect_network, over_time, plain_forward, preserved, resolve_readout

STEPS, BATCH, INPUTS, HIDDEN, CLASSES = 6, 8, 10, 16, 3
ALL = ("exact", "majorised", "surrogate")


class WithInputs(nn.Module):
    """Wraps multi-step layers: shows a static input at every step."""

    def __init__(self, body, decode=lambda out: out):
        super().__init__()
        self.body, self.decode = body, decode

    def forward(self, x):
        return self.decode(self.body(x.expand(STEPS, *x.shape)))


def loud(net, gain=30.0):
    """Make the synapses strong enough for spikes, weights inside neurons included."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1 and "recurrent" not in name:
                parameter.mul_(gain)
    return net


def cells():
    return norse.SequentialState(
        nn.Linear(INPUTS, HIDDEN),
        norse.LIFCell(),
        nn.Linear(HIDDEN, HIDDEN),
        norse.LIFCell(),
        nn.Linear(HIDDEN, CLASSES),
        norse.LICell(),
    )


def multi_step():
    return norse.SequentialState(nn.Linear(INPUTS, HIDDEN), norse.LIF(), nn.Linear(HIDDEN, CLASSES), norse.LI())


def conv_lift():
    return norse.SequentialState(
        norse.Lift(nn.Conv2d(1, 4, 5)),
        norse.LIF(),
        norse.Lift(nn.MaxPool2d(2)),
        nn.Flatten(2),
        nn.Linear(4 * 7 * 7, CLASSES),
        norse.LI(),
    )


def lifted_linear():
    return norse.SequentialState(
        norse.Lift(nn.Linear(INPUTS, HIDDEN)), norse.LIF(), norse.Lift(nn.Linear(HIDDEN, CLASSES)), norse.LI()
    )


def lifted_net():
    return norse.Lift(norse.SequentialState(nn.Linear(INPUTS, HIDDEN), norse.LIFCell(), nn.Linear(HIDDEN, CLASSES), norse.LICell()))


def conv_cells():
    return norse.SequentialState(
        nn.Conv2d(1, 4, 5), norse.LIFCell(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 7 * 7, CLASSES), norse.LICell()
    )


class LinearCell(nn.Module):
    """States passed by hand, and a readout whose weight lies in the integrator."""

    def __init__(self):
        super().__init__()
        self.fc1, self.l1 = nn.Linear(INPUTS, HIDDEN), norse.LIFCell(p=norse.LIFParameters(v_th=torch.tensor(0.7)))
        self.out = norse.LILinearCell(HIDDEN, CLASSES)

    def forward(self, x):
        s1 = so = None
        voltages = []
        for _ in range(STEPS):
            z, s1 = self.l1(self.fc1(x), s1)
            v, so = self.out(z, so)
            voltages.append(v)
        return torch.stack(voltages)


def norse_recurrent():
    return norse.SequentialState(
        norse.LIFRecurrent(INPUTS, HIDDEN), norse.LSNNRecurrent(HIDDEN, HIDDEN), nn.Linear(HIDDEN, CLASSES), norse.LI()
    )


class StateLeaky(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.l1 = nn.Linear(INPUTS, HIDDEN), snn.StateLeaky(beta=0.9, channels=HIDDEN)
        self.fc2, self.l2 = nn.Linear(HIDDEN, CLASSES), snn.StateLeaky(beta=0.9, channels=CLASSES, output=False)

    def forward(self, x):
        return self.l2(self.fc2(self.l1(self.fc1(x))[0]))


class LinearLeaky(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([snn.LinearLeaky(0.9, INPUTS, HIDDEN), snn.LinearLeaky(0.8, HIDDEN, CLASSES)])

    def forward(self, x):
        z, _ = self.layers[0](x)
        return self.layers[1](z)


class Parallel(nn.Module):
    """A LeakyParallel hidden layer, and plain logits."""

    def __init__(self):
        super().__init__()
        self.l1, self.fc = snn.LeakyParallel(INPUTS, HIDDEN, beta=0.9), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x):
        return self.fc(self.l1(x)).mean(0)


class Stack(nn.Module):
    """A ModuleList of layers, and a list of steps as output."""

    def __init__(self, sizes=(INPUTS, HIDDEN, HIDDEN, CLASSES)):
        super().__init__()
        self.synapses = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        resets = ["subtract"] * (len(sizes) - 2) + ["none"]
        self.neurons = nn.ModuleList(snn.Leaky(beta=0.9, reset_mechanism=reset) for reset in resets)

    def forward(self, x):
        states, record = [neuron.reset_mem() for neuron in self.neurons], []
        for _ in range(STEPS):
            z = x
            for number, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                z, states[number] = neuron(synapse(z), states[number])
            record.append(states[-1])
        return record


class BatchMajor(nn.Module):
    """Time on the second axis throughout: the readout sees [B, T, P] once."""

    def __init__(self, fold=False):
        super().__init__()
        self.fc1, self.l1 = nn.Linear(INPUTS, HIDDEN), snn.Leaky(beta=0.9)
        self.fc2, self.l2 = nn.Linear(HIDDEN, CLASSES), snn.Leaky(beta=0.9, reset_mechanism="none")
        self.fold = fold

    def forward(self, x):
        m1, m2, spikes, record = self.l1.reset_mem(), self.l2.reset_mem(), [], []
        for _ in range(STEPS):
            z, m1 = self.l1(self.fc1(x), m1)
            spikes.append(z)
        whole = torch.stack(spikes, dim=1)
        currents = self.fc2(whole.flatten(0, 1)).unflatten(0, whole.shape[:2]) if self.fold else self.fc2(whole)
        for step in range(STEPS):
            _, m2 = self.l2(currents[:, step], m2)
            record.append(m2)
        return torch.stack(record, dim=1)


class ConvExplicit(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.l1 = nn.Conv2d(1, 4, 5), snn.Leaky(beta=0.9)
        self.fc, self.l2 = nn.Linear(4 * 7 * 7, CLASSES), snn.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x):
        m1, m2, record = self.l1.reset_mem(), self.l2.reset_mem(), []
        for _ in range(STEPS):
            z, m1 = self.l1(F.max_pool2d(self.c1(x), 2), m1)
            _, m2 = self.l2(self.fc(z.view(z.size(0), -1)), m2)
            record.append(m2)
        return torch.stack(record)


def first(returned):
    return returned[0]


# Name: net, forward, readout, hidden layers, whether it sees images, and the expected kind and exactness.
OVER = over_time(STEPS)
CASES = {
    "cells, outer loop": (cells, OVER, "4", 2, False, "membrane_mean", "exact"),
    "multi-step layers": (multi_step, OVER, "2", 1, False, "membrane_mean", "exact"),
    "multi-step, last": (
        lambda: WithInputs(multi_step(), lambda o: o[0][-1]),
        plain_forward,
        "body.2",
        1,
        False,
        "membrane_last",
        "exact",
    ),
    "multi-step, max": (
        lambda: WithInputs(multi_step(), lambda o: o[0].amax(0)),
        plain_forward,
        "body.2",
        1,
        False,
        "membrane_max",
        "majorised",
    ),
    "lifted convolution": (conv_lift, OVER, "4", 1, True, "membrane_mean", "exact"),
    "lifted linear": (lifted_linear, OVER, "2.lifted_module", 1, False, "membrane_mean", "exact"),
    "lifted net": (
        lambda: WithInputs(lifted_net(), first),
        plain_forward,
        "body.lifted_module.2",
        1,
        False,
        "membrane_mean",
        "exact",
    ),
    "convolutional cells": (conv_cells, OVER, "4", 1, True, "membrane_mean", "exact"),
    "LILinearCell": (LinearCell, plain_forward, "out", 1, False, "membrane_mean", "exact"),
    "Norse recurrent": (norse_recurrent, OVER, "2", 2, False, "membrane_mean", "exact"),
    "Norse spiking cells": (
        lambda: norse.SequentialState(nn.Linear(INPUTS, HIDDEN), norse.LIFCell(), nn.Linear(HIDDEN, CLASSES), norse.LIFCell()),
        OVER,
        "2",
        1,
        False,
        "spike_count",
        "surrogate",
    ),
    "Norse spiking layers": (
        lambda: norse.SequentialState(nn.Linear(INPUTS, HIDDEN), norse.LIF(), nn.Linear(HIDDEN, CLASSES), norse.LIF()),
        OVER,
        "2",
        1,
        False,
        "spike_count",
        "surrogate",
    ),
    "StateLeaky": (StateLeaky, OVER, "fc2", 1, False, "membrane_mean", "exact"),
    "LinearLeaky": (LinearLeaky, OVER, "layers.1.linear", 1, False, "membrane_mean", "exact"),
    "LeakyParallel": (Parallel, OVER, "fc", 1, False, "linear_mean", "exact"),
    "module lists": (Stack, plain_forward, "synapses.2", 2, False, "membrane_mean", "exact"),
    "batch first": (BatchMajor, plain_forward, "fc2", 1, False, "membrane_mean", "exact"),
    "batch first, folded": (lambda: BatchMajor(fold=True), plain_forward, "fc2", 1, False, "membrane_mean", "exact"),
    "explicit convolution": (ConvExplicit, plain_forward, "fc", 1, True, "membrane_mean", "exact"),
}


def inspected(net, inputs, forward, kind="auto"):
    net_map = inspect_network(net, inputs, forward)
    return net_map, resolve_readout(net, net_map, inputs, forward, kind, allow=ALL)


@pytest.mark.parametrize("name", CASES)
def test_idiom(name, inputs, images, snapshot, assert_same, count_hooks):
    make, forward, readout_name, hidden, sees_images, kind, exactness = CASES[name]
    net = loud(make())
    x = images if sees_images else inputs
    data = DataLoader(TensorDataset(x, torch.arange(BATCH) % CLASSES), 5)
    before = snapshot(net)
    with preserved(net, seed=0):
        net_map, readout = inspected(net, x, forward)
        captured = capture(net, data, net_map, readout, forward, keep_spikes=6)
    assert_same(before, snapshot(net))
    assert count_hooks(net) == 0
    assert (net_map.readout.name, len(net_map.hidden), net_map.num_steps) == (readout_name, hidden, STEPS)
    assert (readout.kind, readout.exactness) == (kind, exactness)
    assert 0 < captured.layers[net_map.hidden[-1].name].firing_rate < 1
    with torch.no_grad():
        linear = captured.features @ net_map.readout.weight.T + readout.constant
        if net_map.readout.bias is not None:
            linear += readout.bias_gain * net_map.readout.bias
    if exactness == "exact":
        assert float((captured.scores - linear).abs().max()) <= 1e-4 * max(1.0, float(linear.abs().max()))
    again = torch.einsum("t,tmp->mp", readout.filter.float(), captured.spikes.float())
    assert torch.allclose(again, captured.features[:6], rtol=1e-4, atol=1e-5)
    assert captured.spikes.dtype == torch.uint8


@pytest.mark.parametrize("kind", ["membrane_mean", "membrane_last", "membrane_sum", "membrane_max"])
def test_kinds_of_norse_layers(kind, inputs):
    readout = inspected(loud(multi_step()), inputs, OVER, kind)[1]
    assert (readout.kind, readout.exactness) == (kind, "majorised" if kind == "membrane_max" else "exact")
    # v += 0.1 (i - v) with the current before its decay by 0.2: the first answer to a unit current is 0.1.
    assert readout.response.matrix[0, 0] == pytest.approx(0.1)
    assert readout.response.matrix[1, 0] == pytest.approx(0.09 + 0.1 * 0.8)


def test_the_readout_names_its_parameters(inputs):
    net = LinearCell()
    readout = inspect_network(net, inputs, plain_forward).readout
    assert (readout.module, readout.weight_name, readout.bias_name, readout.fused) == (net.out, "input_weights", None, True)
    assert (readout.in_features, readout.out_features) == (HIDDEN, CLASSES)
    assert readout.weight is net.out.input_weights
    assert readout.bias is None
    bare = inspect_network(snn_without_bias(), inputs, over_time(3)).readout
    assert (bare.weight_name, bare.bias_name, bare.bias, bare.fused) == ("weight", None, None, False)


def snn_without_bias():
    return nn.Sequential(
        nn.Linear(INPUTS, HIDDEN),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(HIDDEN, CLASSES, bias=False),
        snn.Leaky(beta=0.9, init_hidden=True, output=True, reset_mechanism="none"),
    )


@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (cells, "steps"),
        (multi_step, "time_first"),
        (lifted_linear, "steps"),
        (LinearLeaky, "folded"),
    ],
)
def test_layouts(make, layout, inputs):
    assert inspect_network(make(), inputs, OVER).layout == layout


@pytest.mark.parametrize("batch", [STEPS, BATCH], ids=["as many samples as steps", "more"])
def test_layouts_where_time_comes_second(batch, inputs):
    few = inputs[:batch]
    assert inspect_network(BatchMajor(), few, plain_forward).layout == "batch_first"
    assert inspect_network(BatchMajor(fold=True), few, plain_forward).layout == "folded_batch_first"


def test_a_forgotten_time_loop_around_cells(inputs):
    from snn_recon_plugin.errors import NetworkError

    with pytest.raises(NetworkError, match="a single time step") as error:
        inspect_network(cells(), inputs, plain_forward)
    assert "over_time(25)" in error.value.fix


def test_modules_of_both_libraries(inputs):
    from snn_recon_plugin.errors import UnsupportedModuleError

    net = nn.Sequential(nn.Linear(INPUTS, CLASSES), snn.Leaky(beta=0.9), norse.LICell())
    with pytest.raises(UnsupportedModuleError, match="modules of norse and snntorch in one net"):
        inspect_network(net, inputs, plain_forward)


def test_a_monitor_of_snntorch_sees_the_user_alone(inputs):
    from snntorch.functional import probe

    net = loud(snn_without_bias())
    monitor = probe.OutputMonitor(net, instance=snn.Leaky)
    monitor.disable()
    inspected(net, inputs, over_time(3))
    monitor.enable()
    over_time(3)(net, inputs)
    assert len(monitor["1"]) == 3
    monitor.remove_hooks()


class Mixed(nn.Module):
    """A readout of another precision than the hidden layer."""

    def __init__(self, dtype):
        super().__init__()
        self.fc1, self.l1 = nn.Linear(INPUTS, HIDDEN), snn.Leaky(beta=0.9)
        self.fc2, self.l2, self.dtype = nn.Linear(HIDDEN, CLASSES).to(dtype), snn.Leaky(beta=0.9, reset_mechanism="none"), dtype

    def forward(self, x):
        m1, m2, record = self.l1.reset_mem(), self.l2.reset_mem(), []
        for _ in range(STEPS):
            z, m1 = self.l1(3 * self.fc1(x), m1)
            _, m2 = self.l2(self.fc2(z.to(self.dtype)), m2)
            record.append(m2)
        return torch.stack(record)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 8 * 2**-7), (torch.float16, 8 * 2**-10), (torch.float32, 1e-4), (torch.float64, 1e-4)]
)
def test_precisions(dtype, tolerance, inputs):
    net = Mixed(dtype)
    net_map, readout = inspected(net, inputs, plain_forward)
    assert (readout.kind, readout.exactness) == ("membrane_mean", "exact")
    assert net_map.readout.tolerance == tolerance
    with preserved(net, seed=0):
        captured = capture(net, [(inputs, torch.arange(BATCH) % CLASSES)], net_map, readout, plain_forward)
        linear = captured.features @ net.fc2.weight.float().T + readout.bias_gain * net.fc2.bias.float()
    assert float((linear - captured.scores).abs().max()) <= tolerance * max(1.0, float(linear.abs().max()))


@pytest.mark.parametrize("hidden", ["SLSTM", "DeltaLeaky"])
def test_neurons_that_read_nothing_out(hidden, inputs):
    from snn_recon_plugin.errors import UnsupportedModuleError

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, CLASSES)
            self.l1 = snn.SLSTM(HIDDEN, HIDDEN, threshold=0.1) if hidden == "SLSTM" else snn.DeltaLeaky(beta=0.9, init_hidden=True)
            self.l2 = snn.RLeaky(beta=0.9, linear_features=CLASSES)

        def forward(self, x):
            syn, mem = self.l1.reset_mem() if hidden == "SLSTM" else (None, None)
            (spk, mem2), record = self.l2.reset_mem(), []
            for _ in range(STEPS):
                if hidden == "SLSTM":
                    z, syn, mem = self.l1(self.fc1(x), syn, mem)
                else:
                    z = self.l1(self.fc1(x))[0]
                spk, mem2 = self.l2(self.fc2(z), spk, mem2)
                record.append(spk)
            return torch.stack(record)

    net = Net()
    net_map = inspect_network(net, inputs, plain_forward)
    assert [layer.neuron_name for layer in net_map.hidden] == ["l1"]
    with pytest.raises(UnsupportedModuleError, match="RLeaky") as error:
        resolve_readout(net, net_map, inputs, plain_forward, allow=ALL)
    assert "Leaky" in error.value.needed
