"""Layers that keep their own weights while the others are rebuilt: the report names each with the reason."""

import pytest
import snntorch as snn
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import weight_norm as older_weight_norm

from snn_recon_plugin import convex_init_
from snn_recon_plugin.hidden.gains import explain_fixed
from snn_recon_plugin.hidden.rebuild import explain_not_rebuilt
from snn_recon_plugin.networks.calls.forward import plain_forward
from snn_recon_plugin.networks.private.workbench import private_copy
from snn_recon_plugin.networks.structure.inspect import inspect_network
from snn_recon_plugin.networks.structure.layers import HiddenLayer

from ..helpers import HIDDEN, STEPS, batches, bits, loop_net, one_line, train_data
from ..nets import Deep

pytestmark = pytest.mark.usefixtures("one_rate")


def linear(*frozen):
    """A second layer of which some parameters are frozen."""
    synapse = nn.Linear(HIDDEN, HIDDEN)
    for name in frozen:
        getattr(synapse, name).requires_grad_(False)
    return synapse


# Synapse and neuron of the second layer, and words of its reason.
OWN = {
    "frozen": (lambda: (linear("weight", "bias"), None), "frozen: requires_grad=False of its weight and its bias"),
    "frozen bias": (lambda: (linear("bias"), None), "frozen: requires_grad=False of its bias"),
    "SLSTM": (lambda: (None, snn.SLSTM(HIDDEN, HIDDEN, threshold=0.1)), "class SLSTM"),
    "one to one": (lambda: (None, snn.RLeaky(beta=0.9, all_to_all=False)), "recurrent"),
    "synaptic one to one": (lambda: (None, snn.RSynaptic(alpha=0.5, beta=0.9, all_to_all=False)), "recurrent"),
    "inhibition": (lambda: (None, snn.Leaky(beta=0.9, inhibition=True)), "inhibit each other"),
    "pruned": (lambda: (prune.l1_unstructured(linear(), "weight", 0.3), None), "computed by pruning"),
    "weight_norm of old": (lambda: (older_weight_norm(linear()), None), "computed by weight_norm"),
    "spectral_norm": (lambda: (parametrizations.spectral_norm(linear()), None), "parametrization"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated", "ignore:Inhibition")
@pytest.mark.parametrize("name", OWN)
def test_a_layer_that_is_not_rebuilt_says_why(name):
    make, words = OWN[name]
    first, second = inspect_network(private_copy(Deep(*make())), train_data(20)[0], plain_forward).hidden
    assert explain_not_rebuilt(first, [first, second]) == ""
    assert words in explain_not_rebuilt(second, [first, second])


@pytest.mark.parametrize("name", ["frozen", "SLSTM"])
def test_the_others_are_rebuilt_and_the_report_names_it(name):
    make, words = OWN[name]
    report = convex_init_(Deep(*make()), batches(120), hidden="reconstruct", n_candidates=1.0, strength=1e-2)
    first, second = report.layers
    assert (first.name, second.name) == ("fc1", "inner")
    assert first.witnesses is not None
    assert second.witnesses is None
    assert words in second.reason
    assert "layer 'inner'" in report.details()


@pytest.mark.parametrize(
    ("hidden", "names"),
    [("reconstruct", ("weight", "bias")), ("reconstruct", ("bias",)), ("rescale", ("weight",)), ("keep", ("bias",))],
)
def test_frozen_layers_are_never_written(hidden, names):
    net = loop_net()
    net.fc1.weight.data.mul_(0.4)  # a gain would help
    for name in names:
        getattr(net.fc1, name).requires_grad_(False)
    before = [bits(parameter) for parameter in net.fc1.parameters()]
    report = convex_init_(net, batches(120), hidden=hidden, strength=1e-2)
    assert [bits(parameter) for parameter in net.fc1.parameters()] == before
    if hidden != "keep":
        assert f"kept (frozen: requires_grad=False of its {names[0]}" in one_line(report)


def test_frozen_parameters_behind_a_parametrization():
    layer = parametrizations.weight_norm(nn.Linear(4, 3))
    hidden = HiddenLayer("fc1", layer, "lif1", snn.Leaky(beta=0.9))
    assert explain_fixed(hidden) == ""
    layer.parametrizations.weight.original1.requires_grad_(False)
    assert "frozen" in explain_fixed(hidden)


def test_a_synapse_or_neuron_of_two_layers_stays():
    one, two, neuron, other = nn.Linear(3, 3), nn.Linear(3, 3), snn.Leaky(beta=0.9), snn.Leaky(beta=0.9)
    first = HiddenLayer("a", one, "n", neuron)
    for second, words in (
        (HiddenLayer("a", one, "m", other), "the same synapse serves two layers: 'a' with 'n' and 'a' with 'm'"),
        (HiddenLayer("b", two, "n", neuron), "the same neuron serves two layers: 'a' with 'n' and 'b' with 'n'"),
        (HiddenLayer("b", two, "m", other), ""),
    ):
        assert explain_not_rebuilt(first, [first, second]) == words


@pytest.mark.parametrize("make", [lambda: snn.LinearLeaky(0.9, 4, 6), lambda: snn.LeakyParallel(4, 6)])
def test_a_neuron_with_input_weights_of_its_own_is_not_called_recurrent(make):
    layer = HiddenLayer("a", neuron := make(), "a", neuron)
    assert explain_not_rebuilt(layer, [layer]) == f"the rows of a {type(neuron).__name__} can't be replaced"


@pytest.mark.parametrize("hidden", ["rescale", "reconstruct"])
def test_one_neuron_twice(hidden):
    net = Deep()
    net.lif0 = net.lif1
    report = convex_init_(net, batches(120), hidden=hidden, strength=1e-2)
    assert f"its neuron runs {2 * STEPS} times in {STEPS} steps" in report.layers[0].reason
