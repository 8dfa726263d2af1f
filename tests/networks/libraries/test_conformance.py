"""Every library keeps the contract with each of its neurons."""

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, neuron

from snn_recon_plugin.networks.libraries import LIBRARIES, is_neuron
from snn_recon_plugin.networks.libraries.conformance import check_library

STEPS, BATCH, UNITS = 7, 5, 4
BY_NAME = {library.name: library for library in LIBRARIES}

CELLS = {
    "leaky": lambda **o: snn.Leaky(beta=0.8, **o),
    "leaky at once": lambda **o: snn.Leaky(beta=0.8, reset_delay=False, **o),
    "leaky zero": lambda **o: snn.Leaky(beta=0.8, reset_mechanism="zero", **o),
    "leaky none": lambda **o: snn.Leaky(beta=0.8, reset_mechanism="none", threshold=0.5, **o),
    "leaky vector": lambda **o: snn.Leaky(beta=torch.rand(UNITS), learn_beta=True, **o),
    "synaptic": lambda **o: snn.Synaptic(alpha=0.7, beta=0.8, **o),
    "synaptic zero": lambda **o: snn.Synaptic(alpha=0.7, beta=0.8, reset_mechanism="zero", **o),
    "alpha": lambda **o: snn.Alpha(alpha=0.8, beta=0.6, **o),
    "lapicque": lambda **o: snn.Lapicque(beta=0.8, **o),
    "recurrent": lambda **o: snn.RLeaky(beta=0.8, linear_features=UNITS, **o),
    "recurrent synaptic": lambda **o: snn.RSynaptic(alpha=0.7, beta=0.8, linear_features=UNITS, **o),
    "recurrent, one to one": lambda **o: snn.RLeaky(beta=0.8, all_to_all=False, **o),
}
SEQUENCES = {
    "state": lambda **o: snn.StateLeaky(beta=0.8, channels=UNITS, **o),
    "with a Linear": lambda **o: snn.LinearLeaky(0.8, UNITS, UNITS, **o),
}
OTHER_CONSTANTS = norse.LIFParameters(v_th=torch.tensor(0.4), v_leak=torch.tensor(0.1), v_reset=torch.tensor(-0.1))
NORSES = {
    "LIFCell of other constants": lambda: norse.LIFCell(OTHER_CONSTANTS),
    "LIF of other constants": lambda: norse.LIF(norse.LIFParameters(v_leak=torch.tensor(0.1), v_reset=torch.tensor(-0.2))),
    "LILinearCell": lambda: norse.LILinearCell(UNITS, UNITS),
    "LIFRecurrentCell": lambda: norse.LIFRecurrentCell(UNITS, UNITS),
    "LIFRecurrent": lambda: norse.LIFRecurrent(UNITS, UNITS),
    "autapses": lambda: norse.LIFRecurrentCell(UNITS, UNITS, autapses=True),
    **{
        name: getattr(norse, name)
        for name in (
            *("LIFCell", "LICell", "LIFBoxCell", "LIBoxCell", "IAFCell", "LSNNCell", "LIFRefracCell", "LIFExCell"),
            *("LIF", "LI", "IAF", "LSNN"),
        )
    },
}
NODES = {
    "IFNode, below 0": lambda: neuron.IFNode(v_reset=-0.2, v_threshold=0.7),
    "LIFNode by its threshold": lambda: neuron.LIFNode(v_reset=None, v_threshold=0.7),
    "LIFNode, inputs do not decay": lambda: neuron.LIFNode(tau=3.0, decay_input=False, v_reset=-0.2),
    "LIFNode, all membranes": lambda: neuron.LIFNode(store_v_seq=True),
    "ParametricLIFNode by its threshold": lambda: neuron.ParametricLIFNode(init_tau=1.5, v_reset=None),
    **{
        name: getattr(neuron, name)
        for name in (
            *("IFNode", "LIFNode", "ParametricLIFNode", "QIFNode", "EIFNode", "IzhikevichNode", "KLIFNode", "CUBALIFNode"),
            *("SimpleIFNode", "HalfThresholdIFNode", "ILIFNode", "TernaryLIFNode", "ComplementaryLIFNode", "RAFNode"),
            *("NonSpikingIFNode", "NonSpikingLIFNode"),
        )
        if hasattr(neuron, name)  # an older release lacks some
    },
}
if hasattr(neuron, "NonSpikingLIFNode"):  # an older release can't build a LIAFNode
    NODES["LIAFNode"] = lambda: neuron.LIAFNode(torch.tanh, False)


@pytest.mark.parametrize("options", [{}, {"init_hidden": True}, {"init_hidden": True, "output": True}], ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_snntorch(name, options):
    refused = check_library(BY_NAME["snntorch"], {name: CELLS[name](**options)}, 2 * torch.randn(STEPS, BATCH, UNITS))
    assert bool(refused) == (name == "recurrent, one to one")


@pytest.mark.parametrize("output", [True, False])
@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_of_snntorch(name, output):
    assert not check_library(BY_NAME["snntorch"], {name: SEQUENCES[name](output=output)}, 2 * torch.randn(STEPS, BATCH, UNITS))


@pytest.mark.parametrize("name", NORSES)
def test_norse(name):
    neuron = NORSES[name]()
    assert is_neuron(neuron)
    assert not check_library(BY_NAME["norse"], {name: neuron}, 25 * torch.randn(STEPS, BATCH, UNITS))


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("name", NODES)
def test_spikingjelly(name, mode):
    node = NODES[name]()
    functional.set_step_mode(node, mode)
    assert not check_library(BY_NAME["spikingjelly"], {name: node}, 2 * torch.randn(STEPS, BATCH, UNITS) + 0.5)
