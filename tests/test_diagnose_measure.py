"""Measurements of a diagnosis against the report and second opinions, also of nets that an initialisation refuses."""

import math

import numpy as np
import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from torch import nn

from snn_recon_plugin import convex_init_, diagnose
from snn_recon_plugin.errors import OptionError

from .diagnose_nets import FEW, NETS, finding, kinds
from .helpers import (
    BETA,
    CLASSES,
    HIDDEN,
    PIXELS,
    Loop,
    TwoHeads,
    batches,
    loop_net,
    train_data,
)


@pytest.mark.parametrize(
    ("build", "options"),
    [pytest.param(*net, id=name, marks=[] if name in ("loop", "norse cells") else pytest.mark.slow) for name, net in NETS.items()],
)
def test_figures_are_those_of_the_report(build, options):
    found = diagnose(build(), batches(200, 50), max_samples=100, **options)
    report = convex_init_(build(), batches(200, 50), hidden="keep", max_samples=100, **options)
    assert (found.accuracy_now, found.accuracy_solved) == (report.accuracy_before, report.solved_accuracy)
    assert (found.loss_now, found.loss_solved) == pytest.approx((report.loss_before, report.solved_loss))
    assert (found.samples, found.fitted, found.heldout) == (100, 80, 20)
    assert found.network.startswith(report.network)
    hidden = [layer for layer in found.layers if not layer.output]
    for layer, other in zip(hidden, report.layers, strict=True):
        assert (layer.name, layer.neuron) == (other.name, other.neuron)
        for name in ("neurons", "firing_rate", "silent", "always_on"):
            assert getattr(layer, name) == pytest.approx(getattr(other.before, name))


def test_firing_against_a_second_opinion():
    net, (inputs, labels) = loop_net(), train_data(90)
    (layer,) = diagnose(net, [(inputs, labels)]).layers
    spikes, mem = [], torch.zeros(90, HIDDEN)
    with torch.no_grad():
        for _ in range(net.steps):
            mem = BETA * mem + net.fc1(inputs) - (mem > 1).float()
            spikes.append((mem > 1).float())
    spikes = torch.stack(spikes)
    assert layer.firing_rate == pytest.approx(float(spikes.mean()))
    assert layer.silent == pytest.approx(float((spikes.sum((0, 1)) == 0).float().mean()))
    assert layer.no_spike == pytest.approx(float((spikes.sum((0, 2)) == 0).float().mean()))
    assert layer.always_on == 0


def test_gradients_against_a_second_opinion():
    """A straight-through surrogate: one step's current reaches the spikes of all later steps by powers of beta."""
    torch.manual_seed(0)
    neuron = snn.Leaky(beta=BETA, spike_grad=surrogate.straight_through_estimator(), reset_mechanism="none")
    net = loop_net(hidden_neuron=neuron)
    neuron.reset_mechanism = "subtract"
    (layer,) = diagnose(net, batches(FEW)).layers
    steps = net.steps
    reached = [sum(BETA ** (later - step) for later in range(step, steps)) for step in range(steps)]
    assert layer.surrogate == pytest.approx(sum(reached) / steps, rel=1e-3)
    assert layer.gradient > 0.1


def test_a_single_large_batch_costs_no_more_than_its_first_samples():
    sizes = []

    def forward(net, x):
        sizes.append(len(x))
        return net(x)

    inputs, labels = train_data(600)
    found = diagnose(loop_net(), [(inputs, labels)], forward=forward, max_samples=100)
    assert max(sizes) == found.samples == 100
    same = diagnose(loop_net(), [(inputs[:100], labels[:100])])
    assert found.layers == same.layers
    assert found.accuracy_solved == same.accuracy_solved


def test_nothing_is_drawn_from_the_loader_behind_the_samples():
    drawn = []

    def loader():
        for number, pair in enumerate(batches(600, 50)):
            drawn.append(number)
            yield pair

    assert diagnose(loop_net(), loader(), max_samples=100).samples == 100
    assert drawn == [0, 1]


class Noisy(Loop):
    """Random numbers that no seed fixes."""

    def forward(self, x):
        return super().forward(x * torch.as_tensor(np.random.default_rng().random(), dtype=torch.float32).add(0.5))


@pytest.mark.parametrize(("net", "word"), [(Noisy, "other values each time"), (TwoHeads, "could be the readout")])
def test_a_refused_net_is_measured_all_the_same(net, word):
    torch.manual_seed(0)
    found = diagnose(net(), batches(100))
    assert kinds(found)[0] == "refused"
    refused = found.findings[0]
    assert refused.text.startswith("convex_init_ refuses this net: ")
    assert word in refused.text
    assert "needed: " in refused.text
    (layer, *_) = found.layers
    assert layer.name == "lif1"  # what feeds it is not known
    assert layer.firing_rate > 0
    assert layer.gradient > 0
    assert (found.readout, found.fitted, found.heldout) == ("", 0, 0)
    assert math.isnan(found.accuracy_solved)
    assert not any("convex_init_(" in each.fix for each in found.findings)
    assert "readout_layer" in refused.fix or net is Noisy


def test_an_option_that_the_refusal_asks_for():
    torch.manual_seed(0)
    found = diagnose(TwoHeads(), batches(100), readout_layer="fc2", forward=lambda net, x: net(x)[0].mean(0))
    assert "refused" not in kinds(found)
    assert found.readout.startswith("'fc2'")


def test_a_net_without_neurons():
    found = diagnose(nn.Sequential(nn.Linear(PIXELS, CLASSES)), batches(100))
    assert kinds(found) == ["refused"]
    assert "no spiking neuron" in found.findings[0].text
    assert found.layers == ()
    assert "firing rate" not in str(found)
    with pytest.raises(OptionError, match="without spiking layers"):
        found.plot()


def test_labels_that_the_loss_does_not_take():
    inputs, labels = train_data(100)
    found = diagnose(loop_net(), [(inputs, labels + 5)])
    assert kinds(found) == ["refused"]
    assert found.layers[0].firing_rate > 0


def test_too_few_samples_to_solve():
    found = diagnose(loop_net(), batches(9))
    assert "9 samples" in finding(found, "not_solved").text
    assert found.samples == 9
    assert found.layers[0].firing_rate > 0


def test_a_neuron_whose_calls_differ_in_shape():
    class Shared(Loop):
        def forward(self, x):
            self.lif1(x)
            return super().forward(x)

    torch.manual_seed(0)
    found = diagnose(Shared(), batches(100))
    layer = next(layer for layer in found.layers if layer.neuron == "Leaky")
    assert math.isnan(layer.firing_rate)
    assert "n/a" in str(found)
