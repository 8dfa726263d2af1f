"""Every finding of a diagnosis, on a net that has it."""

import math

import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from torch import nn

from snn_recon_plugin import convex_init_, diagnose, over_time
from snn_recon_plugin.errors import DataError

from .helpers import batches, divided, train_data
from .nets import BETA, CLASSES, HIDDEN, PIXELS, Recurrent, TwoHeads, loop_net, sequential_net, spikes_of

FEW = 9  # too few to solve a readout, which takes most of the time
NORSE = {"forward": over_time(12)}


def kinds(found):
    return [finding.kind for finding in found.findings]


def finding(found, kind):
    (one,) = [each for each in found.findings if each.kind == kind]
    assert one.text.strip()
    assert one.fix.strip()
    return one


def deep_norse_net():
    norse = pytest.importorskip("norse.torch")
    torch.manual_seed(0)
    layers = nn.Linear(PIXELS, HIDDEN), norse.LIFCell(), nn.Linear(HIDDEN, HIDDEN), norse.LIFCell(), nn.Linear(HIDDEN, CLASSES)
    net = norse.SequentialState(*layers, norse.LICell())
    with torch.no_grad():
        for number in (0, 2):
            net[number].weight.mul_(6)  # at its initialisation the second layer never spikes
    return net


def count_net():
    return loop_net(output=snn.Leaky(beta=BETA), decode=spikes_of)


def detached():
    return loop_net(decode=lambda spikes, membranes: membranes.detach())


def surrogate_net(function):
    return loop_net(hidden_neuron=snn.Leaky(beta=BETA, spike_grad=function))


class Raises(torch.autograd.Function):
    """Spikes whose backward pass raises."""

    error = ValueError

    @staticmethod
    def forward(ctx, x):
        return (x > 0).float()

    @staticmethod
    def backward(ctx, gradient):
        raise Raises.error("no way back\nand more")


# -- the readout ----------------------------------------------------------------------------------------------------------


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
    found = diagnose(loop_net(), [(inputs, nn.functional.one_hot(labels, CLASSES).float())], loss="squared")
    assert math.isnan(found.accuracy_now)
    assert found.loss_solved < found.loss_now
    assert "held-out loss of" in finding(found, "gain").text
    assert "held-out accuracy" not in str(found)


# -- firing ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "options"), [(loop_net, {}), (deep_norse_net, NORSE)], ids=["snntorch", "norse"])
def test_a_dead_layer(build, options):
    net = build()
    with torch.no_grad():
        for parameter in list(net.parameters())[:2]:
            parameter.div_(100)
    found = diagnose(net, batches(100), **options)
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


def test_a_dead_layer_that_no_initialisation_changes():
    def gated():  # a membrane that never reaches the threshold
        return Recurrent(nn.Identity(), snn.SLSTM(PIXELS, HIDDEN, threshold=1.0))

    silent = finding(diagnose(gated(), batches(100)), "silent")
    assert "convex_init_" not in silent.fix
    assert "threshold" in silent.fix
    with pytest.raises(DataError, match="lower its threshold"):
        convex_init_(gated(), batches(100))


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


@pytest.mark.parametrize(
    ("build", "every", "text"),
    [
        (loop_net, 4, "25 % of 200 samples reach the readout without a spike"),
        (TwoHeads, 2, "50 % of 200 samples cause no spike in layer 'lif1'"),  # refused, and measured all the same
    ],
)
def test_samples_without_a_spike(build, every, text):
    torch.manual_seed(0)
    net, (inputs, labels) = build(), train_data(200)
    nn.init.zeros_(net.fc1.bias)
    inputs[::every] = 0
    found = diagnose(net, [(inputs, labels)])
    assert finding(found, "no_spike").text.startswith(text)
    assert found.layers[0].no_spike == 1 / every


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


# -- gradients ------------------------------------------------------------------------------------------------------------


def test_vanishing_gradients():
    found = diagnose(divided(surrogate_net(surrogate.fast_sigmoid(slope=200))), batches(FEW))
    assert found.layers[0].gradient < 0.01
    vanishing = finding(found, "vanishing")
    assert vanishing.text.startswith("gradients vanish below layer 'fc1'")
    assert "surrogate" in vanishing.fix


def test_gradients_that_explode_in_a_recurrent_layer():
    def memory(weight):  # neurons that see themselves alone; each step multiplies their gradients by the weight
        torch.manual_seed(0)
        neuron = snn.RLeaky(0.0, V=weight, all_to_all=False, spike_grad=surrogate.straight_through_estimator())
        return Recurrent(nn.Linear(PIXELS, HIDDEN), neuron, over=lambda x: x.expand(12, *x.shape))

    exploding = finding(diagnose(memory(4.0), batches(FEW)), "exploding")
    assert exploding.text.startswith("gradients explode in recurrent layers: ")
    assert "fast_sigmoid" in exploding.fix
    assert "exploding" not in kinds(diagnose(memory(0.5), batches(FEW)))


def test_no_gradient_at_all():
    found = diagnose(surrogate_net(lambda x: (x > 0).float()), batches(FEW))
    assert (found.layers[0].surrogate, found.layers[0].gradient) == (0, 0)
    assert "vanishing" in kinds(found)


def test_gradients_that_are_not_finite():
    """snnTorch's sigmoid surrogate divides infinity by infinity far below the threshold."""
    found = diagnose(surrogate_net(surrogate.sigmoid(slope=200)), batches(FEW))
    assert math.isnan(found.layers[0].surrogate)
    assert "not finite" in finding(found, "not_finite").text
    assert "vanishing" not in kinds(found)


@pytest.mark.parametrize(
    ("build", "reason"),
    [(lambda: surrogate_net(Raises.apply), "ValueError: no way back"), (detached, "does not depend on the layers")],
    ids=["backward raises", "no graph"],
)
def test_gradients_that_can_not_be_measured(build, reason):
    found = diagnose(build(), batches(100))
    text = finding(found, "not_measured").text
    assert text.startswith("gradients were not measured: ")
    assert reason in text
    assert "more" not in text
    assert math.isnan(found.layers[0].surrogate)
    assert "n/a" in str(found)
    assert "gain" in kinds(found)
