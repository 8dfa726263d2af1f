"""Every network that can't be initialised gives an error with the fix, and is left as before."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.errors import (
    AmbiguousReadoutError,
    CaptureError,
    NetworkError,
    OptionError,
    ReadoutNotFoundError,
    ReconstructionError,
    UnsupportedModuleError,
    WriteError,
)

from ..helpers import (
    CLASSES,
    HIDDEN,
    PIXELS,
    Loop,
    TwoHeads,
    assert_as_before,
    batches,
    loop_net,
    refused,
    sequential_net,
    snapshot,
)

pytestmark = pytest.mark.usefixtures("one_rate")


class NoReadout(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.lif = nn.Conv2d(1, 2, 3), snn.Leaky(beta=0.9)

    def forward(self, x):
        mem, record = self.lif.reset_mem(), []
        for _ in range(4):
            _, mem = self.lif(self.conv(x.view(-1, 1, 8, 8)), mem)
            record.append(mem)
        return torch.stack(record)


def test_no_readout():
    refused(NoReadout(), batches(200), ReadoutNotFoundError, "no readout", "'conv' (Conv2d)", "nn.Linear")


def test_several_readouts():
    words = ("2 layers that could be the readout", "'fc2' (Linear)", "'fc3' (Linear)", 'readout_layer="fc2"')
    refused(TwoHeads(), batches(200), AmbiguousReadoutError, *words)


@pytest.mark.parametrize("name", ["fc1", "nowhere", "lif2"])
def test_a_readout_layer_that_is_none(name):
    words = (f"readout_layer={name!r}", "'fc2' (Linear)", 'readout_layer="fc2"')
    refused(loop_net(), batches(200), ReadoutNotFoundError, *words, readout_layer=name)


class Foreign(nn.Module):
    def __init__(self, neuron):
        super().__init__()
        self.fc1, self.lif1, self.fc2 = nn.Linear(PIXELS, HIDDEN), neuron, nn.Linear(HIDDEN, CLASSES)
        self.register_buffer("extra", torch.ones(2))

    def forward(self, x):
        return self.fc2(self.lif1(self.fc1(x)))


def refused_foreign(net, *words):
    before = snapshot(net)
    with pytest.raises(UnsupportedModuleError) as caught:
        convex_init_(net, batches(200))
    assert_as_before(net, before)
    assert all(word in str(caught.value) for word in (*words, "snnTorch"))


def test_a_net_of_no_spiking_neurons():
    refused_foreign(Foreign(nn.ReLU()), "ReLU")


def test_a_net_of_somebodys_own_spiking_neurons():
    class Spike(nn.Module):
        def forward(self, current):
            return (current > 1).float()

    refused_foreign(Foreign(Spike()), "Spike")


@pytest.mark.parametrize("net", [None, 3, lambda x: x, nn.Linear], ids=["None", "int", "function", "class"])
def test_what_is_no_network(net):
    with pytest.raises(ReconstructionError, match=r"nn\.Module"):
        convex_init_(net, batches(200))


def test_a_reference_solver_for_outputs_with_a_filter_each():
    output = snn.Leaky(beta=torch.linspace(0.1, 0.9, CLASSES), reset_mechanism="none")
    options = {"solver": "clarabel", "hidden": "keep", "strength": 1e-2}
    refused(loop_net(output=output), batches(200), OptionError, "separate temporal filters", "solver='auto'", **options)


def test_weights_that_are_not_finite():
    net = loop_net()
    with torch.no_grad():
        net.fc1.weight[0, 0] = float("nan")
    refused(net, batches(200), NetworkError, "'fc1.weight'")


def test_a_readout_that_is_computed_from_another():
    net = loop_net()
    torch.nn.utils.parametrizations.orthogonal(net.fc2)
    refused(net, batches(200), UnsupportedModuleError, "fc2.weight", "parametriz", hidden="keep", strength=1e-3)


def test_a_tied_readout():
    net = loop_net(hidden=10, inputs=PIXELS)
    net.other = nn.Linear(10, CLASSES)
    net.other.weight = net.fc2.weight
    refused(net, batches(200), UnsupportedModuleError, "tied", "other.weight", hidden="keep", strength=1e-3)


@pytest.mark.parametrize("forward", [over_time(4), lambda net, inputs: inputs], ids=["time loop twice", "no layer"])
def test_a_forward_that_does_not_fit(forward):
    refused(loop_net(), batches(200), NetworkError, hidden="keep", forward=forward)


def test_a_missing_forward():
    refused(sequential_net(), batches(200), ReconstructionError, hidden="keep")


@pytest.mark.parametrize("hidden", ["keep", "rescale"])
def test_a_network_that_crashes(hidden):
    class Crashing(Loop):
        calls = 0

        def forward(self, x):
            type(self).calls += 1
            if self.calls > 12:
                raise ZeroDivisionError("in the user's forward")
            return super().forward(x)

    error = refused(Crashing(), batches(600, 20), NetworkError, "ZeroDivisionError: in the user's forward", hidden=hidden)
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_batches_of_unequal_steps_with_scores_at_each():
    net = loop_net()

    def forward(net, inputs):
        net.steps = 4 if len(inputs) == 50 else 5
        return net(inputs)

    words = ("batches of 5 and of 4 time steps", "membrane_per_step", "pad all batches")
    refused(net, batches(250), CaptureError, *words, hidden="keep", forward=forward, readout="membrane_per_step")


_NOISE = torch.Generator().manual_seed(0)  # out of reach of whoever seeds the global generators


class Noisy(Loop):
    """A network that is not deterministic."""

    def forward(self, x):
        return super().forward(x + 0.5 * torch.randn(x.shape, generator=_NOISE))


@pytest.mark.parametrize("hidden", ["keep", "rescale"])
def test_a_network_that_is_not_deterministic(hidden):
    torch.manual_seed(0)
    refused(Noisy(), batches(200), NetworkError, "other values each time", "deterministic", hidden=hidden, strength=1e-3)


def test_membranes_written_behind_torchs_back():
    """What a step left is then not what the next one begins with; the comparison of the net's own scores finds it."""

    class Behind(Loop):
        def forward(self, x):
            mem1, mem2, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), []
            for _ in range(self.steps):
                spikes, mem1 = self.lif1(self.fc1(x), mem1)
                mem1.data.mul_(0.5)
                _, mem2 = self.lif2(self.fc2(spikes), mem2)
                membranes.append(mem2)
            return torch.stack(membranes)

    net = Behind(steps=8)
    with torch.no_grad():
        net.fc1.weight.mul_(3)
    refused(net, batches(200), WriteError, "differ from those promised", hidden="keep", strength=1e-3)


# -- refused before a second batch is drawn ---------------------------------------------------------------------------------
