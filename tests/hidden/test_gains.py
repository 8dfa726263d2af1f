"""Gains of hidden layers: what is tried, how it is evaluated, and layers below the last, evaluated through those above."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn.utils import parametrizations

from snn_recon_plugin.errors import CaptureError, SilentLayerError
from snn_recon_plugin.hidden import gains
from snn_recon_plugin.hidden.drive import take_few
from snn_recon_plugin.hidden.gains import DrivenLayer, explain_fixed, make_driven_layer, scale_parameters
from snn_recon_plugin.hidden.hidden_task import HiddenTask, TemporaryReadout
from snn_recon_plugin.hidden.simulate import simulate_layer
from snn_recon_plugin.networks.calls.calls import CallRecorder
from snn_recon_plugin.networks.calls.forward import over_time, plain_forward
from snn_recon_plugin.networks.private.quiet import quiet
from snn_recon_plugin.networks.structure.inspect import inspect_network
from snn_recon_plugin.networks.structure.layers import HiddenLayer

from ..helpers import HIDDEN, STEPS, conv_net, divided, hidden_spikes, loop_net, parameters_of, sequential_net, train_data
from ..nets import Stack, Still, normalised_net
from .tasks import NETS, OVER, choose, make_task, negative, rates_of, repeated, stored, write

pytestmark = pytest.mark.usefixtures("two_rates")


def rate_of(net, gain, count=200):
    twin = loop_net()
    twin.load_state_dict(net.state_dict())
    return float(hidden_spikes(divided(twin, 1 / gain).fc1, train_data(count)[0]).mean())


# -- what is tried --------------------------------------------------------------------------------------------------------
def test_gains_are_those_of_the_rates():
    net = divided(loop_net())
    (decision,), _ = choose(net, count=64)
    own, *tried = decision.heldout_loss
    assert own == 1.0
    for gain, wanted in zip(tried, gains.RATES, strict=True):
        # The bisection ends within 2^(22/4096) of the gain, from above.
        assert rate_of(net, gain * 1.005, 64) >= wanted - 0.003
        assert rate_of(net, gain / 1.01, 64) <= wanted + 0.003


def test_a_silent_layer_is_revived_and_then_keeps_its_weights():
    net = divided(loop_net())
    (decision,), _ = choose(net)
    assert decision.name == "fc1"
    assert rate_of(net, 1.0) == 0.0
    assert 0.01 < rate_of(net, decision.gain) < 0.4
    # Spikes that never come are worth nothing; the gain chosen is worth as much as the best, up to a tie.
    assert decision.heldout_loss[1.0] == math.inf
    assert decision.heldout_loss[decision.gain] <= 1.03 * min(decision.heldout_loss.values())
    assert decision.heldout_loss[decision.gain] < 0.7 * math.log(10)
    assert decision.reason == ""
    assert choose(divided(net, 1 / decision.gain))[0][0].gain == 1.0


def test_a_layer_that_always_spikes_is_brought_down():
    net = divided(loop_net(), 1 / 50)
    assert rate_of(net, 1.0) > 0.4
    (decision,), _ = choose(net)
    assert decision.gain < 0.2
    assert rate_of(net, decision.gain) < 0.3


@pytest.mark.parametrize(
    ("losses", "nothing", "expected"),
    [
        ({1.0: 0.5, 2.0: 0.5, 3.0: 0.5}, 1.0, 1.0),
        ({1.0: 0.514, 2.0: 0.5, 3.0: 0.6}, 1.0, 1.0),
        ({1.0: 0.514, 2.0: 0.5, 3.0: 0.6}, 0.9, 2.0),  # 0.014 is more than 3 % of what the best gain takes from a bias alone
        ({1.0: 0.5, 2.0: 0.5, 3.0: 0.6}, 0.4, 1.0),
        ({1.0: 0.52, 2.0: 0.5, 3.0: 0.6}, 1.0, 2.0),
        ({1.0: 0.9, 2.0: 0.5, 3.0: 0.51}, 1.0, 2.0),
        ({1.0: 0.9, 2.0: 0.51, 3.0: 0.5}, 1.0, 2.0),
        ({1.0: 0.9, 2.0: 0.51, 3.0: 0.5, 4.0: 0.505}, 1.0, 2.0),
        ({1.0: 0.9, 2.0: 0.6, 3.0: 0.5, 4.0: 0.505}, 1.0, 4.0),
        ({1.0: math.inf, 2.0: 0.5, 4.0: 0.5}, 1.0, 4.0),
        ({1.0: math.inf, 2.0: math.inf, 4.0: math.inf}, 1.0, 1.0),
    ],
)
def test_ties_go_to_the_own_weights_and_then_to_the_middle_rate(losses, nothing, expected):
    rates = {1.0: 0.0, 2.0: 0.12, 3.0: 0.06, 4.0: 0.25}
    layer = HiddenLayer("fc1", nn.Linear(2, 2), "lif1", snn.Leaky(beta=0.9))
    driven = SimpleNamespace(layer=layer, rate=rates.get, values=lambda gain: {"gain": gain})
    decision, values = gains.settle_gain(driven, losses, nothing)
    assert decision.gain == values["gain"] == expected


def test_a_layer_without_positive_currents():
    net = loop_net()
    negative(net.fc1)
    with pytest.raises(SilentLayerError, match="'fc1' receives no positive current"):
        choose(net)


def test_rates_that_no_gain_reaches_are_left_out():
    net = loop_net()
    with torch.no_grad():
        net.fc1.weight[8:] = -net.fc1.weight[8:].abs()
        net.fc1.bias[8:] = -1.0
    (decision,), _ = choose(net)
    assert 1 < len(decision.heldout_loss) < 1 + len(gains.RATES)
    assert max(decision.heldout_loss) < 2.0**12


def test_a_net_without_hidden_layers():
    net = nn.Sequential(nn.Linear(64, 10), snn.Leaky(beta=0.9, init_hidden=True, output=True, reset_mechanism="none"))
    assert choose(net, OVER)[0] == []


def test_a_gain_behind_a_norm_is_of_the_norm():
    net = normalised_net()
    for parameter in net[0].parameters():
        parameter.data.div_(20)
    (decision,), net_map = choose(net, OVER)
    (layer,) = net_map.hidden
    assert decision.gain > 1.0
    assert torch.allclose(layer.norm.weight, torch.full((HIDDEN,), decision.gain))
    assert torch.equal(layer.synapse.weight, net[0].weight)


def test_a_layer_normalised_by_what_may_not_be_written_keeps_its_weights():
    net = normalised_net()
    net[1].bias.data.fill_(0.02)
    net[1].weight.requires_grad_(False)
    for parameter in net[0].parameters():
        parameter.data.div_(20)
    (decision,), _ = choose(net, OVER)
    assert (decision.gain, decision.heldout_loss) == (1.0, {})
    assert decision.reason == "frozen: requires_grad=False of its weight"


# -- how it is evaluated --------------------------------------------------------------------------------------------------
def test_the_seed_decides_the_split_and_neither_the_state_of_torch_nor_batches_do():
    results = []
    for stir, options in ((0, {}), (5, {}), (0, {"size": 70}), (0, {"seed": 1})):
        net = divided(loop_net())
        torch.manual_seed(stir)
        results.append(choose(net, **options)[0][0])
    assert results[0] == results[1]
    assert results[2].gain == pytest.approx(results[0].gain, rel=1e-6)
    assert results[3].heldout_loss != results[0].heldout_loss


def test_gains_that_tie_on_few_samples_are_told_apart_on_all(monkeypatch):
    """The second comparison is among the tied alone, and decides; the silent own weights are no part of it."""
    monkeypatch.setattr(gains, "TIE_LOSS_RATIO", 1e9)
    (on_all,), _ = choose(divided(loop_net()), count=300)
    monkeypatch.setattr(gains, "FIRST_SAMPLES", 100)
    (found,), _ = choose(divided(loop_net()), count=300)
    assert len(found.heldout_loss) == 3
    assert found.heldout_loss == pytest.approx(on_all.heldout_loss, rel=1e-3)
    assert found.gain == min(found.heldout_loss, key=found.heldout_loss.get)


# -- several layers -------------------------------------------------------------------------------------------------------
def test_three_silent_layers_are_revived_from_the_input_up_each_on_those_below():
    net = Stack((20.0, 40.0, 80.0))
    decisions, net_map = choose(net)
    assert [decision.name for decision in decisions] == [layer.name for layer in net_map.hidden]
    assert all(decision.gain > 1 for decision in decisions)
    assert all(0.005 < rate < 0.35 for rate in rates_of(net, net_map, decisions))
    assert decisions[-1].heldout_loss[decisions[-1].gain] < 0.8 * math.log(10)
    write(scale_parameters(net_map.hidden[0], decisions[0].gain))
    assert choose(net)[0][1].gain == pytest.approx(decisions[1].gain, rel=1e-6)


@pytest.mark.parametrize(("able", "wide"), [(False, False), (True, False), (True, True)])
def test_a_silent_layer_above_is_an_infinite_loss_unless_a_branch_leads_around_it(able, wide):
    """One neuron of it is able to spike, or none: too few for a gain."""
    net = Stack((20.0, 1.0), wide)
    negative(net.synapses[1])
    if able:
        net.synapses[1].bias.data[0] = 1e-3
    with quiet(net, seed=0):
        outcome, _ = gains.choose_gain(make_task(net, count=100), 0)
    assert len(outcome.heldout_loss) > 1
    assert math.isfinite(min(outcome.heldout_loss.values())) == wide


def test_scores_at_every_step():
    decisions, _ = choose(Stack(), kind="membrane_per_step", count=100)
    assert all(math.isfinite(min(decision.heldout_loss.values())) for decision in decisions)


# -- against rebuilt rows -------------------------------------------------------------------------------------------------
def compare(net, forward, change, count=300):
    """The outcome for a net's first layer against its own weight, changed."""
    with quiet(net, seed=0):
        task = make_task(net, forward, count)
        task = replace(task, samples=(torch.arange(count) % 5 > 0).nonzero()[:, 0])
        layer = task.net_map.hidden[0]
        (compared,) = simulate_layer(task, layer, [task.compared_samples[0]])
        return gains.choose_own(task, 0, compared, {(layer.synapse, "weight"): change(layer.synapse.weight.detach())})


@pytest.mark.parametrize("name", NETS)
def test_a_tie_keeps_the_own_weights_dead_rows_lose_and_rows_that_differ_beat_own_ones_all_alike(name):
    make, forward = NETS[name]
    for change in (torch.clone, torch.zeros_like):
        decision, values = compare(make(), forward, change)
        assert "no worse than selected candidates" in decision.reason
        assert (decision.gain == 1.0) == (values == {})
        assert decision.heldout_loss[1.0] < torch.inf
    net = make()
    weight = next(parameter for parameter in net.parameters() if parameter.dim() > 1)
    better = weight.detach().clone()
    weight.data[:] = weight.data[:1]
    assert compare(net, forward, lambda _: better) is None


# -- neurons with their own weights, or that can't be simulated alone, run in the net ---------------------------------------
def recurrent(**options):
    return Still(partial(snn.RLeaky, beta=0.9, linear_features=HIDDEN), 64, HIDDEN, 10, **options)


def parallel(**options):
    return nn.Sequential(snn.LeakyParallel(64, HIDDEN, beta=0.9, **options), nn.Linear(HIDDEN, 10))


def norse_net(make, cell=False):
    return norse.SequentialState(make(64, HIDDEN), nn.Linear(HIDDEN, 10), norse.LICell() if cell else norse.LI())


# Net, forward, and the parameters of the hidden layer that a gain multiplies.
DRIVEN = {
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
    make, forward, names = DRIVEN[name]
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


@pytest.mark.parametrize("name", DRIVEN)
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
