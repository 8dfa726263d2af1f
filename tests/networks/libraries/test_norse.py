import norse.torch as norse
import pytest
import torch
from torch import nn

from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.networks.libraries import is_neuron, libraries_in, library_of
from snn_recon_plugin.networks.private.quiet import quiet
from snn_recon_plugin.networks.private.workbench import private_copy

UNITS = 4
LIBRARY = library_of(norse.LIFCell())


@pytest.fixture
def currents():
    return torch.randn(7, 5, UNITS) * 15


def test_a_linear_cell_without_its_weights(currents):
    fused = norse.LILinearCell(3, UNITS)
    weights = fused.input_weights
    assert torch.equal(LIBRARY.run(fused, currents).membranes, LIBRARY.run(norse.LICell(), currents).membranes)
    assert fused.input_weights is weights
    assert LIBRARY.synapse(fused).weight == "input_weights"


@pytest.mark.parametrize("kind", [norse.LIFRecurrentCell, norse.LIFRecurrent, norse.CobaLIFCell])
def test_neurons_with_weights_of_their_own_are_refused_by_name(kind, currents):
    neuron = kind(UNITS, UNITS)
    own = LIBRARY.synapse(neuron)
    assert (own.module, own.weight, own.parameters) == (neuron, "input_weights", [(neuron, "input_weights")])
    with pytest.raises(UnsupportedModuleError, match=kind.__name__) as error:
        LIBRARY.run(neuron, currents)
    assert "LICell" in error.value.needed


def test_what_is_a_neuron():
    assert libraries_in(norse.SequentialState()) == ["norse"]
    for other in (norse.SequentialState(), norse.Lift(nn.Linear(1, 1)), norse.ConstantCurrentLIFEncoder(3)):
        assert not is_neuron(other)
    mine = type("Mine", (norse.LIFCell,), {})()
    assert is_neuron(mine)
    assert not library_of(mine).takes_sequences(mine)


def test_thresholds():
    assert LIBRARY.threshold(norse.LIFCell(norse.LIFParameters(v_th=torch.tensor(0.5)))) == (0.5, 0.5)
    assert LIBRARY.threshold(norse.LIFRefracCell()) == (1.0, 1.0)
    assert LIBRARY.threshold(norse.LICell()) is None


def test_a_layer_shows_only_its_last_membrane(currents):
    layer = norse.LIF()
    output = layer(currents)
    assert LIBRARY.membrane(layer, output) is None
    assert LIBRARY.spikes(output) is output[0]


def test_constants_do_not_begin_to_require_gradients(currents):
    # Its first call marks its constants, which it uses as its first state; the default ones are every cell's.
    cell = norse.IAFCell(norse.IAFParameters(v_reset=torch.tensor(0.0)))
    with quiet(copied := private_copy(cell), seed=0):
        copied(currents[0])
    LIBRARY.run(cell, currents)
    assert not cell.p.v_reset.requires_grad


def test_recurrent_matrices():
    cell, layer = norse.LIFRecurrentCell(3, UNITS), norse.LIFRecurrent(3, UNITS, autapses=True)
    found = LIBRARY.recurrence(cell)
    assert found.weight == (cell, "recurrent_weights")
    assert (found.units, found.autapses, LIBRARY.recurrence(layer).autapses) == (UNITS, False, True)
    assert LIBRARY.recurrence(norse.LIFCell()) is None


def test_dynamics_of_other_classes_are_refused():
    with pytest.raises(UnsupportedModuleError, match="LIFRecurrentCell"):
        LIBRARY.dynamics(norse.LSNNCell())


def test_a_layers_forward_of_the_users_own_gets_all_steps_in_one_call(currents):
    class Centred(norse.LIF):
        def forward(self, inputs, state=None):
            return super().forward(inputs - inputs.mean(0), state)

    centred = Centred()
    found, expected = LIBRARY.run(centred, currents), LIBRARY.run(norse.LIF(), currents - currents.mean(0))
    assert found.spikes.any()
    assert torch.equal(found.spikes, expected.spikes)
    assert torch.equal(found.membranes, expected.membranes)
    assert not centred.record_states


def test_leaks_are_not_saved_with_the_net():
    for neuron in (norse.LIFCell(), norse.LIF(), norse.LIFRecurrent(3, 3)):
        assert LIBRARY.leak_name(neuron) is None
        assert not any("tau" in name for name in neuron.state_dict())
