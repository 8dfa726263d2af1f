import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.errors import NetworkError, UnsupportedModuleError
from snn_recon_plugin.networks.libraries import is_neuron, libraries_in, library_of, reset_states, takes_sequences

STEPS, INPUTS, HIDDEN, CLASSES, SAMPLES = 6, 16, 24, 4, 160
LIBRARY = library_of(neuron.LIFNode())
INTEGRATORS = pytest.mark.skipif(not hasattr(neuron, "NonSpikingLIFNode"), reason="a release without integrators")


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


def data():
    labels = torch.arange(SAMPLES) % CLASSES
    return 3 * nn.functional.one_hot(labels, INPUTS).float() + torch.rand(SAMPLES, INPUTS), labels


def of_pixels(*layers):
    return lambda: nn.Sequential(*layers[0](), layer.Linear(HIDDEN, CLASSES), *(made() for made in layers[1:]))


def dense(hidden=neuron.LIFNode):
    return layer.Linear(INPUTS, HIDDEN), hidden()


def normalised():
    return layer.Linear(INPUTS, HIDDEN, bias=False), layer.BatchNorm1d(HIDDEN), neuron.ParametricLIFNode(), layer.Dropout(0.2)


def convolutional():
    images = layer.Conv2d(1, 6, 3, padding=1, bias=False), layer.BatchNorm2d(6), neuron.IFNode()
    return nn.Unflatten(-1, (1, 4, 4)), *images, layer.MaxPool2d(2, 2), layer.Flatten()


def contained():
    images = layer.SeqToANNContainer(nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
    return nn.Unflatten(-1, (1, 4, 4)), images, neuron.IFNode(), layer.SeqToANNContainer(nn.MaxPool2d(2, 2), nn.Flatten())


def recurrent():
    return layer.Linear(INPUTS, HIDDEN), layer.LinearRecurrentContainer(neuron.LIFNode(), HIDDEN, HIDDEN), layer.Dropout(0.2)


NETS = {  # builder, and the step modes that it has
    "dense": (of_pixels(dense, neuron.LIFNode), "sm"),
    "learned time constants, soft reset": (of_pixels(dense, lambda: neuron.ParametricLIFNode(v_reset=None)), "sm"),
    "batch norm and dropout": (of_pixels(normalised, neuron.LIFNode), "s"),
    "convolutions": (of_pixels(convolutional, neuron.IFNode), "sm"),
    "convolutions, a Linear at the end": (of_pixels(convolutional), "sm"),
    "layers in containers": (of_pixels(contained, neuron.LIFNode), "m"),
    "a recurrent container": (of_pixels(recurrent, neuron.LIFNode), "sm"),
}


def run(net, inputs, mode):
    """The user's own loop: scores are rates."""
    functional.reset_net(net)
    repeated = inputs.expand(STEPS, *inputs.shape)
    return net(repeated) if mode == "m" else torch.stack([net(step) for step in repeated])


@pytest.mark.parametrize("hidden", ["rescale", "reconstruct"])
@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name, (_, modes) in NETS.items() for mode in modes])
def test_a_net_is_solved_as_its_own_loop_shows(name, mode, hidden):
    torch.manual_seed(0)
    net, (inputs, labels) = NETS[name][0](), data()
    functional.set_step_mode(net, mode)
    loader = DataLoader(TensorDataset(inputs, labels), 50)  # a last batch of another size
    report = convex_init_(net, loader, forward=over_time(STEPS), hidden=hidden, readout="auto")
    rebuilt = hidden == "reconstruct" and not any(isinstance(module, nn.Conv2d) for module in net.modules())
    assert [layer.witnesses is not None for layer in report.layers] == [rebuilt]
    with torch.no_grad():
        scores = run(net.eval(), inputs, mode).mean(0)
    own = float((scores.argmax(1) == labels).float().mean())
    assert own == pytest.approx(report.accuracy_written, abs=1e-6)
    assert own > 0.9


@INTEGRATORS
@pytest.mark.parametrize(
    ("decode", "kind", "exactness"),
    [
        (None, "membrane_mean", "exact"),
        ("mean-mem", "membrane_mean", "exact"),
        ("last_mem", "membrane_last", "exact"),
        ("max-mem", "membrane_max", "majorised"),
    ],
)
def test_integrators_and_what_they_decode(decode, kind, exactness):
    net, (inputs, labels) = of_pixels(dense, lambda: neuron.NonSpikingLIFNode(decode=decode))(), data()
    functional.set_step_mode(net, "m")
    report = convex_init_(net, [(inputs, labels)], forward=over_time(STEPS))
    assert (report.readout.kind, report.exactness.label) == (kind, exactness)
    assert report.accuracy_written > 0.9


@INTEGRATORS
def test_the_largest_magnitude_of_a_membrane_is_refused():
    net, batch = of_pixels(dense, lambda: neuron.NonSpikingLIFNode(decode="max-abs-mem"))(), data()
    functional.set_step_mode(net, "m")
    with pytest.raises(NetworkError, match="membrane_max"):
        convex_init_(net, [batch], forward=over_time(STEPS))
