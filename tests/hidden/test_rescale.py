import math
from types import SimpleNamespace

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.errors import SilentLayerError
from snn_recon_plugin.hidden import (
    LayerGain,
    hidden_task,
    rescale,
    scale_parameters,
)
from snn_recon_plugin.hidden.hidden_task import CrossValidation
from snn_recon_plugin.networks import HiddenLayer, inspect_network, plain_forward, quiet

from ..helpers import (
    HIDDEN,
    Loop,
    conv_net,
    divided,
    hidden_spikes,
    lived_in,
    loop_net,
    parameters_of,
    train_data,
)
from .nets import choose, rates_of, try_gains


def rate_of(net, gain, count=200):
    twin = loop_net()
    twin.load_state_dict(net.state_dict())
    divided(twin, 1 / gain)
    return float(hidden_spikes(twin.fc1, train_data(count)[0]).mean())


# -- what is tried --------------------------------------------------------------------------------------------------------


def test_gains_are_those_of_the_rates():
    net = divided(loop_net())
    (decision,), _ = choose(net, count=64)
    tried = list(decision.heldout_loss)
    assert tried[0] == 1.0
    assert len(tried) == 1 + len(rescale.RATES)
    for gain, wanted in zip(tried[1:], rescale.RATES, strict=True):
        # The bisection ends within 2^(22/4096) of the gain, from above.
        assert rate_of(net, gain * 1.005, 64) >= wanted - 0.003
        assert rate_of(net, gain / 1.01, 64) <= wanted + 0.003


@pytest.mark.usefixtures("two_rates")
def test_gains_do_not_depend_on_the_scale_that_the_weights_came_with():
    # On 200 samples two rates tie by a hair, and rounding decides.
    (first,), _ = choose(divided(loop_net(), 20), count=300)
    (second,), _ = choose(divided(loop_net(), 80), count=300)
    assert second.gain == pytest.approx(4 * first.gain, rel=0.01)


def test_a_silent_layer_is_revived():
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


def test_a_layer_that_always_spikes_is_brought_down():
    net = divided(loop_net(), 1 / 50)
    assert rate_of(net, 1.0) > 0.4
    (decision,), _ = choose(net)
    assert decision.gain < 0.2
    assert rate_of(net, decision.gain) < 0.3


def test_a_healthy_layer_keeps_its_weights():
    net = divided(loop_net())
    (first,), _ = choose(net)
    divided(net, 1 / first.gain)
    (second,), _ = choose(net)
    assert second.gain == 1.0


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({1.0: 0.5, 2.0: 0.5, 3.0: 0.5}, 1.0),
        ({1.0: 0.514, 2.0: 0.5, 3.0: 0.6}, 1.0),
        ({1.0: 0.52, 2.0: 0.5, 3.0: 0.6}, 2.0),
        ({1.0: 0.9, 2.0: 0.5, 3.0: 0.51}, 2.0),
        ({1.0: 0.9, 2.0: 0.51, 3.0: 0.5}, 2.0),
        ({1.0: 0.9, 2.0: 0.51, 3.0: 0.5, 4.0: 0.505}, 2.0),
        ({1.0: 0.9, 2.0: 0.6, 3.0: 0.5, 4.0: 0.505}, 4.0),
        ({1.0: math.inf, 2.0: 0.5, 4.0: 0.5}, 4.0),
        ({1.0: math.inf, 2.0: math.inf, 4.0: math.inf}, 1.0),
    ],
)
def test_ties_go_to_the_own_weights_and_then_to_the_middle_rate(losses, expected):
    rates = {1.0: 0.0, 2.0: 0.12, 3.0: 0.06, 4.0: 0.25}
    scaled = SimpleNamespace(layer=HiddenLayer("fc1", nn.Linear(2, 2), "lif1", snn.Leaky(beta=0.9)), rate=rates.get)
    assert rescale.settle_gain(scaled, losses)[0].gain == expected


# -- how it is evaluated --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("two_rates")
@pytest.mark.parametrize("loss", ["cross_entropy", "squared", "logistic"])
def test_the_held_out_loss_tells_signal_from_noise(loss):
    (signal,), _ = choose(divided(loop_net()), loss=loss)
    shuffled = train_data(200)[1][torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    (noise,), _ = choose(divided(loop_net()), loss=loss, labels=shuffled)
    assert min(signal.heldout_loss.values()) < 0.7 * min(noise.heldout_loss.values())


@pytest.mark.usefixtures("two_rates")
def test_the_seed_decides_the_split_and_nothing_else_does():
    results = []
    for stir, seed in ((0, 0), (5, 0), (0, 1)):
        torch.manual_seed(stir)
        net = divided(loop_net())
        torch.manual_seed(stir)
        results.append(choose(net, seed=seed)[0][0])
    assert results[0] == results[1]
    assert results[0].heldout_loss != results[2].heldout_loss


@pytest.mark.usefixtures("two_rates")
def test_batches_of_any_size_give_the_same_gains():
    first, second = (choose(divided(loop_net()), size=size)[0][0] for size in (100, 70))
    assert first.gain == pytest.approx(second.gain, rel=1e-6)


@pytest.mark.usefixtures("two_rates")
def test_wide_layers_are_evaluated_on_some_of_their_neurons(monkeypatch):
    seen = []
    features = hidden_task.Features

    def recorded(matrix, *args):
        seen.append(matrix.shape[1])
        return features(matrix, *args)

    monkeypatch.setattr(hidden_task, "Features", recorded)
    monkeypatch.setattr(hidden_task, "MAX_FEATURES", 20)
    (decision,), _ = choose(divided(conv_net_as_loop()))
    assert set(seen) == {20}
    assert decision.gain > 1
    first = decision
    (again,), _ = choose(divided(conv_net_as_loop()))
    assert again == first


def conv_net_as_loop():
    net = conv_net()
    net.fc1 = net.conv  # the name by which `divided` finds it
    return net


# -- layers ---------------------------------------------------------------------------------------------------------------


class Deep(nn.Module):
    """Two hidden layers, between them whatever is asked for."""

    def __init__(self, between=None, first=None, second=None):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(64, HIDDEN), first or snn.Leaky(beta=0.9)
        self.fc2, self.between, self.lif2 = nn.Linear(HIDDEN, HIDDEN), between or nn.Identity(), second or snn.Leaky(beta=0.9)
        self.fc3, self.lif3 = nn.Linear(HIDDEN, 10), snn.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x):
        for neuron in (self.lif1, self.lif2, self.lif3):
            neuron.reset_mem()
        membranes = []
        for _ in range(6):
            spikes = self.lif1(self.fc1(x))[0]
            spikes = self.lif2(self.between(self.fc2(spikes)))[0]
            self.lif3(self.fc3(spikes))
            membranes.append(self.lif3.mem)
        return torch.stack(membranes)


def silence(layer):
    with torch.no_grad():
        layer.weight.div_(20)
        layer.bias.div_(20)


@pytest.mark.usefixtures("two_rates")
def test_layers_are_chosen_from_the_input_up_each_on_those_below():
    net = Deep()
    silence(net.fc1)
    silence(net.fc2)
    (first, second), net_map = choose(net)
    assert (first.name, second.name) == ("fc1", "fc2")
    # The second layer could not be evaluated before the first one spikes.
    assert first.gain > 1
    assert second.gain > 1
    assert rates_of(net, net_map, [first, second])[1] > 0
    # With the first one written, the second one gets the same gain.
    with torch.no_grad():
        for (module, name), value in scale_parameters(net_map.hidden[0], first.gain).items():
            getattr(module, name).copy_(value)
    (_, alone), _ = choose(net)
    assert alone.gain == pytest.approx(second.gain, rel=1e-6)


@pytest.mark.usefixtures("two_rates")
def test_a_layer_that_is_normalised_afterwards_keeps_its_weights():
    between = nn.BatchNorm1d(HIDDEN)
    with torch.no_grad():
        between.bias.fill_(0.02)
    net = Deep(between)
    silence(net.fc2)
    (_, decision), _ = choose(net)
    assert decision.gain == 1.0
    assert decision.reason.startswith("its currents do not scale with its weights")
    assert decision.heldout_loss == {}


def test_a_layer_without_positive_currents():
    net = loop_net()
    with torch.no_grad():
        net.fc1.weight.abs_().neg_()
        net.fc1.bias.abs_().neg_()
    with pytest.raises(SilentLayerError, match="'fc1' receives no positive current"):
        choose(net)


def test_rates_that_no_gain_reaches_are_left_out():
    net = loop_net()
    with torch.no_grad():
        net.fc1.weight[2:] = -net.fc1.weight[2:].abs()
        net.fc1.bias[2:] = -1.0
    (decision,), _ = choose(net)
    assert 1 < len(decision.heldout_loss) < 1 + len(rescale.RATES)
    assert max(decision.heldout_loss) < 2.0**12


def test_a_net_without_hidden_layers():
    class Shallow(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(64, 10), snn.Leaky(beta=0.9, reset_mechanism="none")

        def forward(self, x):
            self.lif.reset_mem()
            membranes = []
            for _ in range(4):
                self.lif(self.fc(x))
                membranes.append(self.lif.mem)
            return torch.stack(membranes)

    assert choose(Shallow())[0] == []


# -- values, and the net itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_scale_parameters(bias):
    net = Loop()
    net.fc1 = nn.Linear(64, HIDDEN, bias=bias)
    before = parameters_of(net)
    with quiet(net, seed=0):
        net_map = inspect_network(net, train_data(20)[0], plain_forward)
    values = scale_parameters(net_map.hidden[0], 3.0)
    assert {name for _, name in values} == ({"weight", "bias"} if bias else {"weight"})
    assert torch.equal(values[net.fc1, "weight"], net.fc1.weight.detach() * 3.0)
    assert not values[net.fc1, "weight"].requires_grad
    assert parameters_of(net) == before


@pytest.mark.usefixtures("two_rates")
@pytest.mark.parametrize("build", [lambda: divided(loop_net()), Deep, conv_net])
def test_choosing_changes_nothing(build):
    net = lived_in(build())
    before = parameters_of(net)
    try_gains(net, count=100)
    assert parameters_of(net) == before


def test_decisions_are_values():
    decision = LayerGain("fc1", 2.0, {1.0: 0.5, 2.0: 0.4})
    assert decision == LayerGain("fc1", 2.0, {1.0: 0.5, 2.0: 0.4}, "")


def test_gains_that_tie_on_few_samples_are_told_apart_on_all(monkeypatch):
    """The second comparison is among the tied alone, on all samples, and decides."""
    monkeypatch.setattr(rescale, "FIRST_SAMPLES", 100)
    seen, by_rate = [], iter([3.0, 1.0, 2.0, 2.0, 2.0])

    def of_features(self, features):
        seen.append(len(features))
        return next(by_rate)

    monkeypatch.setattr(CrossValidation, "evaluate_features", of_features)
    # The silent layer's own weights are worse, so that they are no part of the tie among the others.
    monkeypatch.setattr(CrossValidation, "evaluate_rows", lambda self, features: (1.0 if bool(features.any()) else 2.0, 0.1))
    (found,), _ = choose(divided(loop_net()), count=300)
    assert len(found.heldout_loss) == 6
    assert seen == [300] * 5
    assert found.heldout_loss[1.0] == 2.0
    assert found.gain == min(found.heldout_loss, key=found.heldout_loss.get)
