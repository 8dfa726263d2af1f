import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.networks import is_neuron, library_of

STEPS, BATCH, UNITS = 7, 5, 4


@pytest.fixture
def currents():
    return torch.randn(STEPS, BATCH, UNITS) * 2


def test_states_come_back_when_a_step_fails(snapshot, assert_same):
    neuron = snn.Leaky(beta=torch.rand(UNITS))
    neuron(torch.rand(2, UNITS))
    wrong = torch.rand(3, 2, UNITS + 1)
    before = snapshot(neuron)
    with pytest.raises(RuntimeError):
        library_of(neuron).run(neuron, wrong)
    assert_same(before, snapshot(neuron))


def test_convolutional_currents(currents):
    neuron = snn.Leaky(beta=0.9)
    assert library_of(neuron).run(neuron, torch.rand(3, 2, 4, 5, 6)).spikes.shape == (3, 2, 4, 5, 6)


def test_a_user_subclass_runs_its_own_forward(currents):
    class Doubled(snn.Leaky):
        def forward(self, input_, mem=None):
            return super().forward(2 * input_, mem)

    doubled, plain = Doubled(beta=0.8), snn.Leaky(beta=0.8)
    library = library_of(doubled)
    assert torch.equal(library.run(doubled, currents).membranes, library.run(plain, 2 * currents).membranes)


@pytest.mark.parametrize(
    "neuron",
    [
        snn.RLeaky(beta=0.9, linear_features=UNITS),
        snn.DeltaLeaky(beta=0.9),
        snn.SLSTM(UNITS, UNITS),
    ],
    ids=lambda neuron: type(neuron).__name__,
)
def test_other_classes_are_refused_by_name(neuron, currents):
    with pytest.raises(UnsupportedModuleError, match="Alpha, Lapicque, Leaky, LinearLeaky, StateLeaky, Synaptic") as error:
        library_of(neuron).run(neuron, currents)
    assert type(neuron).__name__ in str(error.value)


def test_synapses_inside_neurons():
    library = library_of(snn.Leaky(beta=0.9))
    linear, parallel = snn.LinearLeaky(0.9, 3, 2, bias=False), snn.LeakyParallel(3, 2)
    own = library.synapse(linear)
    assert (own.module, own.weight, own.bias) == (linear.linear, "weight", None)
    assert library.synapse(snn.LinearLeaky(0.9, 3, 2)).bias == "bias"
    assert library.synapse(parallel).module is parallel
    assert library.synapse(parallel).weight is None
    assert library.synapse(snn.Leaky(beta=0.9)) is None
    assert [name for _, name in library.synapse(parallel).parameters] == ["weight_ih_l0", "bias_ih_l0", "bias_hh_l0"]
    assert library.synapse(linear).parameters == [(linear.linear, "weight")]


def test_thresholds():
    library = library_of(snn.Leaky(beta=0.9))
    assert library.threshold(snn.Leaky(beta=0.9, threshold=0.5)) == (0.5, 0.5)
    assert library.threshold(snn.Leaky(beta=0.9, threshold=torch.tensor([1.0, 2.0]))) == (1.0, 2.0)
    assert library.threshold(nn.Identity()) is None


def test_spikes_and_membranes_of_outputs():
    library = library_of(snn.Leaky(beta=0.9))
    spk, mem = torch.zeros(1), torch.ones(1)
    assert library.spikes((spk, mem)) is spk
    assert library.spikes(spk) is spk
    assert library.membrane(nn.Identity(), (spk, mem)) is mem
    assert library.membrane(nn.Identity(), mem) is mem


def test_which_classes_take_sequences():
    library = library_of(snn.Leaky(beta=0.9))
    assert library.takes_sequences(snn.StateLeaky(beta=0.9, channels=2))
    assert not library.takes_sequences(snn.Leaky(beta=0.9))


@pytest.mark.parametrize("make", [snn.RLeaky, lambda **options: snn.RSynaptic(alpha=0.5, **options)], ids=["RLeaky", "RSynaptic"])
def test_a_recurrent_weight_for_each_unit_is_a_part_of_its_neuron(make):
    neuron = make(beta=0.9, all_to_all=False)
    assert [name for name, module in neuron.named_modules() if is_neuron(module)] == [""]


def test_recurrent_matrices():
    dense, single = snn.RLeaky(beta=0.9, linear_features=UNITS), snn.RLeaky(beta=0.9, all_to_all=False)
    library = library_of(dense)
    found = library.recurrence(dense)
    assert (found.weight, found.units) == ((dense.recurrent, "weight"), UNITS)
    assert found.bias is dense.recurrent.bias
    assert library.recurrence(single).weight is None
    assert library.recurrence(snn.Leaky(beta=0.9)) is None


@pytest.mark.parametrize(
    ("neuron", "reason"),
    [
        (snn.Synaptic(alpha=0.9, beta=0.8), "class Synaptic"),
        (snn.Leaky(beta=torch.tensor([0.5, 0.9])), "units have parameters of their own"),
        (snn.Leaky(beta=0.9, reset_delay=False), "an immediate reset"),
        (snn.RLeaky(beta=0.8, all_to_all=False), "not dense"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_other_dynamics_are_refused(neuron, reason):
    with pytest.raises(UnsupportedModuleError, match=reason):
        library_of(neuron).dynamics(neuron)


def test_choices_at_construction():
    library = library_of(snn.Leaky(beta=0.9))
    assert library.integrates(snn.Leaky(beta=0.9, reset_mechanism="none"))
    assert library.keeps_state(snn.Leaky(beta=0.9, init_hidden=True))
    assert library.quantises_state(snn.Leaky(beta=0.9, state_quant=lambda membrane: membrane))
    plain = snn.Leaky(beta=0.9)
    assert not any(f(plain) for f in (library.integrates, library.keeps_state, library.quantises_state, library.inhibits))


def test_the_leak_of_the_membrane_has_a_name_where_each_unit_may_have_its_own():
    recurrent = {"linear_features": UNITS}
    neurons = [snn.Leaky(0.9), snn.Synaptic(0.8, 0.9), snn.RLeaky(0.9, **recurrent), snn.RSynaptic(0.8, 0.9, **recurrent)]
    assert [library_of(neuron).leak_name(neuron) for neuron in neurons] == ["beta"] * 4
    assert library_of(neurons[0]).leak_name(snn.Alpha(alpha=0.9, beta=0.8)) is None
