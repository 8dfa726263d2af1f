import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.networks.libraries import is_neuron, library_of

from ...helpers import assert_as_before, snapshot

UNITS = 4
LIBRARY = library_of(snn.Leaky(beta=0.9))
LEAKY, DENSE = snn.Leaky(beta=0.9), {"linear_features": UNITS}
SINGLE = snn.RLeaky(beta=0.9, all_to_all=False)


@pytest.fixture
def currents():
    return torch.randn(7, 5, UNITS) * 2


def test_states_come_back_when_a_step_fails():
    neuron = snn.Leaky(beta=torch.rand(UNITS))
    neuron(torch.rand(2, UNITS))
    wrong, before = torch.rand(3, 2, UNITS + 1), snapshot(neuron)
    with pytest.raises(RuntimeError):
        LIBRARY.run(neuron, wrong)
    assert_as_before(neuron, before)


def test_a_user_subclass_runs_its_own_forward(currents):
    class Doubled(snn.Leaky):
        def forward(self, input_, mem=None):
            return super().forward(2 * input_, mem)

    found, expected = LIBRARY.run(Doubled(beta=0.9), currents), LIBRARY.run(LEAKY, 2 * currents)
    assert torch.equal(found.membranes, expected.membranes)


@pytest.mark.parametrize(
    "neuron",
    [snn.RLeaky(0.9, **DENSE), snn.DeltaLeaky(beta=0.9), snn.SLSTM(UNITS, UNITS)],
    ids=lambda neuron: type(neuron).__name__,
)
def test_other_classes_are_refused_by_name(neuron, currents):
    with pytest.raises(UnsupportedModuleError, match="Alpha, Lapicque, Leaky, LinearLeaky, StateLeaky, Synaptic") as error:
        LIBRARY.run(neuron, currents)
    assert type(neuron).__name__ in str(error.value)


def test_synapses_inside_neurons():
    linear, parallel = snn.LinearLeaky(0.9, 3, 2, bias=False), snn.LeakyParallel(3, 2)
    own = LIBRARY.synapse(linear)
    assert (own.module, own.weight, own.bias) == (linear.linear, "weight", None)
    assert own.parameters == [(linear.linear, "weight")]
    assert LIBRARY.synapse(snn.LinearLeaky(0.9, 3, 2)).bias == "bias"
    own = LIBRARY.synapse(parallel)
    assert (own.module, own.weight) == (parallel, None)
    assert [name for _, name in own.parameters] == ["weight_ih_l0", "bias_ih_l0", "bias_hh_l0"]
    assert LIBRARY.synapse(LEAKY) is None


def test_thresholds():
    assert LIBRARY.threshold(snn.Leaky(beta=0.9, threshold=0.5)) == (0.5, 0.5)
    assert LIBRARY.threshold(snn.Leaky(beta=0.9, threshold=torch.tensor([1.0, 2.0]))) == (1.0, 2.0)
    assert LIBRARY.threshold(nn.Identity()) is None


def test_spikes_and_membranes_of_outputs():
    spk, mem = torch.zeros(1), torch.ones(1)
    assert LIBRARY.spikes((spk, mem)) is LIBRARY.spikes(spk) is spk
    assert LIBRARY.membrane(nn.Identity(), (spk, mem)) is LIBRARY.membrane(nn.Identity(), mem) is mem


def test_recurrent_weights():
    dense = snn.RLeaky(beta=0.9, **DENSE)
    found = LIBRARY.recurrence(dense)
    assert (found.weight, found.units) == ((dense.recurrent, "weight"), UNITS)
    assert found.bias is dense.recurrent.bias
    assert LIBRARY.recurrence(LEAKY) is None
    for single in (SINGLE, snn.RSynaptic(alpha=0.5, beta=0.9, all_to_all=False)):
        assert LIBRARY.recurrence(single).weight is None
        assert [name for name, module in single.named_modules() if is_neuron(module)] == [""]  # its weights are a part of it


@pytest.mark.parametrize(
    ("neuron", "reason"),
    [
        (snn.Synaptic(alpha=0.9, beta=0.8), "class Synaptic"),
        (snn.Leaky(beta=torch.tensor([0.5, 0.9])), "units have parameters of their own"),
        (snn.Leaky(beta=0.9, reset_delay=False), "an immediate reset"),
        (SINGLE, "not dense"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_other_dynamics_are_refused(neuron, reason):
    with pytest.raises(UnsupportedModuleError, match=reason):
        LIBRARY.dynamics(neuron)


def test_choices_at_construction():
    assert LIBRARY.takes_sequences(snn.StateLeaky(beta=0.9, channels=2))
    assert LIBRARY.integrates(snn.Leaky(beta=0.9, reset_mechanism="none"))
    assert LIBRARY.keeps_state(snn.Leaky(beta=0.9, init_hidden=True))
    assert LIBRARY.quantises_state(snn.Leaky(beta=0.9, state_quant=lambda membrane: membrane))
    for has in ("takes_sequences", "integrates", "keeps_state", "quantises_state", "inhibits"):
        assert not getattr(LIBRARY, has)(LEAKY)


def test_the_leak_of_the_membrane_has_a_name_where_each_unit_may_have_its_own():
    neurons = [LEAKY, snn.Synaptic(0.8, 0.9), snn.RLeaky(0.9, **DENSE), snn.RSynaptic(0.8, 0.9, **DENSE)]
    assert [library_of(neuron).leak_name(neuron) for neuron in neurons] == ["beta"] * 4
    assert LIBRARY.leak_name(snn.Alpha(alpha=0.9, beta=0.8)) is None
