import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.errors import NetworkError, UnsupportedModuleError
from snn_recon_plugin.networks.libraries import is_neuron, libraries_in, library_of, reset_states, takes_sequences

from ...user_nets.record import SMALL
from ...user_nets.spikingjelly_nets import multi_step
from ...versions import needs_new_jelly
from ..reading import resolve

STEPS = SMALL.steps
LIBRARY = library_of(neuron.LIFNode())


def test_neurons_and_helpers():
    for helper in (layer.Linear(1, 1), layer.Dropout(), layer.LinearRecurrentContainer(nn.Identity(), 1, 1)):
        assert libraries_in(helper) == ["spikingjelly"]
        assert not is_neuron(helper)
    assert is_neuron(type("Mine", (neuron.LIFNode,), {})())


def test_a_container_alone_shows_that_a_call_takes_all_steps():
    inside = layer.LinearRecurrentContainer(neuron.LIFNode(), 2, 2, step_mode="m")
    assert takes_sequences(nn.Sequential(inside))
    assert not LIBRARY.takes_sequences(inside.sub_module)
    assert takes_sequences(layer.SeqToANNContainer(nn.Linear(2, 2)))
    assert not takes_sequences(nn.Sequential(layer.Linear(2, 2), neuron.LIFNode()))


def test_membranes_of_all_steps_are_seen_if_they_are_stored():
    currents = 2 * torch.rand(STEPS, 5, 3)
    hidden, stored = neuron.LIFNode(step_mode="m"), neuron.LIFNode(step_mode="m", store_v_seq=True)
    assert LIBRARY.membrane(hidden, hidden(currents)) is None
    assert torch.equal(LIBRARY.membrane(stored, stored(currents)), LIBRARY.run(stored, currents).membranes)
    assert stored.store_v_seq


def test_helpers_that_keep_a_state_are_reset():
    net = nn.Sequential(layer.LinearRecurrentContainer(neuron.LIFNode(), 3, 3), layer.Dropout())
    net(torch.rand(5, 3))
    reset_states(net)
    assert net[0].y is None
    assert net[1].mask is None
    net(torch.rand(6, 3))  # a state of another batch would not fit


def test_other_neurons_are_refused_alone():
    other = type("Other", (nn.Module,), {"__module__": "spikingjelly.activation_based.neuron"})()
    for ask in (lambda: LIBRARY.run(other, torch.rand(2, 1, 1)), lambda: LIBRARY.dynamics(other)):
        with pytest.raises(UnsupportedModuleError, match="Other"):
            ask()


@needs_new_jelly
def test_the_largest_magnitude_of_a_membrane_is_refused(inputs):
    with pytest.raises(NetworkError, match="membrane_max"):
        resolve(multi_step("max-abs-mem", SMALL), inputs, forward=over_time(STEPS))


def test_memories_that_a_refused_forward_has_reset_are_put_back():
    net, inputs = multi_step("LIF"), torch.rand(STEPS, 20, 64)
    net(inputs)
    membrane = net[1].v
    own = net.forward

    def fresh(x):
        functional.reset_net(net)
        return own(x)

    net.forward = fresh
    with pytest.raises(NetworkError, match="is a function that holds the net"):
        convex_init_(net, [(inputs, torch.arange(20) % 10)])
    assert net[1].v is membrane
