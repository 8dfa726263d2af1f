"""Every finding of a diagnosis, on a net that has it."""

import math

import pytest
import snntorch as snn
import torch
from snntorch import surrogate, utils
from torch import nn

from snn_recon_plugin import convex_init_, diagnose, hidden_init_, over_time
from snn_recon_plugin.networks.libraries import library_of
from snn_recon_plugin.text_table import rate

from .helpers import batches, divided, train_data
from .nets import (
    BETA,
    CLASSES,
    HIDDEN,
    PIXELS,
    Recurrent,
    Stack,
    TwoHeads,
    loop_net,
    sequential_net,
    spikes_and_membranes,
    spikes_of,
)
from .test_hidden_init import ReadMembranes, membranes_below

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


class Raises(torch.autograd.Function):
    error = ValueError

    @staticmethod
    def forward(ctx, x):
        return (x > 0).float()

    @staticmethod
    def backward(ctx, gradient):
        raise Raises.error("no way back\nand more")


def test_a_gain_and_nothing_to_gain_after_it_is_taken():
    net = loop_net()
    before = diagnose(net, batches(300))
    gain = finding(before, "gain")
    assert kinds(before) == ["gain"]
    assert gain.text == (
        f"a readout solved on 240 samples scores {rate(before.accuracy_solved, 60)} on 60 held-out ones; "
        f"the net scores {rate(before.accuracy_now, 60)}"
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


def test_a_dead_layer():
    net = deep_norse_net()
    with torch.no_grad():
        for parameter in list(net.parameters())[:2]:
            parameter.div_(100)
    found = diagnose(net, batches(100), **NORSE)
    first = found.layers[0]
    assert (first.firing_rate, first.silent, first.no_spike) == (0, 1, 1)
    silent = finding(found, "silent")  # the layers above, dead too, are its consequence
    assert silent.text.startswith(f"layer {first.name!r}: 100 % of {HIDDEN} neurons never spike on 100 samples: its currents bring")
    assert silent.layer == first.name
    assert silent.fix.startswith("hidden_init_(net, loader")
    assert "or convex_init_(net, loader" in silent.fix
    assert "threshold" in silent.fix
    assert "silent" in finding(found, "not_solved").text
    assert "rebuilds" in finding(found, "not_solved").fix
    assert math.isnan(found.accuracy_now)
    assert "gain" not in kinds(found)


def test_outputs_that_never_spike_are_no_fault_where_membranes_decide():
    net = loop_net(output=snn.Leaky(beta=BETA))
    convex_init_(net, batches(300))
    with torch.no_grad():
        net.fc2.bias.sub_(10)
    found = diagnose(net, batches(300))
    assert found.layers[1].output
    assert found.layers[1].silent > 0.3
    assert kinds(found) == ["nothing_to_gain"]


def with_surrogate(function, by=1.0):
    return divided(loop_net(hidden_neuron=snn.Leaky(beta=BETA, spike_grad=function)), by)


def gated():
    """A layer that no initialisation changes, with a membrane that never reaches its threshold."""
    return Recurrent(nn.Identity(), snn.SLSTM(PIXELS, HIDDEN, threshold=1.0))


def memory(weight):
    """Neurons that see themselves alone; each step multiplies their gradients by the weight."""
    neuron = snn.RLeaky(0.0, V=weight, all_to_all=False, spike_grad=surrogate.straight_through_estimator())
    return Recurrent(nn.Linear(PIXELS, HIDDEN), neuron, over=lambda x: x.expand(12, *x.shape))


def saturated():
    net = loop_net()
    with torch.no_grad():
        net.fc1.weight.abs_()
        net.fc1.weight[:20] *= 500
        net.fc1.weight[20:] *= 0.2
    return net


def silent_outputs():
    net = count_net()
    with torch.no_grad():
        net.fc2.weight[:4] = -1
    return net


def without_bias(net):
    nn.init.zeros_(net.fc1.bias)
    return net


def partly_black(every):
    inputs, labels = train_data(200)
    inputs[::every] = 0
    return [(inputs, labels)]


def row(build, kind, text, fix="", loader=batches(FEW), absent="", layer=(), **options):  # noqa: B008
    """Net, finding, beginning of its text, words of its fix, loader, a finding that it has not, values of its first layer."""
    return build, kind, text, fix, loader, absent, dict(layer), options


VALUES = [(x, nn.functional.one_hot(y, CLASSES).float()) for x, y in batches(200)]
SOLVES = "convex_init_(net, loader) solves the output's weights"
GIVEN = {"forward": over_time(8), "loss": nn.CrossEntropyLoss()}
NOT_MEASURED, VANISH = "gradients were not measured: ", "gradients vanish below layer 'fc1'"
NO_GRAPH = f"{NOT_MEASURED}what forward returns does not depend on the layers"
STEP, STEEP, SIGMOID = (lambda x: (x > 0).float()), surrogate.fast_sigmoid(slope=200), surrogate.sigmoid(slope=200)

ROWS = {
    "options": row(sequential_net, "gain", "", "convex_init_(net, loader, loss=..., forward=...)", batches(100), **GIVEN),
    "values": row(loop_net, "gain", "a readout solved on 160 samples has a held-out loss of", "", VALUES, loss="squared"),
    "a dead layer that stays": row(gated, "silent", "layer", "threshold", batches(100), "convex_init_"),
    "saturated": row(saturated, "saturated", "layer 'fc1': ", "raise the threshold", batches(200), layer={"always_on": 0.42}),
    "black images": row(
        lambda: without_bias(loop_net()),
        "no_spike",
        "25 % of 200 samples reach the readout without a spike",
        loader=partly_black(4),
        layer={"no_spike": 0.25},
    ),
    "black images, refused": row(
        lambda: without_bias(TwoHeads()), "no_spike", "50 % of 200 samples cause no spike in layer 'fc1'", loader=partly_black(2)
    ),
    "values of membranes below the threshold": row(
        lambda: loop_net(outputs=1, output=snn.Leaky(beta=BETA, threshold=10.0), decode=spikes_and_membranes),
        "refused",
        "convex_init_ refuses this net: targets of torch.float32",
        loader=[(x, y.float()[:, None]) for x, y in batches(60)],
        absent="silent",
        loss="squared",
    ),
    "silent outputs": row(silent_outputs, "silent", "output 'fc2': ", SOLVES, batches(100)),
    "vanishing": row(lambda: with_surrogate(STEEP, 20), "vanishing", VANISH, "surrogate", layer={"gradient": 0}),
    "no gradient": row(lambda: with_surrogate(STEP), "vanishing", "", layer={"surrogate": 0, "gradient": 0}),
    # snnTorch's sigmoid surrogate divides infinity by infinity far below the threshold.
    "not finite": row(lambda: with_surrogate(SIGMOID), "not_finite", "", absent="vanishing", layer={"surrogate": math.nan}),
    "exploding": row(lambda: memory(4.0), "exploding", "gradients explode in recurrent layers: ", "fast_sigmoid"),
    "not exploding": row(lambda: memory(0.5), "not_solved", "", absent="exploding"),
    "backward raises": row(
        lambda: with_surrogate(Raises.apply), "not_measured", f"{NOT_MEASURED}ValueError: no way back", absent="and more"
    ),
    "membranes are read": row(membranes_below, "unread", "nothing reads the spikes of layer 'fc1'", "leave", absent="silent"),
    "membranes are read, saturated": row(
        lambda: ReadMembranes(hidden_neuron=snn.Leaky(beta=0.5, threshold=-9.0)), "unread", "nothing reads", absent="saturated"
    ),
    "no graph": row(detached, "not_measured", NO_GRAPH, layer={"surrogate": math.nan}),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_finding(name):
    build, kind, text, fix, loader, absent, layer, options = ROWS[name]
    torch.manual_seed(0)
    found = diagnose(build(), loader, **options)
    one = finding(found, kind)
    assert one.text.startswith(text)
    assert fix in one.fix
    assert not absent or absent not in one.text + one.fix + str(kinds(found))
    for key, value in layer.items():
        assert getattr(found.layers[0], key) == pytest.approx(value, abs=0.03, nan_ok=True)


@pytest.mark.parametrize("nested", [False, True])
def test_nested_neurons_that_the_librarys_own_reset_misses(nested, monkeypatch):
    monkeypatch.setattr(snn.SpikingNeuron, "instances", [])  # of other tests, which a reset would reach
    net = nn.Sequential(sequential_net()) if nested else sequential_net()
    found = diagnose(net, batches(FEW), forward=over_time(12))
    named = [each.text for each in found.findings if each.kind == "not_reset"]
    assert [("'0.1', '0.3'" in text, "over_time" in finding(found, "not_reset").fix) for text in named] == [(True, True)] * nested
    inputs, spikes = train_data()[0][:5], []
    for _ in range(2):  # as the finding says, the reset makes the second pass start from rest, or not
        utils.reset(net)
        spikes.append(torch.stack([net(inputs)[1] for _ in range(12)]))
    assert torch.equal(*spikes) is not nested


def test_a_library_names_its_own_reset(monkeypatch):
    library = type(library_of(deep_norse_net()[1]))
    monkeypatch.setattr(library, "missed_by_reset", lambda self, net: ["1", "3", "5", "7"])
    monkeypatch.setattr(library, "resets", ("norse.reset(net)", "m.reset() of each m"), raising=False)
    one = finding(diagnose(deep_norse_net(), batches(FEW), **NORSE), "not_reset")
    assert one.text.startswith("norse.reset(net) does not reach the nested neurons '1', '3', '5' and others;")
    assert one.fix.startswith("reset each: m.reset() of each m;")


SIXTY = [train_data(60)]


def leaky(**options):
    return loop_net(hidden_neuron=snn.Leaky(**{"beta": BETA, **options}))


def negative():
    net = loop_net()
    with torch.no_grad():
        net.fc1.weight.copy_(-net.fc1.weight.abs())
        net.fc1.bias.fill_(-1.0)
    return net


# A net, the layer and the kind of the finding, and words of its text.
CAUSES = {
    "small weights": (lambda: divided(loop_net(), 100), "fc1", "silent", "bring membranes to 5.5 % of the threshold 1 at most"),
    "how much": (lambda: leaky(threshold=100.0), "fc1", "silent", "its weights are 80 times too small for the threshold 100"),
    "low leak": (lambda: leaky(beta=0.05), "fc1", "silent", "a membrane keeps only 5.0 % of its value"),
    "large weights": (lambda: divided(loop_net(), 1 / 40), "fc1", "saturated", "49 times too large for the threshold 1"),
    "no way up": (negative, "fc1", "silent", "negative weights or biases"),
    "above others": (lambda: Stack((1.0, 20.0)), "synapses.1", "silent", "times too small for the threshold 1"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_the_cause_is_named_and_the_fix_ends_it(name):
    build, layer, kind, words = CAUSES[name]
    torch.manual_seed(0)
    net = build()
    one = finding(diagnose(net, SIXTY), kind)
    assert one.layer == layer
    assert words in one.text
    assert one.fix.startswith("hidden_init_(net, loader) sets its weights without labels; or ")
    hidden_init_(net, SIXTY, rate=0.1)  # without memory a neuron spikes at all steps or none: a low rate is of few samples
    assert kind not in kinds(diagnose(net, SIXTY))
