"""Layers with a gain: neurons with their own weights, or that can't be simulated alone, run in the net."""

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn.utils import prune

from snn_recon_plugin.errors import CaptureError, SilentLayerError
from snn_recon_plugin.hidden import HiddenTask, rescale, scale_parameters
from snn_recon_plugin.hidden.hidden_task import TemporaryReadout
from snn_recon_plugin.hidden.rescale import ScaledLayer, explain_fixed, make_scaled_layer
from snn_recon_plugin.networks import (
    HiddenLayer,
    inspect_network,
    library_of,
    neuron_currents,
    over_time,
    plain_forward,
    quiet,
    trying,
)

from ..helpers import HIDDEN, conv_net, loop_net, parameters_of, sequential_net, train_data
from .nets import choose, rates_of, stored, try_gains

pytestmark = pytest.mark.usefixtures("two_rates")

STEPS = 8
OVER = over_time(STEPS)


class Steps(nn.Module):
    """Shows a static input at every step to multi-step layers."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        value = x.expand(STEPS, *x.shape)
        for layer in self.layers:
            value = layer(value)
            value = value[0] if isinstance(value, tuple) else value
        return value


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, HIDDEN), snn.RLeaky(beta=0.9, linear_features=HIDDEN)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, 10), snn.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x):
        (spikes, mem1), mem2, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for _ in range(STEPS):
            spikes, mem1 = self.lif1(self.fc1(x), spikes, mem1)
            _, mem2 = self.lif2(self.fc2(spikes), mem2)
            membranes.append(mem2)
        return torch.stack(membranes)


def norse_net(layer, cell=False):
    return norse.SequentialState(layer, nn.Linear(HIDDEN, 10), norse.LICell() if cell else norse.LI())


# Name: net, forward, and the parameters of the hidden layer that a gain multiplies.
NETS = {
    "RLeaky": (Recurrent, plain_forward, ["fc1.weight", "fc1.bias"]),
    "LeakyParallel": (
        lambda: Steps(snn.LeakyParallel(64, HIDDEN, beta=0.9), nn.Linear(HIDDEN, 10)),
        plain_forward,
        ["layers.0.rnn.weight_ih_l0", "layers.0.rnn.bias_ih_l0", "layers.0.rnn.bias_hh_l0"],
    ),
    "LeakyParallel without a bias": (
        lambda: Steps(snn.LeakyParallel(64, HIDDEN, beta=0.9, bias=False), nn.Linear(HIDDEN, 10)),
        plain_forward,
        ["layers.0.rnn.weight_ih_l0"],
    ),
    "LIFRecurrent": (lambda: norse_net(norse.LIFRecurrent(64, HIDDEN)), OVER, ["0.input_weights"]),
    "LSNNRecurrent": (lambda: norse_net(norse.LSNNRecurrent(64, HIDDEN)), OVER, ["0.input_weights"]),
    "LIFRecurrentCell": (lambda: norse_net(norse.LIFRecurrentCell(64, HIDDEN), cell=True), OVER, ["0.input_weights"]),
    "LSNNRecurrentCell": (lambda: norse_net(norse.LSNNRecurrentCell(64, HIDDEN), cell=True), OVER, ["0.input_weights"]),
}
every_net = pytest.mark.parametrize("name", NETS)


def built(name):
    make, forward, names = NETS[name]
    torch.manual_seed(0)
    return make(), forward, names


def bare_task(net, inputs, forward):
    """A task whose filters take one step each, so that features are the spikes themselves."""
    every_step = TemporaryReadout(torch.eye(STEPS), torch.ones(STEPS))
    return HiddenTask(net, stored(inputs), None, None, None, forward, every_step, None)


def spikes_of(scaled, gain):
    """Spikes [T, n, *] of a layer with a gain."""
    found = scaled.emit(gain)
    assert found.steps == STEPS
    return found.features.reshape(-1, STEPS, *found.features.shape[1:]).movedim(1, 0)


def hidden_layer(net, forward, number=0):
    return inspect_network(net, train_data(20)[0], forward).hidden[number]


def divided(net, names, by):
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name in names:
                parameter.div_(by)
    return net


def written(net, layer, gain):
    with torch.no_grad():
        for (module, name), value in scale_parameters(layer, gain).items():
            getattr(module, name).copy_(value)


def emitted(net, forward, layer, inputs):
    """Spikes of the layer's neuron, recorded by a hook of this test's own."""
    outputs = []
    handle = layer.neuron.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    with torch.no_grad():
        forward(net, inputs)
    handle.remove()
    spikes = [output[0] if isinstance(output, tuple) else output for output in outputs]
    return spikes[0] if len(spikes) == 1 else torch.stack(spikes)


@every_net
def test_what_a_gain_multiplies(name):
    net, forward, expected = built(name)
    layer = hidden_layer(net, forward)
    values = scale_parameters(layer, 3.0)
    paths = {id(parameter): path for path, parameter in net.named_parameters()}
    assert [paths[id(getattr(module, part))] for module, part in values] == expected
    for (module, part), value in values.items():
        assert torch.equal(value, 3.0 * getattr(module, part))
    assert explain_fixed(layer) == ""


@every_net
def test_what_is_tried_is_what_the_written_net_does(name):
    net, forward, _ = built(name)
    inputs = train_data(150)[0]
    with quiet(net, seed=0):
        layer = hidden_layer(net, forward)
        trial = make_scaled_layer(bare_task(net, inputs, forward), layer, len(inputs))
        tried = {gain: spikes_of(trial, gain) for gain in (1.0, 3.0)}
        rate = trial.rate(3.0)
    assert trial.currents is None
    assert torch.equal(tried[1.0], emitted(net, forward, layer, inputs))
    written(net, layer, 3.0)
    own = emitted(net, forward, layer, inputs)
    assert own.shape == (STEPS, 150, HIDDEN)
    assert torch.equal(tried[3.0], own)
    assert not torch.equal(tried[3.0], tried[1.0])
    assert rate == pytest.approx(float(own[:, :100].mean()))  # the batches that hold the first 64 samples


@every_net
def test_a_silent_layer_is_revived(name):
    net, forward, names = built(name)
    divided(net, names, 1000.0)
    (decision,), net_map = choose(net, forward)
    assert rates_of(net, net_map, forward=forward)[0] < 0.001
    assert decision.gain > 10
    assert decision.reason == ""
    written(net, net_map.hidden[0], decision.gain)
    assert 0.005 < float(emitted(net, forward, net_map.hidden[0], train_data(200)[0]).mean()) < 0.35


@pytest.mark.usefixtures("one_rate")
@every_net
def test_trying_changes_nothing(name):
    net, forward, _ = built(name)
    before = parameters_of(net)
    try_gains(net, forward, count=100)
    assert parameters_of(net) == before


@pytest.mark.parametrize(("make", "forward"), [(loop_net, plain_forward), (sequential_net, OVER), (conv_net, plain_forward)])
def test_alone_and_in_the_net_agree(make, forward):
    """Both trials give the same spikes if a neuron can be simulated alone."""
    net, inputs = make(), train_data(150)[0]
    with quiet(net, seed=0):
        layer, task = hidden_layer(net, forward), bare_task(net, inputs, forward)
        alone, within = make_scaled_layer(task, layer, len(inputs)), ScaledLayer(task, layer, task.batches)
        assert alone.currents is not None
        for gain in (0.5, 1.0, 4.0):
            mismatched = (spikes_of(alone, gain).flatten(2) != spikes_of(within, gain)).float().mean()
            assert float(mismatched) < 1e-4  # a current times a gain is rounded elsewhere than a weight times a gain
        assert alone.confirms(4.0)
        assert within.confirms(4.0)


@pytest.mark.parametrize("encoding", ["rate", "direct"])
def test_currents_that_would_fill_the_memory_are_not_kept(encoding, monkeypatch):
    """The layer runs in the net instead, to the same spikes.  Currents that are held still take no memory."""
    net, inputs, forward = sequential_net(), train_data(150)[0], over_time(STEPS, encoding)
    with quiet(net, seed=0):
        task, layer = bare_task(net, inputs, forward), hidden_layer(net, forward)
        kept = make_scaled_layer(task, layer, len(inputs))
        monkeypatch.setattr(rescale, "_CURRENT_BYTES", 2 * 4 * 150 * HIDDEN)  # two of eight steps
        bounded = make_scaled_layer(task, layer, len(inputs))
        assert kept.currents is not None
        assert (bounded.currents is None) == (encoding == "rate")
        assert float((spikes_of(bounded, 4.0) != spikes_of(kept, 4.0)).float().mean()) < 1e-4


def test_a_recurrent_net_without_any_spike_at_any_gain():
    net, forward, _ = built("LIFRecurrent")
    with torch.no_grad():
        net[0].input_weights.abs_().neg_()
    with pytest.raises(SilentLayerError, match="'0' does not spike at any gain"):
        choose(net, forward)


def test_layers_are_tried_on_the_gains_below_them():
    torch.manual_seed(0)
    net = norse.SequentialState(
        norse.LIFRecurrentCell(64, HIDDEN), norse.LSNNRecurrentCell(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 10), norse.LICell()
    )
    divided(net, ["0.input_weights"], 100.0)
    decisions, net_map = choose(net, OVER)
    assert decisions[0].gain > 1
    assert min(rates_of(net, net_map, decisions, OVER)) > 0.005


def test_a_parametrized_layer_is_scaled_through_its_parametrization():
    net = loop_net()
    with torch.no_grad():
        for parameter in net.fc1.parameters():
            parameter.div_(20)
    torch.nn.utils.parametrizations.weight_norm(net.fc1)
    (decision,), net_map = choose(net, plain_forward)
    assert decision.gain > 1
    assert {name for _, name in scale_parameters(net_map.hidden[0], 2.0)} == {"weight", "bias"}
    currents = {}
    for gain in (1.0, 2.0):
        with quiet(net, seed=0), trying(scale_parameters(net_map.hidden[0], gain)):
            currents[gain] = neuron_currents(net, stored(train_data(20)[0]), net_map.hidden[0], plain_forward)
    assert torch.allclose(currents[2.0], 2 * currents[1.0], rtol=1e-5)


def test_a_layer_whose_weights_cannot_be_written_is_kept():
    net = loop_net()
    prune.l1_unstructured(net.fc1, "weight", amount=0.1)
    (decision,), _ = choose(net, plain_forward)
    assert decision.gain == 1.0
    assert decision.reason == "its weight is computed by pruning"


def test_a_neuron_called_unevenly():
    net, forward, _ = built("RLeaky")
    layer = hidden_layer(net, forward)

    def shorter(net, inputs):
        if len(inputs) == 50:
            net.lif1(net.fc1(inputs), *net.lif1.reset_mem())
        return forward(net, inputs)

    task = bare_task(net, train_data(150)[0], shorter)
    with quiet(net, seed=0), pytest.raises(CaptureError, match=f"'lif1' was called {STEPS + 1} times"):
        ScaledLayer(task, layer, task.batches).emit(1.0)


@pytest.mark.parametrize("still", [True, False])
def test_a_rate_is_the_mean_of_the_spikes(still):
    """Alone on currents held still, which are in memory once, and on others; spikes as in one run over all of them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, HIDDEN), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(HIDDEN, 10))
    current = 2 * torch.rand(70, HIDDEN)
    currents = current.expand(STEPS, -1, -1) if still else current * torch.rand(STEPS, 1, 1)
    layer = HiddenLayer("0", net[0], "1", net[1])
    scaled = ScaledLayer(bare_task(net, current[:1], OVER), layer, [], currents)
    for gain in (0.3, 1.0, 2.0):
        expected = library_of(net[1]).run(net[1], currents * gain).spikes
        assert torch.equal(spikes_of(scaled, gain), expected)
        assert scaled.rate(gain) == pytest.approx(float(expected[:, :64].mean()), abs=1e-7)
    assert scaled.rate(2.0) > scaled.rate(0.3)
