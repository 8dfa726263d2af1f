"""The contract of a library: what breaks it is found, and what all libraries share."""

from dataclasses import replace

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.networks import libraries
from snn_recon_plugin.networks.calls.forward import over_time
from snn_recon_plugin.networks.libraries import is_neuron, libraries_in, library_of, list_for_message, reset_states
from snn_recon_plugin.networks.libraries.conformance import check_library
from snn_recon_plugin.networks.libraries.snntorch import SnnTorch, SnnTorchStepper
from snn_recon_plugin.networks.structure.inspect import inspect_network

from ..nets import Nested

SNNTORCH = SnnTorch()


def run_own_code(self, neuron):
    """No stepper."""


def louder(self, neuron, currents, visit):
    SNNTORCH._simulate(neuron, 1.1 * currents, visit)


def higher(self, neuron, currents, visit):
    SNNTORCH._simulate(neuron, currents, lambda spikes, membrane: visit(spikes, membrane + 1))


def by_calls(self, neuron, currents, visit):
    for current in currents:
        visit(*neuron(current))


def forgets(self, neuron, currents, visit, *, recurrent=None):
    SNNTORCH.each_step(neuron, currents, visit, recurrent=recurrent)
    neuron.mem = None


class Late(SnnTorchStepper):
    def scan(self, x, states, steps, shared):
        spikes, membranes = super().scan(x, states, steps, shared)
        return spikes.roll(1, 0), membranes


BROKEN = [  # message, method and what replaces it
    ("reset does not bring", "reset", lambda self, module: None),
    ("no threshold", "unit_thresholds", lambda self, neuron: None),
    ("dynamics give other membranes", "dynamics", lambda self, neuron: SNNTORCH.dynamics(snn.Leaky(beta=0.7))),
    ("spikes where dynamics are below", "dynamics", lambda self, neuron: replace(SNNTORCH.dynamics(neuron), threshold=1.2)),
    ("other spikes alone", "_simulate", louder),
    ("other membranes alone", "_simulate", higher),
    ("calls the user's hooks", "_simulate", by_calls),
    ("changed by a run", "each_step", forgets),
    ("other spikes alone", "_stepper", lambda self, neuron: Late(neuron, ("mem",))),
]


@pytest.mark.parametrize(("message", "method", "broken"), BROKEN)
def test_whatever_breaks_the_contract_is_found(message, method, broken, monkeypatch):
    monkeypatch.setattr(libraries, "LIBRARIES", [type("Wrong", (SnnTorch,), {"_stepper": run_own_code, method: broken})()])
    with pytest.raises(AssertionError, match=f"a neuron.*{message}"):
        check_library(libraries.LIBRARIES[0], {"a neuron": snn.Leaky(beta=0.8)}, 2 * torch.randn(5, 8, 6))


def test_messages_name_the_libraries(inputs):
    titles, examples = list_for_message(lambda library: library.title), list_for_message(lambda library: library.example)
    assert titles == "snnTorch, Norse or SpikingJelly"
    assert examples.startswith("snn.Leaky(beta=0.9), norse.LIFCell() or ")
    with pytest.raises(UnsupportedModuleError, match=f"no spiking neuron of {titles}") as error:
        inspect_network(nn.Sequential(nn.Linear(10, 3)), inputs, over_time(5))
    assert examples in error.value.fix


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
