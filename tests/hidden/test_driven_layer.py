"""Layers with a gain: neurons with their own weights, or that can't be simulated alone, run in the net."""

from functools import partial

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn.utils import parametrizations

from snn_recon_plugin.errors import CaptureError
from snn_recon_plugin.hidden import gains
from snn_recon_plugin.hidden.drive import take_few
from snn_recon_plugin.hidden.gains import DrivenLayer, explain_fixed, make_driven_layer, scale_parameters
from snn_recon_plugin.hidden.hidden_task import HiddenTask, TemporaryReadout
from snn_recon_plugin.networks.calls.calls import CallRecorder
from snn_recon_plugin.networks.calls.forward import over_time, plain_forward
from snn_recon_plugin.networks.private.quiet import quiet
from snn_recon_plugin.networks.structure.inspect import inspect_network
from snn_recon_plugin.networks.structure.layers import HiddenLayer

from ..helpers import HIDDEN, STEPS, conv_net, divided, hidden_spikes, loop_net, parameters_of, sequential_net, train_data
from ..nets import Still
from .tasks import OVER, choose, repeated, stored, write

pytestmark = pytest.mark.usefixtures("two_rates")


def recurrent(**options):
    return Still(partial(snn.RLeaky, beta=0.9, linear_features=HIDDEN), 64, HIDDEN, 10, **options)


def parallel(**options):
    return nn.Sequential(snn.LeakyParallel(64, HIDDEN, beta=0.9, **options), nn.Linear(HIDDEN, 10))


def norse_net(make, cell=False):
    return norse.SequentialState(make(64, HIDDEN), nn.Linear(HIDDEN, 10), norse.LICell() if cell else norse.LI())


# Net, forward, and the parameters of the hidden layer that a gain multiplies.
NETS = {
    "RLeaky": (recurrent, plain_forward, ["fc1.weight", "fc1.bias"]),
    "RLeaky without a bias": (lambda: recurrent(bias=False), plain_forward, ["fc1.weight"]),
    "LeakyParallel": (parallel, repeated, ["0.rnn.weight_ih_l0", "0.rnn.bias_ih_l0", "0.rnn.bias_hh_l0"]),
    "LeakyParallel without a bias": (lambda: parallel(bias=False), repeated, ["0.rnn.weight_ih_l0"]),
    "LIFRecurrent": (lambda: norse_net(norse.LIFRecurrent), OVER, ["0.input_weights"]),
    "LSNNRecurrent": (lambda: norse_net(norse.LSNNRecurrent), OVER, ["0.input_weights"]),
    "LIFRecurrentCell": (lambda: norse_net(norse.LIFRecurrentCell, cell=True), OVER, ["0.input_weights"]),
    "LSNNRecurrentCell": (lambda: norse_net(norse.LSNNRecurrentCell, cell=True), OVER, ["0.input_weights"]),
}


def built(name):
    make, forward, names = NETS[name]
    torch.manual_seed(0)
    return make(), forward, names


def bare_task(net, inputs, forward):
    """A task whose filters take one step each, so that features are the spikes themselves."""
    every_step = TemporaryReadout(torch.eye(STEPS), torch.ones(STEPS))
    return HiddenTask(CallRecorder(net, stored(inputs), forward), None, None, None, every_step, None)


def spikes_of(driven, gain):
    """Spikes [T, n, *] of a layer with a gain, filtered by one step each."""
    found = driven.filtered(torch.eye(STEPS), gain)
    assert found.steps == STEPS
    return found.features.reshape(-1, STEPS, *found.features.shape[1:]).movedim(1, 0)


def hidden_layer(net, forward):
    return inspect_network(net, train_data(20)[0], forward).hidden[0]


def emitted(net, forward, layer, inputs):
    """Spikes of the layer's neuron, recorded by a hook of this test's own."""
    outputs = []
    handle = layer.neuron.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    with torch.no_grad():
        forward(net, inputs)
    handle.remove()
    spikes = [output[0] if isinstance(output, tuple) else output for output in outputs]
    return spikes[0] if len(spikes) == 1 else torch.stack(spikes)


@pytest.mark.parametrize("name", NETS)
def test_what_is_tried_is_what_the_written_net_does(name):
    net, forward, expected = built(name)
    inputs, before = train_data(150)[0], parameters_of(net)
    with quiet(net, seed=0):
        layer = hidden_layer(net, forward)
        trial = make_driven_layer(bare_task(net, inputs, forward), layer, len(inputs))
        tried = {gain: spikes_of(trial, gain) for gain in (1.0, 3.0)}
        rate = trial.rate(3.0)
    assert parameters_of(net) == before
    assert trial.currents is None
    assert explain_fixed(layer) == ""
    assert torch.equal(tried[1.0], emitted(net, forward, layer, inputs))
    values, paths = scale_parameters(layer, 3.0), {id(parameter): path for path, parameter in net.named_parameters()}
    assert [paths[id(getattr(*place))] for place in values] == expected
    assert all(torch.equal(value, 3.0 * getattr(*place)) and not value.requires_grad for place, value in values.items())
    write(values)
    own = emitted(net, forward, layer, inputs)
    assert own.shape == (STEPS, 150, HIDDEN)
    assert torch.equal(tried[3.0], own)
    assert not torch.equal(tried[3.0], tried[1.0])
    assert rate == pytest.approx(float(own[:, :100].mean()))  # the batches that hold the first 64 samples


@pytest.mark.parametrize(
    ("make", "forward", "still"),
    [(loop_net, plain_forward, True), (conv_net, plain_forward, True), (sequential_net, over_time(STEPS, "rate"), False)],
)
def test_alone_and_in_the_net_agree_which_bounds_the_memory(make, forward, still, monkeypatch):
    """Currents that would take much memory are not kept: the layer runs in the net instead.  Currents held still take none."""
    net, inputs = make(), train_data(150)[0]
    with quiet(net, seed=0):
        layer, task = hidden_layer(net, forward), bare_task(net, inputs, forward)
        alone, within = make_driven_layer(task, layer, len(inputs)), DrivenLayer(task.recorder, layer)
        monkeypatch.setattr(gains, "CURRENT_BYTES", 2 * 4 * 150 * HIDDEN)  # two of eight steps
        kept = [trial.currents is not None for trial in (alone, within, make_driven_layer(task, layer, len(inputs)))]
        assert kept == [True, False, still]
        for gain in (0.5, 1.0, 4.0):
            mismatched = (spikes_of(alone, gain).flatten(2) != spikes_of(within, gain)).float().mean()
            assert float(mismatched) < 1e-4  # a current times a gain is rounded elsewhere than a weight times a gain
        assert alone.follows(4.0)
        assert within.follows(4.0)


def test_a_parametrized_layer_is_scaled_through_its_parametrization():
    net = divided(loop_net())
    parametrizations.weight_norm(net.fc1)
    (decision,), net_map = choose(net)
    assert decision.gain > 1  # so the currents were confirmed to scale
    assert {name for _, name in scale_parameters(net_map.hidden[0], 2.0)} == {"weight", "bias"}


def test_a_neuron_alone_fires_as_in_the_net():
    net, images = loop_net(), train_data(100)[0]
    currents = net.fc1(images).detach().expand(STEPS, -1, -1)
    expected = hidden_spikes(net.fc1, images).mean().item()
    layer = HiddenLayer("fc1", net.fc1, "lif1", net.lif1)
    assert DrivenLayer(CallRecorder(net, [], plain_forward), layer, currents=currents).rate(1.0) == pytest.approx(expected)
    assert take_few(currents).shape == currents.shape  # they are not many
    assert take_few(torch.zeros(1).expand(10, 100, 10**5)).shape[1] == 16


def test_a_neuron_called_unevenly():
    net, forward, _ = built("RLeaky")

    def longer(net, inputs):
        if len(inputs) == 50:
            net.lif1(net.fc1(inputs), *net.lif1.reset_mem())
        return forward(net, inputs)

    task = bare_task(net, train_data(150)[0], longer)
    with quiet(net, seed=0), pytest.raises(CaptureError, match=f"'lif1' was called {STEPS + 1} times"):
        DrivenLayer(task.recorder, hidden_layer(net, forward)).filtered(torch.eye(STEPS), 1.0)
