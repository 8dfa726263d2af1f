"""Every finding of a diagnosis, on a net that has it."""

import math

import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from torch import nn

from snn_recon_plugin import convex_init_, diagnose, over_time
from snn_recon_plugin.errors import DataError

from .diagnose_nets import FEW, STEPS, Detached, Raises, count_net, finding, kinds, norse_net
from .helpers import (
    BETA,
    CLASSES,
    HIDDEN,
    PIXELS,
    TwoHeads,
    batches,
    divided,
    loop_net,
    sequential_net,
    train_data,
)


def test_a_gain_and_nothing_to_gain_after_it_is_taken():
    net = loop_net()
    before = diagnose(net, batches(300))
    gain = finding(before, "gain")
    assert kinds(before) == ["gain"]
    assert gain.text == (
        f"a readout solved on 240 samples scores {100 * before.accuracy_solved:.1f} % on 60 held-out ones; "
        f"the net scores {100 * before.accuracy_now:.1f} %"
    )
    assert gain.fix == "convex_init_(net, loader)"
    convex_init_(net, batches(300))
    after = diagnose(net, batches(300))
    assert kinds(after) == ["nothing_to_gain"]
    assert after.findings[0].text.startswith("nothing to gain by the readout alone: ")


def test_layers_come_first_if_a_readout_gains_nothing_on_them():
    net, (inputs, labels) = loop_net(), train_data(100)
    with torch.no_grad():
        net.fc1.weight[:30] = 0
        net.fc1.bias[:30] = 0
    found = diagnose(net, [(inputs, labels[torch.randperm(100, generator=torch.Generator().manual_seed(0))])])
    assert kinds(found) == ["silent", "nothing_to_gain"]
    assert found.findings[1].fix.startswith("correct the layers first")


def test_the_call_names_the_options_that_were_given():
    found = diagnose(sequential_net(), batches(100), forward=over_time(8), loss=nn.CrossEntropyLoss())
    assert finding(found, "gain").fix == "convex_init_(net, loader, loss=..., forward=...)"


def test_values_have_a_loss_and_no_accuracy():
    inputs, labels = train_data(200)
    values = nn.functional.one_hot(labels, CLASSES).float()
    found = diagnose(loop_net(), [(inputs, values)], loss="squared")
    assert math.isnan(found.accuracy_now)
    assert found.loss_solved < found.loss_now
    assert "held-out loss of" in finding(found, "gain").text
    assert "held-out accuracy" not in str(found)


@pytest.mark.parametrize("build", [loop_net, norse_net], ids=["snntorch", "norse"])
def test_a_dead_layer(build):
    net = build()
    with torch.no_grad():
        for parameter in list(net.parameters())[:2]:
            parameter.div_(100)
    found = diagnose(net, batches(100), forward=None if build is loop_net else over_time(STEPS))
    first = found.layers[0]
    assert (first.firing_rate, first.silent, first.no_spike) == (0, 1, 1)
    silent = finding(found, "silent")  # the layers above, dead too, are its consequence
    assert silent.text == f"layer {first.name!r}: 100 % of {HIDDEN} neurons never spike on 100 samples"
    assert silent.layer == first.name
    assert silent.fix.startswith("convex_init_(net, loader")
    assert "threshold" in silent.fix
    assert "silent" in finding(found, "not_solved").text
    assert "rebuilds" in finding(found, "not_solved").fix
    assert math.isnan(found.accuracy_now)
    assert "gain" not in kinds(found)


class Gated(nn.Module):
    """A hidden layer that no initialisation changes, with a threshold that its membrane never reaches."""

    def __init__(self):
        super().__init__()
        self.lstm, self.fc = snn.SLSTM(PIXELS, HIDDEN, threshold=1.0), nn.Linear(HIDDEN, CLASSES)
        self.out = snn.Leaky(beta=BETA, reset_mechanism="none")

    def forward(self, x):
        synapse, memory = self.lstm.reset_mem()
        membrane, found = self.out.reset_mem(), []
        for _ in range(STEPS):
            spikes, synapse, memory = self.lstm(x, synapse, memory)
            _, membrane = self.out(self.fc(spikes), membrane)
            found.append(membrane)
        return torch.stack(found)


def test_a_dead_layer_that_no_initialisation_changes():
    found = diagnose(Gated(), batches(100))
    assert "convex_init_" not in finding(found, "silent").fix
    assert "threshold" in finding(found, "silent").fix
    with pytest.raises(DataError, match="lower its threshold"):
        convex_init_(Gated(), batches(100))


def test_a_saturated_layer():
    net = loop_net()
    with torch.no_grad():
        net.fc1.weight.abs_()
        net.fc1.weight[:20] *= 500
        net.fc1.weight[20:] *= 0.2
    found = diagnose(net, batches(200))
    text = finding(found, "saturated").text
    assert text.startswith("layer 'fc1': ")
    assert "spike at every step of all 200 samples (saturated)" in text
    assert found.layers[0].always_on == pytest.approx(20 / HIDDEN, abs=0.03)
    assert "raise the threshold" in finding(found, "saturated").fix


def test_samples_that_reach_the_readout_without_a_spike():
    net, (inputs, labels) = loop_net(), train_data(200)
    nn.init.zeros_(net.fc1.bias)
    inputs[::4] = 0
    found = diagnose(net, [(inputs, labels)])
    assert finding(found, "no_spike").text.startswith("25 % of 200 samples reach the readout without a spike")
    assert found.layers[0].no_spike == 0.25


def test_samples_without_a_spike_in_a_refused_net():
    torch.manual_seed(0)
    net, (inputs, labels) = TwoHeads(), train_data(100)
    nn.init.zeros_(net.fc1.bias)
    inputs[::2] = 0
    found = diagnose(net, [(inputs, labels)])
    assert finding(found, "no_spike").text == "50 % of 100 samples cause no spike in layer 'lif1'"


def test_outputs_that_never_spike():
    net = count_net()
    with torch.no_grad():
        net.fc2.weight[:4] = -1
    found = diagnose(net, batches(100))
    assert found.layers[1].output
    silent = finding(found, "silent")
    assert silent.text.startswith("output 'fc2': ")
    assert "convex_init_(net, loader) solves the output's weights" in silent.fix


def test_outputs_that_never_spike_are_no_fault_where_membranes_decide():
    net = loop_net(output=snn.Leaky(beta=BETA))
    convex_init_(net, batches(300))
    found = diagnose(net, batches(300))
    assert found.layers[1].output
    assert found.layers[1].silent > 0.3
    assert kinds(found) == ["nothing_to_gain"]


def test_vanishing_gradients():
    net = divided(loop_net(hidden_neuron=snn.Leaky(beta=BETA, spike_grad=surrogate.fast_sigmoid(slope=200))))
    found = diagnose(net, batches(FEW))
    assert found.layers[0].gradient < 0.01
    vanishing = finding(found, "vanishing")
    assert vanishing.text.startswith("gradients vanish below layer 'fc1'")
    assert "surrogate" in vanishing.fix


class Memory(nn.Module):
    """Recurrent neurons that see themselves alone; each step multiplies their gradients by the weight."""

    def __init__(self, weight):
        super().__init__()
        self.synapse, self.readout = nn.Linear(PIXELS, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.neuron = snn.RLeaky(0.0, V=weight, all_to_all=False, spike_grad=surrogate.straight_through_estimator())
        self.output = snn.Leaky(beta=BETA, reset_mechanism="none")

    def forward(self, inputs):
        (spikes, membrane), out, membranes = self.neuron.reset_mem(), self.output.reset_mem(), []
        for _ in range(STEPS):
            spikes, membrane = self.neuron(self.synapse(inputs), spikes, membrane)
            _, out = self.output(self.readout(spikes), out)
            membranes.append(out)
        return torch.stack(membranes)


def test_gradients_that_explode_in_a_recurrent_layer():
    torch.manual_seed(0)
    found = diagnose(Memory(4.0), batches(FEW))
    assert finding(found, "exploding").text.startswith("gradients explode in recurrent layers: ")
    assert "fast_sigmoid" in finding(found, "exploding").fix
    torch.manual_seed(0)
    assert "exploding" not in kinds(diagnose(Memory(0.5), batches(FEW)))


def test_no_gradient_at_all():
    """A spike function without a surrogate."""
    net = loop_net(hidden_neuron=snn.Leaky(beta=BETA, spike_grad=lambda x: (x > 0).float()))
    found = diagnose(net, batches(FEW))
    assert (found.layers[0].surrogate, found.layers[0].gradient) == (0, 0)
    assert "vanishing" in kinds(found)


def test_gradients_that_are_not_finite():
    """snnTorch's sigmoid surrogate divides infinity by infinity far below the threshold."""
    net = loop_net(hidden_neuron=snn.Leaky(beta=BETA, spike_grad=surrogate.sigmoid(slope=200)))
    found = diagnose(net, batches(FEW))
    assert math.isnan(found.layers[0].surrogate)
    assert "not finite" in finding(found, "not_finite").text
    assert "vanishing" not in kinds(found)


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (lambda: loop_net(hidden_neuron=snn.Leaky(beta=BETA, spike_grad=Raises.apply)), "ValueError: no way back"),
        (Detached, "does not depend on the layers"),
    ],
    ids=["backward raises", "no graph"],
)
def test_gradients_that_can_not_be_measured(net, reason):
    found = diagnose(net(), batches(100))
    text = finding(found, "not_measured").text
    assert text.startswith("gradients were not measured: ")
    assert reason in text
    assert "more" not in text
    assert math.isnan(found.layers[0].surrogate)
    assert "n/a" in str(found)
    assert "gain" in kinds(found)
