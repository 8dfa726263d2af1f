"""Nets that can't be read or written: each refused before anything is done to it, with what to change."""

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm
from torch.nn.utils import weight_norm as older_weight_norm

from snn_recon_plugin.errors import CaptureError, NetworkError, UnsupportedModuleError
from snn_recon_plugin.networks import capture, check_writable, inspect_network, plain_forward, preserved, resolve_readout

STEPS = 6
ALL = ("exact", "majorised", "surrogate")


def read(net, inputs, **options):
    """What every reconstruction does first."""
    net_map = inspect_network(net, inputs, plain_forward, **options)
    check_writable(net, net_map)
    return net_map, resolve_readout(net, net_map, inputs, plain_forward, allow=ALL)


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
    returned = module(current, *(module.reset_mem() if state is None else state))
    return returned[0], returned[1:]


@pytest.mark.parametrize(
    ("hidden", "output", "message", "fix"),
    [
        (lambda: snn.Synaptic(alpha=0.8, beta=0.9), lambda: snn.SLSTM(3, 3, threshold=0.1), "class SLSTM", "use one of those"),
        (norse.LIFCell, lambda: norse.CobaLIFCell(3, 3), r"ends in 'out' \(CobaLIFCell\)", "norse.LICell"),
        (norse.LIFCell, lambda: norse.LIFRecurrentCell(3, 3), r"ends in 'out' \(LIFRecurrentCell\)", "norse.LICell"),
        (norse.LIFCell, lambda: nn.LSTMCell(3, 3), r"tensor \[6, 8, 3\], whose values are none of", "scores"),
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
    assert "[6, 8, 3] or [8, 6, 3] over time, or [8, 3]" in error.value.needed


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
    with pytest.raises(CaptureError, match=r"batch 2 called the readout 'body\.fc3' 0 times"), preserved(net, seed=0):
        capture(net, [(inputs, torch.zeros(8)), (0 * inputs, torch.zeros(8))], net_map, readout, plain_forward)
    assert count_hooks(net) == 0


COMPUTED = {
    "spectral_norm, which rescales": parametrizations.spectral_norm,
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
    assert "all from Norse's" in error.value.fix
