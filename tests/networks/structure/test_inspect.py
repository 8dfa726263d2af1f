from dataclasses import dataclass
from functools import partial

import norse.torch as norse
import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_, hidden_init_
from snn_recon_plugin.errors import NetworkError, ReadoutNotFoundError, UnsupportedModuleError
from snn_recon_plugin.networks.calls.forward import over_time, plain_forward
from snn_recon_plugin.networks.private.quiet import quiet
from snn_recon_plugin.networks.private.workbench import private_copy
from snn_recon_plugin.networks.structure.inspect import Inspections, inspect_hidden, inspect_network
from snn_recon_plugin.networks.structure.layers import as_typed

from ...helpers import assert_as_before, snapshot, train_data
from ...nets import Recurrent, TwoHeads
from ...user_nets.small_idioms import CATALOGUE
from ..nets import CLASSES, HIDDEN, INPUTS, Dense, Logits, Nested, readout_neuron, sequential
from ..reading import assert_says

STEPS = 6
DENSE = [("fc1", "lif1"), ("fc2", "lif2")], ("fc3", "lif3")


def names(net_map):
    readout = net_map.readout
    return [(layer.name, layer.neuron_name) for layer in net_map.hidden], (readout.name, readout.neuron_name)


class Late(Dense):
    """Each layer gets the spikes of the step before."""

    def forward(self, x):
        self.z1 = self.z2 = x.new_zeros(len(x), 16)
        return super().forward(x)

    def step(self, x):
        out = self.lif3(self.fc3(self.z2))[0]
        self.z2 = self.lif2(self.fc2(self.z1))[0]
        self.z1 = self.lif1(self.fc1(x))[0]
        return out


class Unused(TwoHeads):
    def __init__(self):
        super().__init__(inputs=INPUTS)

    def forward(self, x):
        return super().forward(x)[0]


class Last(Logits):
    """Reads out the spikes of the last step alone; its neuron keeps its state."""

    def __init__(self):
        super().__init__()
        self.lif = snn.Leaky(beta=0.9, init_hidden=True)

    def forward(self, x):
        self.lif.reset_mem()
        for _ in range(STEPS):
            spikes = self.lif(self.fc1(x))
        return self.fc2(spikes)


class Lists(nn.Module):
    def __init__(self):
        super().__init__()
        self.ls = nn.ModuleList([snn.LinearLeaky(0.9, 10, 6), snn.LinearLeaky(0.9, 6, 3, output=False)])

    def forward(self, x):
        return self.ls[1](self.ls[0](x.expand(5, *x.shape))[0])


def driven(gain):
    net = Dense()
    with torch.no_grad():
        for layer in (net.fc1, net.fc2):
            layer.weight.mul_(gain)
            layer.bias.fill_(gain)
    return net


def recurrent():
    return Recurrent(nn.Linear(INPUTS, HIDDEN), snn.RLeaky(beta=0.9, linear_features=HIDDEN), HIDDEN, over=lambda x: [x] * STEPS)


def with_matrix_state():
    return nn.Sequential(nn.Linear(10, 4), snn.AssociativeLeaky.from_num_spiking_neurons(4, 4), nn.Linear(4, 3))


def neuron_first():
    neurons = [snn.Leaky(beta=0.9, init_hidden=True), snn.Leaky(beta=0.9, init_hidden=True, output=True)]
    return nn.Sequential(neurons[0], nn.Linear(10, 3), neurons[1])


def expanded(net, x):
    return net(x.expand(STEPS, *x.shape))


FOUND = {  # net, forward, layers with their neurons, steps, layout
    "explicit loop": (Dense, plain_forward, DENSE, 6, "steps"),
    "silent": (lambda: driven(0.0), plain_forward, DENSE, 6, "steps"),
    "saturated": (lambda: driven(1e3), plain_forward, DENSE, 6, "steps"),
    "spikes handed on a step late": (Late, plain_forward, DENSE, 6, "steps"),
    "random encoding": (lambda: Dense(encode=lambda x: torch.bernoulli(torch.sigmoid(x))), plain_forward, DENSE, 6, "steps"),
    "stepped from outside": (sequential, over_time(4), ([("1", "2")], ("3", "4")), 4, "steps"),
    "a single step": (sequential, over_time(1), ([("1", "2")], ("3", "4")), 1, "steps"),
    "nested": (Nested, over_time(3), ([("body.1", "body.2")], ("body.3", "body.4")), 3, "steps"),
    "recurrent": (recurrent, plain_forward, ([("fc1", "lif1")], ("fc2", "lif2")), 6, "steps"),
    "plain linear readout": (Logits, plain_forward, ([("fc1", "lif")], ("fc2", None)), 6, "steps"),
    "called once": (lambda: Logits("time_first"), plain_forward, ([("fc1", "lif")], ("fc2", None)), 6, "time_first"),
    "head that goes nowhere": (Unused, plain_forward, ([("fc1", "lif1")], ("fc2", "lif2")), 8, "steps"),
    "neuron on the inputs": (neuron_first, over_time(3), ([], ("1", "2")), 3, "steps"),
    "matrix as the state": (with_matrix_state, expanded, ([("0", "1")], ("2", None)), STEPS, "time_first"),
    "Linear inside neurons": (Lists, plain_forward, ([("ls.0.linear", "ls.0")], ("ls.1.linear", "ls.1")), 5, "folded"),
}


@pytest.mark.parametrize("name", FOUND)
def test_layers_steps_and_layout(name, inputs):
    make, forward, layers, steps, layout = FOUND[name]
    found = inspect_network(make(), inputs, forward)
    assert (names(found), found.num_steps, found.layout) == (layers, steps, layout)
    assert found.library == "snntorch"


def test_the_map_holds_the_modules_and_the_net_is_as_before(inputs):
    net = Dense()
    net(inputs)
    before = snapshot(net)
    found = inspect_network(net, inputs, plain_forward)
    assert (found.readout.module, found.readout.neuron) == (net.fc3, net.lif3)
    assert (found.hidden[0].synapse, found.hidden[0].neuron) == (net.fc1, net.lif1)
    assert_as_before(net, before)


class FedBack(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(13, 3), snn.Leaky(beta=0.9)

    def forward(self, x):
        mem, spk = self.lif.reset_mem(), x.new_zeros(len(x), 3)
        for _ in range(4):
            spk, mem = self.lif(self.fc(torch.cat([x, spk], 1)), mem)
        return mem


def convolution_alone():
    return nn.Sequential(nn.Unflatten(1, (1, 10)), nn.Conv1d(1, 3, 10), nn.Flatten(), snn.Leaky(beta=0.9, output=True))


def three_axes():
    return nn.Sequential(nn.Linear(10, 4), nn.Unflatten(1, (2, 2)), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(2, 3))


def all_steps():
    return norse.SequentialState(nn.Linear(10, 4), norse.LIF(), nn.Linear(4, 3), norse.LIF())


def neuron_alone():
    return nn.Sequential(snn.Leaky(beta=0.9))


REFUSED = {  # net, forward, readout_layer, error and message
    "recurrent weights": (recurrent, plain_forward, "lif1.recurrent", ReadoutNotFoundError, "lif1.recurrent"),
    "a name, no Linear": (convolution_alone, over_time(3), "1", ReadoutNotFoundError, "leave readout_layer out"),
    "fed back": (FedBack, plain_forward, None, ReadoutNotFoundError, "no readout among the layers 'fc'"),
    "neurons alone": (neuron_alone, plain_forward, None, ReadoutNotFoundError, "no layer between the neurons of a Sequential"),
    "no time axis": (all_steps, plain_forward, None, NetworkError, "a time axis or a batch axis is missing"),
    "more axes": (three_axes, over_time(3), None, NetworkError, "called 3 times with inputs of shape [8, 2, 2]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name, inputs):
    make, forward, wanted, kind, words = REFUSED[name]
    with pytest.raises(kind) as error:
        inspect_network(make(), inputs, forward, readout_layer=wanted)
    assert_says(error.value, words)


@pytest.mark.parametrize(
    ("first", "name"),
    [
        (lambda: [nn.LazyLinear(3)], r"0\.weight"),
        (lambda: [nn.Linear(10, 3), nn.LazyBatchNorm1d(affine=False)], r"1\.running_mean"),
    ],
)
def test_lazy_nets_are_refused_before_their_first_call(inputs, first, name):
    lazy = nn.Sequential(*first(), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(3, 2), readout_neuron(init_hidden=True))
    with pytest.raises(UnsupportedModuleError, match=rf"'{name}' of a lazy layer"):
        convex_init_(lazy, [(inputs, torch.arange(8) % 2)], forward=over_time(2), progress=False)
    assert over_time(2)(lazy, inputs).shape == (2, 8, 2)


def test_a_readout_after_the_loop_is_no_forgotten_loop():
    inputs = 5 * torch.rand(40, 10)
    found = inspect_network(Last(), inputs, plain_forward)
    assert (names(found), found.num_steps, found.layout) == (([("fc1", "lif")], ("fc2", None)), 1, "steps")
    report = convex_init_(Last(), [(inputs, torch.arange(40) % 3)], hidden="keep")
    assert report.exactness.label == "exact"
    assert report.certificate.reached


def test_the_readout_names_its_parameters(inputs):
    net = CATALOGUE["Norse, LILinearCell"].build("LI")
    readout = inspect_network(net, inputs, plain_forward).readout
    assert (readout.module, readout.neuron, readout.weight_name, readout.bias_name) == (net.out, net.out, "input_weights", None)
    assert (readout.in_features, readout.out_features) == (HIDDEN, CLASSES)
    assert readout.weight is net.out.input_weights
    assert readout.bias is None
    without = sequential()
    without[3] = nn.Linear(HIDDEN, CLASSES, bias=False)
    bare = inspect_network(without, inputs, over_time(3)).readout
    assert (bare.weight_name, bare.bias_name, bare.bias) == ("weight", None, None)


# -- hidden layers of any net ----------------------------------------------------------------------------------------------
def test_hidden_layers_are_found_without_a_readout_and_with_the_norms_before_neurons():
    torch.manual_seed(0)
    leaky = partial(snn.Leaky, beta=0.9, init_hidden=True)
    layers = nn.Linear(64, 20), nn.BatchNorm1d(20), leaky(), nn.LayerNorm(20), nn.Linear(20, 20), leaky(), nn.Linear(20, 4), leaky()
    net = nn.Sequential(*layers, nn.Softmax(1)).eval()
    with quiet(net, seed=0):
        found = inspect_hidden(net, train_data(8)[0], over_time(5))
    assert [(layer.name, layer.neuron_name, layer.norm) for layer in found] == [("0", "2", net[1]), ("4", "5", None)]


class OneNeuron(nn.Module):
    """One neuron, with states of its own for each of two layers of other sizes."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.lif = nn.Linear(64, 20), nn.Linear(20, 16), nn.Linear(16, 10), snn.Leaky(beta=0.9)

    def forward(self, x):
        first, second, scores = self.lif.reset_mem(), self.lif.reset_mem(), []
        for _ in range(4):
            spk, first = self.lif(3 * self.fc1(x), first)
            spk, second = self.lif(3 * self.fc2(spk), second)
            scores.append(self.fc3(spk))
        return torch.stack(scores).mean(0)


def test_layers_of_several_sizes_that_share_a_neuron_stay_as_they_are():
    net, data = OneNeuron(), [train_data(200)]
    assert convex_init_(net, data, progress=False).layers == ()
    with pytest.raises(NetworkError, match="give each layer its own neuron"):
        hidden_init_(net, data)


# -- inspections that are kept for batches of the same shapes -------------------------------------------------------------------
NET = nn.Linear(3, 2)


@dataclass(frozen=True, eq=False)
class Found:
    layer: nn.Module = NET
    lasts: bool = True


def test_what_was_found_in_one_copy_has_the_modules_of_another_one():
    net = nn.Sequential(nn.Linear(3, 2))
    inspections, first, second = Inspections(net), private_copy(net), private_copy(net)
    inputs = torch.zeros(32, 3)
    assert inspections.find(first, inputs, 32, lambda: Found(first[0])).layer is first[0]
    assert inspections.find(second, inputs, 32, lambda: pytest.fail("inspected again")).layer is second[0]
    assert inspections.find(net, inputs, 32, lambda: pytest.fail("inspected again")).layer is net[0]


@pytest.mark.parametrize(
    ("first", "same", "samples", "other"),
    [
        (torch.zeros(32, 5, 3), torch.ones(64, 5, 3), 64, torch.zeros(32, 6, 3)),
        (torch.zeros(32, 5, 3), (torch.ones(64, 5, 3),), 64, (torch.zeros(32, 6, 3),)),
        (np.zeros((5, 32, 3)), np.ones((5, 32, 3)), 32, np.zeros((6, 32, 3))),
    ],
    ids=["other number of samples", "in a tuple", "arrays"],
)
def test_batches_of_other_steps_are_inspected_anew(first, same, samples, other):
    inspections = Inspections(NET)
    found = inspections.find(NET, first, 32, Found)
    assert inspections.find(NET, same, samples, Found) is found
    assert inspections.find(NET, other, 32, Found) is not found
    assert inspections.find(NET, first, 32, Found) is found


def test_a_scale_that_training_changes_is_measured_again():
    inspections, found = Inspections(NET), Found(lasts=False)
    assert inspections.find(NET, torch.zeros(32, 3), 32, lambda: found) is found
    assert inspections.find(NET, torch.zeros(32, 3), 32, Found) is not found


@pytest.mark.parametrize(("name", "typed"), [("", "net"), ("fc", "net.fc"), ("layers.2.fc", "net.layers[2].fc")])
def test_a_name_as_it_is_typed(name, typed):
    assert as_typed(name) == typed
