"""The cause of a layer that fires too little or too much, as a diagnosis names it, and what follows from its fix."""

import pytest
import snntorch as snn
import torch

from snn_recon_plugin import diagnose, hidden_init_

from .helpers import divided, train_data
from .nets import BETA, Stack, TwoHeads, loop_net
from .test_diagnose_rules import finding, kinds

FEW = [train_data(60)]


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
    "high threshold": (lambda: leaky(threshold=100.0), "fc1", "silent", "bring membranes to 5.5 % of the threshold 100 at most"),
    "how much": (lambda: divided(loop_net(), 100), "fc1", "silent", "its weights are 82 times too small for the threshold 1"),
    "low leak": (lambda: leaky(beta=0.05), "fc1", "silent", "a membrane keeps only 5.0 % of its value"),
    "large weights": (
        lambda: divided(loop_net(), 1 / 40),
        "fc1",
        "saturated",
        "49 times too large for the threshold 1",
    ),
    "no way up": (negative, "fc1", "silent", "negative weights or biases"),
    "above others": (lambda: Stack((1.0, 20.0)), "synapses.1", "silent", "times too small for the threshold 1"),
    "two heads": (lambda: divided(TwoHeads(), 100), "fc1", "silent", "of the threshold 1 at most"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_the_cause_is_named_and_the_fix_ends_it(name):
    build, layer, kind, words = CAUSES[name]
    torch.manual_seed(0)
    net = build()
    one = finding(diagnose(net, FEW), kind)
    assert one.layer == layer
    assert words in one.text
    assert one.fix.startswith("hidden_init_(net, loader) sets its weights without labels; or ")
    hidden_init_(net, FEW, rate=0.1)  # without memory a neuron spikes at all steps or none: a low rate is of few samples
    assert kind not in kinds(diagnose(net, FEW))
