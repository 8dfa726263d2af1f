"""The contract is enough: a library of one file is read, solved, rebuilt and named in messages; and what all libraries share."""

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.networks import libraries
from snn_recon_plugin.networks.libraries import is_neuron, libraries_in, library_of, list_for_message, reset_states
from snn_recon_plugin.networks.libraries.conformance import check_library
from snn_recon_plugin.networks.libraries.library import Synapse
from snn_recon_plugin.networks.libraries.stepper import Call, Stepper
from snn_recon_plugin.networks.readout.resolve import resolve_readout
from snn_recon_plugin.networks.structure.inspect import inspect_network

from ..nets import Nested
from .jelly import Jelly, Mask, Reading, Spiking

STEPS, INPUTS, HIDDEN, CLASSES, SAMPLES = 5, 6, 12, 3, 60
NEURONS = {
    "one step": Spiking(),
    "all steps": Spiking("m"),
    "by its threshold": Spiking(subtract=True, threshold=0.7, tau=1.5),
    "a reading": Reading(),
    "readings of all steps": Reading("m"),
    "a net": nn.Sequential(Mask(), nn.Linear(INPUTS, HIDDEN), Spiking(threshold=0.2), nn.Linear(HIDDEN, CLASSES), Reading()),
}


@pytest.fixture
def jelly(monkeypatch):
    monkeypatch.setattr(libraries, "LIBRARIES", [*libraries.LIBRARIES, Jelly()])
    return libraries.LIBRARIES[-1]


def make_net(mode="s"):
    layers = [nn.Linear(INPUTS, HIDDEN), Spiking(mode), Mask(mode), nn.Linear(HIDDEN, CLASSES), Reading(mode)]
    return nn.Sequential(*layers)


def data():
    labels = torch.arange(SAMPLES) % CLASSES
    return 3 * torch.eye(CLASSES).repeat(1, 2)[labels] + 0.3 * torch.rand(SAMPLES, INPUTS), labels


@pytest.mark.parametrize("name", NEURONS)
def test_the_contract_is_kept(name, jelly):
    assert not check_library(jelly, {name: NEURONS[name]}, 2 * torch.randn(STEPS, 8, INPUTS))


def louder(self, neuron, currents, visit):
    Jelly._simulate(self, neuron, 1.1 * currents, visit)


def by_calls(self, neuron, currents, visit):
    self.reset(neuron)
    for current in currents:
        visit(neuron(current), neuron.state)


def forgets(self, neuron, currents, visit, *, recurrent=None):
    Jelly.each_step(self, neuron, currents, visit, recurrent=recurrent)
    neuron.state = None


class Late(Stepper):
    """Gives all spikes a step late."""

    def read(self, args):
        return Call(args[0], (torch.zeros_like(args[0]),))

    def scan(self, x, states, steps, shared):
        spikes = []
        Jelly()._simulate(Spiking(), x, lambda *step: spikes.append(step))
        fired, membranes = map(torch.stack, zip(*spikes, strict=True))
        return fired.roll(1, 0), (membranes,)

    held = left = answer = None


BROKEN = [  # message, method and what replaces it
    ("reset does not bring", "reset", lambda self, module: None),
    ("no threshold", "unit_thresholds", lambda self, neuron: None),
    ("dynamics give other membranes", "dynamics", lambda self, neuron: Jelly().dynamics(Spiking(tau=2.1))),
    ("spikes where dynamics are below", "dynamics", lambda self, neuron: Jelly().dynamics(Spiking(threshold=1.2))),
    ("other spikes alone", "takes_sequences", lambda self, neuron: True),
    ("other spikes alone", "_simulate", louder),
    ("other membranes alone", "membrane", lambda self, neuron, output: neuron.state + 1),
    ("calls the user's hooks", "_simulate", by_calls),
    ("changed by a run", "each_step", forgets),
    ("other spikes alone", "_stepper", lambda self, neuron: Late()),
]


@pytest.mark.parametrize(("message", "method", "broken"), BROKEN)
def test_whatever_breaks_the_contract_is_found(message, method, broken, monkeypatch):
    monkeypatch.setattr(libraries, "LIBRARIES", [type("Wrong", (Jelly,), {method: broken})()])
    with pytest.raises(AssertionError, match=f"one step.*{message}"):
        check_library(libraries.LIBRARIES[0], {"one step": Spiking()}, 2 * torch.randn(STEPS, 8, INPUTS))


@pytest.mark.parametrize("mode", ["s", "m"])
def test_a_net_is_read_and_solved(mode, jelly):
    net, (inputs, labels), forward = make_net(mode), data(), over_time(STEPS)
    net_map = inspect_network(net, inputs, forward)
    assert (net_map.library, net_map.num_steps) == ("jelly", STEPS)
    assert [layer.neuron_name for layer in net_map.hidden] == ["1"]
    assert net_map.hidden[0].weights == Synapse(net[0], "weight", "bias")
    assert resolve_readout(net, net_map, inputs, forward=forward).exactness == "exact"
    for hidden in ("rescale", "reconstruct"):
        solved = make_net(mode)
        report = convex_init_(solved, DataLoader(TensorDataset(inputs, labels), 25), forward=forward, hidden=hidden)
        assert report.certificate.relative_gap < 1e-2
        scores = forward(solved.eval(), inputs).mean(0)
        assert float((scores.argmax(1) == labels).float().mean()) > 0.9


def test_helpers_that_keep_a_state_are_reset(jelly):
    net = make_net()
    net(torch.rand(8, INPUTS))
    reset_states(net)
    assert all(module.state is None for module in net if not isinstance(module, nn.Linear))
    net(torch.rand(9, INPUTS))  # a mask of another batch would not fit


def test_messages_name_the_library(jelly):
    titles, examples = list_for_message(lambda library: library.title), list_for_message(lambda library: library.example)
    assert titles.startswith("snnTorch, Norse, ")
    assert titles.endswith(" or Jelly")
    assert examples.startswith("snn.Leaky(beta=0.9), norse.LIFCell(), ")
    with pytest.raises(UnsupportedModuleError, match=f"no spiking neuron of {titles}") as error:
        inspect_network(nn.Sequential(nn.Linear(INPUTS, CLASSES)), data()[0], over_time(STEPS))
    assert examples in error.value.fix


def test_without_the_library_a_net_is_refused():
    with pytest.raises(UnsupportedModuleError, match="no spiking neuron"):
        inspect_network(make_net(), data()[0], over_time(STEPS))


# -- all libraries ----------------------------------------------------------------------------------------------------------
def foreign(module_name, class_name="LIFCell"):
    return type(class_name, (nn.Module,), {"__module__": module_name})()


def test_libraries_and_neurons_by_the_names_of_their_classes():
    assert library_of(snn.Leaky(beta=0.9)).name == "snntorch"
    assert library_of(type("Mine", (snn.Leaky,), {})(beta=0.9)).name == "snntorch"
    assert library_of(foreign("norse.torch.module.lif")).name == "norse"
    both = nn.ModuleList([foreign("snntorch._layers.bntt"), snn.Leaky(beta=0.9), foreign("norse.torch.module.lif")])
    assert libraries_in(both) == ["norse", "snntorch"]
    assert libraries_in(nn.Sequential(nn.Linear(1, 1), foreign("snntorch_extras.lif"))) == []
    assert is_neuron(snn.LeakyParallel(1, 1))
    assert not is_neuron(foreign("snntorch._layers.bntt", "BatchNormTT1d"))
    assert not is_neuron(nn.ReLU())
    with pytest.raises(UnsupportedModuleError, match="a ReLU where a neuron was expected"):
        library_of(nn.ReLU())


def test_reset_reaches_nested_neurons_and_no_other_net(inputs):
    net, other = Nested(), Nested()
    net(inputs)
    other(inputs)
    kept = other.body[2].mem.clone()
    reset_states(net)
    assert not net.body[2].mem.any()
    assert not net.body[4].mem.any()
    assert torch.equal(other.body[2].mem, kept)
