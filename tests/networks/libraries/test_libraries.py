import subprocess
import sys

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.networks.libraries import is_neuron, libraries_in, library_of, reset_states

from ..nets import Nested


def foreign(module_name, class_name="LIFCell"):
    """A module of a class that claims to come from another library."""
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


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import torch
from torch import nn
from snn_recon_plugin.networks.calls.forward import over_time
from snn_recon_plugin.networks.readout.resolve import resolve_readout
from snn_recon_plugin.networks.structure.inspect import inspect_network
"""
SNNTORCH = """
import snntorch as snn
net = nn.Sequential(nn.Linear(4, 5), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(5, 3),
                    snn.Leaky(beta=0.9, init_hidden=True, output=True, reset_mechanism="none"))
"""
NORSE = """
import norse.torch as norse
net = norse.SequentialState(nn.Linear(4, 5), norse.LIFCell(), nn.Linear(5, 3), norse.LICell())
"""
SPIKINGJELLY = """
from spikingjelly.activation_based import layer, neuron
net = nn.Sequential(layer.Linear(4, 5), neuron.LIFNode(), layer.Linear(5, 3))
"""
READ = """
forward = over_time(4)
net_map = inspect_network(net, torch.rand(6, 4), forward)
assert resolve_readout(net, net_map, torch.rand(6, 4), forward=forward).exactness == "exact"
"""


@pytest.mark.slow  # `make alone` runs each library without the others
@pytest.mark.parametrize(
    ("library", "code"),
    [("", ""), ("snntorch", SNNTORCH + READ), ("norse", NORSE + READ), ("spikingjelly", SPIKINGJELLY + READ)],
    ids=["none", "snnTorch alone", "Norse alone", "SpikingJelly alone"],
)
def test_each_library_works_with_the_others_absent(library, code):
    blocked = {"snntorch", "norse", "spikingjelly"} - {library}
    subprocess.run([sys.executable, "-W", "ignore", "-c", BLOCKED.format(blocked=blocked) + code], check=True)
