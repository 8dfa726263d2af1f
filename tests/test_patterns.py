import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.errors import DataError, OptionError, UnsupportedModuleError
from snn_recon_plugin.patterns import weights_from_patterns

T, SAMPLES, INPUTS, NEURONS = 8, 30, 6, 4


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(T, SAMPLES, INPUTS, generator=generator)


def emitted(neuron, weight, bias, inputs):
    """Spikes of a feed-forward layer of ``neuron``, by the library's own loop."""
    currents = inputs @ weight.T + bias
    if isinstance(neuron, norse.LIF):
        return neuron(currents)[0].detach()
    spikes, state = [], neuron.reset_mem() if isinstance(neuron, snn.Leaky) else None
    for current in currents:
        spike, state = neuron(current, state)
        spikes.append(spike)
    return torch.stack(spikes).detach()


def leaky(**options):
    return snn.Leaky(beta=0.9, **options)


FORWARD = {
    "subtract": leaky,
    "zero": lambda: leaky(reset_mechanism="zero"),
    "none": lambda: leaky(reset_mechanism="none"),
    "high threshold": lambda: leaky(threshold=2.5),
    "LIFCell": norse.LIFCell,
    "LIF": norse.LIF,
}


@pytest.mark.parametrize("name", FORWARD)
def test_a_teachers_spikes_are_reproduced(name):
    neuron, inputs = FORWARD[name](), data()
    gain = 20.0 if "LIF" in name else 1.0
    generator = torch.Generator().manual_seed(1)
    teacher = gain * torch.randn(NEURONS, INPUTS, generator=generator), gain * 0.3 * torch.randn(NEURONS, generator=generator)
    patterns = emitted(neuron, *teacher, inputs)
    assert 0.05 < float(patterns.mean()) < 0.95
    found = weights_from_patterns(neuron, inputs, patterns)
    assert found.separable.all()
    assert float(found.mismatch.max()) == 0
    assert torch.equal(emitted(neuron, found.weight.float(), found.bias.float(), inputs), patterns)
    assert found.recurrent is None


def recurrent_teacher(kind, inputs):
    generator = torch.Generator().manual_seed(2)
    if kind == "RLeaky":
        layer = snn.RLeaky(beta=0.8, linear_features=NEURONS)
        with torch.no_grad():
            layer.recurrent.weight.copy_(0.7 * torch.randn(NEURONS, NEURONS, generator=generator))
            assert bool((layer.recurrent.bias != 0).all())  # left as it is, and made up for in the layer's bias
        currents = inputs @ torch.randn(INPUTS, NEURONS, generator=generator)
        spike, mem = layer.init_rleaky()
        spikes = []
        for current in currents:
            spike, mem = layer(current, spike, mem)
            spikes.append(spike)
        return layer, torch.stack(spikes).detach()
    layer = (norse.LIFRecurrent if kind == "LIFRecurrent" else norse.LIFRecurrentCell)(INPUTS, NEURONS)
    with torch.no_grad():
        layer.input_weights.copy_(20 * torch.randn(NEURONS, INPUTS, generator=generator))
        layer.recurrent_weights.copy_(10 * torch.randn(NEURONS, NEURONS, generator=generator)).fill_diagonal_(0)
    if kind == "LIFRecurrent":
        return layer, layer(inputs)[0].detach()
    spikes, state = [], None
    for value in inputs:
        spike, state = layer(value, state)
        spikes.append(spike)
    return layer, torch.stack(spikes).detach()


@pytest.mark.parametrize("kind", ["RLeaky", "LIFRecurrent", "LIFRecurrentCell"])
def test_a_recurrent_teachers_spikes_are_reproduced(kind):
    inputs = data()
    layer, patterns = recurrent_teacher(kind, inputs)
    kept = {name: value.clone() for name, value in layer.state_dict().items()}
    assert 0.05 < float(patterns.mean()) < 0.95
    found = weights_from_patterns(layer, inputs, patterns, bias=kind == "RLeaky")
    assert found.separable.all()
    assert float(found.mismatch.max()) == 0
    assert found.recurrent.shape == (NEURONS, NEURONS)
    if kind != "RLeaky":
        assert bool((found.recurrent.diagonal() == 0).all())
    for name, value in layer.state_dict().items():
        assert torch.equal(value, kept[name]), name


def test_patterns_that_no_weights_give_are_told_with_the_share_that_misses():
    inputs = torch.ones(2, 20, 1)
    patterns = torch.zeros(2, 20, 2)
    patterns[:, ::2, 0] = 1  # equal samples that should do different things
    patterns[:, :, 1] = 1
    found = weights_from_patterns(leaky(), inputs, patterns)
    assert found.separable.tolist() == [False, True]
    assert float(found.mismatch[0]) >= 0.25
    assert float(found.mismatch[1]) == 0


def test_the_seed_of_nothing_matters_and_the_neuron_is_left_alone():
    neuron, inputs = leaky(), data()
    patterns = (torch.rand(T, SAMPLES, 2, generator=torch.Generator().manual_seed(3)) < 0.3).float()
    before = neuron.mem.clone()
    one, two = (weights_from_patterns(neuron, inputs, patterns, progress=False) for _ in range(2))
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(neuron.mem, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, s: (x[0], s), "time first"),
        (lambda x, s: (x, s[:, :5]), "time first"),
        (lambda x, s: (x * float("nan"), s), "finite"),
        (lambda x, s: (x, s + 0.5), "spikes"),
        (lambda x, s: (x, s[:, :, :0]), "none empty"),
    ],
)
def test_bad_input_is_refused(change, message):
    inputs, patterns = change(data(), torch.zeros(T, SAMPLES, 2))
    with pytest.raises(DataError, match=message):
        weights_from_patterns(leaky(), inputs, patterns)


REFUSED = {
    "no neuron": nn.ReLU,
    "two states": lambda: snn.Synaptic(alpha=0.9, beta=0.8),
    "inhibition": lambda: leaky(inhibition=True),
    "immediate reset": lambda: leaky(reset_delay=False),
    "graded spikes": lambda: leaky(graded_spikes_factor=2.0),
    "units that differ": lambda: snn.Leaky(beta=torch.tensor([0.5, 0.9])),
    "one to one": lambda: snn.RLeaky(beta=0.8, all_to_all=False),
    "recurrent, reset to zero": lambda: snn.RLeaky(beta=0.8, linear_features=2, reset_mechanism="zero"),
}


@pytest.mark.filterwarnings("ignore:Inhibition")
@pytest.mark.parametrize("name", REFUSED)
def test_neurons_whose_membrane_is_not_affine_here_are_refused(name):
    with pytest.raises(UnsupportedModuleError, match="Leaky"):
        weights_from_patterns(REFUSED[name](), data(), torch.zeros(T, SAMPLES, 2))


def test_a_recurrence_with_a_bias_needs_a_bias():
    with pytest.raises(OptionError, match="bias=True"):
        weights_from_patterns(snn.RLeaky(beta=0.8, linear_features=2), data(), torch.zeros(T, SAMPLES, 2), bias=False)


def test_inputs_of_integers_are_taken_as_numbers():
    inputs = (data() > 0).to(torch.uint8)
    patterns = emitted(leaky(), torch.tensor([[1.0, -0.5, 0.3, 0, 0, 0]]), torch.zeros(1), inputs.float())
    assert float(weights_from_patterns(leaky(), inputs, patterns).mismatch.max()) == 0


def test_a_recurrent_layer_needs_the_patterns_of_all_its_neurons():
    with pytest.raises(DataError, match="whole layer"):
        weights_from_patterns(snn.RLeaky(beta=0.8, linear_features=3), data(), torch.zeros(T, SAMPLES, 2))
