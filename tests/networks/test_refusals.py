"""Nets that can't be read or written: each refused before anything is done to it, with what to change."""

import itertools

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from snntorch.functional.quant import state_quant
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm
from torch.nn.utils import weight_norm as older_weight_norm

from snn_recon_plugin.errors import CaptureError, NetworkError, UnsupportedModuleError
from snn_recon_plugin.networks import (
    ActivityRecorder,
    capture,
    check_writable,
    inspect_network,
    over_time,
    plain_forward,
    quiet,
    resolve_readout,
)

from ..helpers import as_batches

STEPS = 6


def read(net, inputs, **options):
    """What every reconstruction does first."""
    net_map = inspect_network(net, inputs, plain_forward, **options)
    check_writable(net, net_map)
    return net_map, resolve_readout(net, net_map, inputs, plain_forward)


class Ends(nn.Module):
    """A linear layer, and an output module that hands its states on from step to step."""

    def __init__(self, hidden, output):
        super().__init__()
        self.fc1, self.l1 = nn.Linear(10, 16), hidden
        self.fc2, self.out = nn.Linear(16, 3), output
        with torch.no_grad():
            self.fc1.weight.mul_(30)

    def forward(self, x):
        hidden = output = None
        record = []
        for _ in range(STEPS):
            z, hidden = step(self.l1, self.fc1(x), hidden)
            value, output = step(self.out, self.fc2(z), output)
            record.append(value)
        return torch.stack(record)


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


@pytest.mark.parametrize(
    ("hidden", "output", "message", "fix"),
    [
        (lambda: snn.Synaptic(alpha=0.8, beta=0.9), lambda: snn.SLSTM(3, 3, threshold=0.1), "class SLSTM", "use one of those"),
        (norse.LIFCell, lambda: norse.CobaLIFCell(3, 3), r"ends in 'out' \(CobaLIFCell\)", "norse.LICell"),
        (norse.LIFCell, lambda: norse.LIFRecurrentCell(3, 3), r"ends in 'out' \(LIFRecurrentCell\)", "norse.LICell"),
        (norse.LIFCell, lambda: nn.LSTMCell(3, 3), r"tensor \[6, 8, 3\] for 8 samples, whose values are none of", "scores"),
    ],
    ids=["SLSTM", "Coba", "recurrent", "LSTM"],
)
def test_output_neurons_that_nothing_can_be_read_through(inputs, count_hooks, hidden, output, message, fix):
    net = Ends(hidden(), output())
    with pytest.raises(NetworkError, match=message) as error:
        read(net, inputs)
    assert fix in error.value.fix
    assert isinstance(error.value, UnsupportedModuleError) or "no LSTM" in error.value.needed
    assert count_hooks(net) == 0


@pytest.mark.parametrize("hidden", [lambda: norse.CobaLIFCell(16, 16), lambda: norse.LIFRecurrentCell(16, 16)])
def test_as_hidden_layers_they_are_fine(inputs, hidden):
    net_map, readout = read(Ends(hidden(), norse.LICell()), inputs)
    assert (net_map.readout.name, readout.kind, readout.exactness) == ("fc2", "membrane_mean", "exact")


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
def test_outputs_of_other_shapes(nets, inputs, returns, shape):
    with pytest.raises(NetworkError, match=shape) as error:
        read(nets.Mlp(returns=returns), inputs)
    assert "[6, batch, 3] or [batch, 6, 3] over time, or [batch, 3]" in error.value.needed


class Loop(nn.Module):
    """A loop over steps whose readout or neurons are called another number of times."""

    def __init__(self, hidden, outputs, last):
        super().__init__()
        self.fc1, self.fc2, self.last = nn.Linear(10, 3), nn.Linear(3, 3), last
        self.hidden, self.outputs = nn.ModuleList(hidden), nn.ModuleList(outputs)

    def forward(self, x):
        one = two = torch.zeros(len(x), 3)
        record = []
        for number in range(STEPS):
            spikes, one = self.hidden[number % len(self.hidden)](self.fc1(x), one)
            _, two = self.outputs[number % len(self.outputs)](self.fc2(spikes), two)
            record.append(two)
        if self.last:
            self.fc2(spikes)
        return torch.stack(record)


@pytest.mark.parametrize(
    ("outputs", "last", "fix"),
    [
        (STEPS, False, "use one neuron for all steps of a layer, not one for each step"),
        (1, True, "call the readout only inside the time loop, once at each step"),
        (0, False, "give every layer a neuron of its own"),
    ],
    ids=["a neuron for each step", "the readout once more", "one neuron for both layers"],
)
def test_calls_of_the_output_neuron_that_are_not_one_a_step(inputs, outputs, last, fix):
    hidden = [snn.Leaky(beta=0.9)]
    net = Loop(hidden, [snn.Leaky(beta=0.9) for _ in range(outputs)] or hidden, last)
    with pytest.raises(CaptureError, match=r"in a forward pass of \d+ steps") as error:
        read(net, inputs)
    assert fix in error.value.fix


class Early(nn.Module):
    """Returns before its last layers where the input is 0."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        if x.any():
            return self.body(x)
        self.body.fc1(x)
        return x.new_zeros(STEPS, len(x), 3)


def test_a_forward_that_does_not_reach_the_readout(nets, inputs, count_hooks):
    net = Early(nets.Mlp(returns=lambda spk, mem: mem))
    with pytest.raises(CaptureError, match=r"never calls the readout 'body\.fc3'") as error:
        read(net, 0 * inputs, readout_layer="body.fc3")
    assert "it called 'body.fc1' (Linear)" in error.value.needed
    net_map, readout = read(net, inputs)
    with pytest.raises(CaptureError, match=r"a forward pass on batch 2 that calls none of 'body\.lif1'"), quiet(net, seed=0):
        capture(
            net,
            as_batches([(inputs, torch.zeros(8)), (0 * inputs, torch.zeros(8))]),
            ActivityRecorder(net_map, readout),
            plain_forward,
        )
    assert count_hooks(net) == 0


COMPUTED = {
    "the parametrization SpectralNorm": parametrizations.spectral_norm,
    "spectral_norm": spectral_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 5),
    "weight_norm": older_weight_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("how", COMPUTED)
def test_readouts_whose_weight_is_computed(nets, inputs, snapshot, assert_same, how):
    net = nets.Mlp()
    net.fc3 = COMPUTED[how](net.fc3)
    net(inputs)
    before = snapshot(net)
    with pytest.raises(UnsupportedModuleError, match=f"'fc3.weight' is computed by {how}") as error:
        read(net, inputs)
    assert "remove" in error.value.fix
    assert_same(before, snapshot(net))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("how", [*COMPUTED, "invertible"])
def test_hidden_layers_whose_weight_is_computed_are_read(nets, inputs, how):
    net = nets.Mlp()
    net.fc2 = (COMPUTED | {"invertible": parametrizations.weight_norm})[how](net.fc2)
    net_map, readout = read(net, inputs)
    assert [layer.name for layer in net_map.hidden] == ["fc1", "fc2"]
    assert readout.exactness == "exact"


def test_quantized_layers(inputs):
    class Linear(nn.Linear):
        """Stands for one that torch.ao.quantization made, which not every machine has an engine for."""

    Linear.__module__ = "torch.ao.nn.quantized.dynamic.modules.linear"
    net = nn.Sequential(nn.Linear(10, 4), snn.Leaky(beta=0.9, init_hidden=True), Linear(4, 3))
    with pytest.raises(UnsupportedModuleError, match=r"a quantized module at '2' \(Linear\)") as error:
        read(net, inputs)
    assert error.value.fix == "reconstruct first and quantize afterwards"
    assert torch.ao.nn.quantized.dynamic.Linear.__module__ == Linear.__module__


def test_both_libraries_in_one_net(inputs):
    net = nn.Sequential(nn.Linear(10, 4), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(4, 3), norse.LICell())
    with pytest.raises(UnsupportedModuleError, match="modules of norse and snntorch in one net") as error:
        read(net, inputs)
    assert "of one library, snnTorch or Norse" in error.value.fix


# -- the true reason, by the layer's name --------------------------------------------------------------------------------


class Rounded(nn.Linear):
    """Weights of a few bits."""

    def forward(self, x):
        size = self.weight.abs().max() / 7
        return F.linear(x, torch.round(self.weight / size) * size, self.bias)


class Signs(nn.Linear):
    """Binarised weights."""

    def forward(self, x):
        return F.linear(x, self.weight.sign(), self.bias)


def brevitas(*sizes):
    """Stands for a layer of Brevitas, which is not installed."""
    return type("QuantLinear", (Rounded,), {"__module__": "brevitas.nn.quant_linear"})(*sizes)


class Noisy(nn.Module):
    """Noise that no seed repeats."""

    numbers = itertools.count()

    def forward(self, x):
        return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(next(self.numbers)))


def quantised_state(**options):
    return snn.Leaky(beta=0.9, state_quant=state_quant(num_bits=4), **options)


@pytest.mark.parametrize(("make", "kind"), [(Rounded, "Rounded"), (Signs, "Signs"), (brevitas, r"brevitas\.QuantLinear")])
def test_readouts_that_are_quantised_or_binarised(nets, inputs, snapshot, assert_same, make, kind):
    net = nets.Mlp()
    net.fc3 = make(16, 3)
    before = snapshot(net)
    with pytest.raises(
        UnsupportedModuleError, match=rf"the readout 'fc3' \(.*{kind}\), whose output is not input @ weight"
    ) as error:
        read(net, inputs)
    assert "quantised or binarised" in error.value.found
    assert "make net.fc3 an nn.Linear" in error.value.fix
    assert_same(before, snapshot(net))


@pytest.mark.parametrize("make", [Rounded, Signs, brevitas])
def test_hidden_layers_may_be_quantised(nets, inputs, make):
    net = nets.Mlp()
    net.fc2 = make(16, 16)
    assert read(net, inputs)[1].exactness == "exact"


def test_a_subclass_that_computes_what_a_linear_does(nets, inputs):
    net = nets.Mlp()
    net.fc3 = type("Named", (nn.Linear,), {})(16, 3)
    assert read(net, inputs)[1].exactness == "exact"


def test_a_hook_that_changes_the_readouts_output(nets, inputs):
    net = nets.Mlp()
    net.fc3.register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(UnsupportedModuleError, match=r"off by 100 % of the largest value.*its output is changed"):
        read(net, inputs)


def test_noise_that_no_seed_repeats_is_placed(inputs):
    net = nn.Sequential(nn.Linear(10, 4), Noisy(), snn.Leaky(beta=0.9), nn.Linear(4, 3))
    with pytest.raises(NetworkError, match=r"other values each time .*, first in what enters '2'") as error:
        inspect_network(net, inputs, lambda net, x: net[3](net[2](net[1](net[0](x)))[0]))
    assert "torch's, NumPy's or Python's global generator" in error.value.fix


@pytest.mark.parametrize("returns", [lambda spk, mem: mem / 0, lambda spk, mem: (0 * spk).mean(0).log()], ids=["NaN", "-inf"])
def test_outputs_that_are_not_finite_are_no_noise(nets, inputs, returns):
    with pytest.raises(NetworkError, match="NaN or infinite values, first in its output"):
        read(nets.Mlp(returns=returns), inputs)


def test_currents_that_are_not_finite_are_placed(nets, inputs):
    class Divided(nets.Mlp):
        def forward(self, x):
            return super().forward(x / 0)

    with pytest.raises(NetworkError, match="NaN or infinite values, first in what enters 'fc1'"):
        read(Divided(), inputs)


def test_noise_before_the_first_layer_is_placed(nets, inputs):
    class Between(nets.Mlp):
        def forward(self, x):
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(next(Noisy.numbers)))
            return super().forward(x + noise)

    with pytest.raises(NetworkError, match="first in what enters 'fc1'"):
        read(Between(), inputs)


def test_noise_from_the_global_generator_is_read(nets, inputs):
    class Dropped(nets.Mlp):
        def forward(self, x):
            return super().forward(F.dropout(x, 0.5, training=True))

    assert read(Dropped(), inputs)[1].exactness == "exact"


@pytest.mark.parametrize("reset", ["none", "subtract"])
def test_output_membranes_that_are_quantised(nets, inputs, reset):
    with pytest.raises(UnsupportedModuleError, match=r"'lif3' \(Leaky\), which quantises its membrane"):
        read(nets.Mlp(output=quantised_state(reset_mechanism=reset)), inputs)
    assert read(nets.Mlp(hidden=quantised_state), inputs)[1].exactness == "exact"


@pytest.mark.parametrize(
    "output",
    [
        lambda: snn.RLeaky(beta=0.9, linear_features=3),
        lambda: snn.RLeaky(beta=0.9, all_to_all=False, reset_mechanism="none"),
        lambda: snn.RSynaptic(alpha=0.8, beta=0.9, linear_features=3),
    ],
    ids=["RLeaky", "RLeaky one to one", "RSynaptic"],
)
def test_recurrent_output_neurons(inputs, output):
    with pytest.raises(UnsupportedModuleError, match=r"the output neuron 'out' \(R.*\), which feeds its spikes back") as error:
        read(Ends(snn.Synaptic(alpha=0.8, beta=0.9), output()), inputs)
    assert "net.out = snn.Leaky(beta=0.9, reset_mechanism='none')" in error.value.fix


@pytest.mark.parametrize("container", [list, tuple, lambda neurons: dict(enumerate(neurons)), lambda neurons: [[*neurons]]])
@pytest.mark.parametrize("registered", [0, 1])
def test_neurons_in_a_plain_container(inputs, container, registered):
    net = nn.Sequential(nn.Linear(10, 4), *[snn.Leaky(beta=0.9)] * registered, nn.Linear(4, 3))
    net.lifs = container([snn.Leaky(beta=0.9), snn.Leaky(beta=0.9)])
    with pytest.raises(UnsupportedModuleError, match=r"2 neurons \(Leaky\) in self\.lifs of Sequential, a plain") as error:
        read(net, inputs)
    assert "self.lifs = nn.Module" in error.value.fix


def test_a_plain_list_of_neurons_that_the_net_knows(nets, inputs):
    net = nets.Mlp()
    net.lifs = [net.lif1, net.lif2]
    assert read(net, inputs)[1].exactness == "exact"


@pytest.mark.parametrize("output", [None, snn.Leaky(beta=0.9), norse.LICell()], ids=["none", "subtract", "LICell"])
def test_states_that_are_never_handed_on(nets, inputs, output):
    class Forgetful(nn.Module):
        def __init__(self):
            super().__init__()
            hidden = snn.Leaky(beta=0.9) if output is None or isinstance(output, snn.Leaky) else norse.LIFCell()
            self.fc1, self.lif1, self.fc2 = nn.Linear(10, 16), hidden, nn.Linear(16, 3)
            self.lif2 = output or nets.readout_neuron()

        def forward(self, x):
            return torch.stack(
                [step(self.lif2, self.fc2(step(self.lif1, 9 * self.fc1(x), None)[0]), None)[1][0] for _ in range(STEPS)]
            )

    with pytest.raises(NetworkError, match="the state of the output neuron 'lif2' is not handed from step to step") as error:
        read(Forgetful(), inputs)
    assert "before the loop" in error.value.fix


def test_a_net_that_takes_its_states_as_arguments(nets, inputs):
    class Stateful(nets.Mlp):
        def forward(self, x, mem1, mem2, scale=1.0):
            raise AssertionError("is not called")

    for forward in (plain_forward, over_time(5)):
        with pytest.raises(NetworkError, match="a forward of Stateful that also takes mem1, mem2") as error:
            inspect_network(Stateful(), inputs, forward)
        assert "calls net(x, mem1, mem2) at every step" in error.value.fix


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_statistics_of_a_normalisation_that_are_not_finite(inputs, name):
    net = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(4, 3))
    getattr(net[1], name)[2] = torch.nan
    with pytest.raises(NetworkError, match=rf"the buffer '1\.{name}' \(BatchNorm1d\) holds NaN") as error:
        inspect_network(net, inputs, over_time(5))
    assert "net[1].reset_running_stats()" in error.value.fix


def test_leaky_parallel_as_the_output(inputs):
    net = nn.Sequential(nn.Linear(10, 4), snn.LeakyParallel(4, 3))
    with pytest.raises(UnsupportedModuleError, match=r"ends in '1' \(LeakyParallel\)") as error:
        inspect_network(net, inputs, lambda net, x: net(x.expand(STEPS, *x.shape)))
    assert "as a hidden layer it may stay" in error.value.fix


def test_no_spiking_neuron_at_all(inputs):
    with pytest.raises(UnsupportedModuleError, match=r"no spiking neuron .* holds Linear, ReLU") as error:
        read(nn.Sequential(nn.Linear(10, 4), nn.ReLU(), nn.Linear(4, 3)), inputs)
    assert "snn_recon_plugin.convex.solve" in error.value.fix
