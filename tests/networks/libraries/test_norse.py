import norse.torch as norse
import pytest
import torch
from torch import nn

from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.networks import is_neuron, library_of, private_copy, quiet
from snn_recon_plugin.networks.libraries import libraries_in

STEPS, BATCH, UNITS = 7, 5, 4
CELLS = {
    "LIFCell": norse.LIFCell,
    "LIFCell of other constants": lambda: norse.LIFCell(norse.LIFParameters(v_th=torch.tensor(0.4), v_reset=torch.tensor(-0.1))),
    "LICell": norse.LICell,
    "LIFBoxCell": norse.LIFBoxCell,
    "LIBoxCell": norse.LIBoxCell,
    "IAFCell": norse.IAFCell,
    "LSNNCell": norse.LSNNCell,
    "LIFRefracCell": norse.LIFRefracCell,
    "LIFExCell": norse.LIFExCell,
}
LAYERS = {"LIF": norse.LIF, "LI": norse.LI, "IAF": norse.IAF, "LSNN": norse.LSNN}


@pytest.fixture
def currents():
    return torch.randn(STEPS, BATCH, UNITS) * 15


def test_a_linear_cell_without_its_weights(currents):
    fused, plain = norse.LILinearCell(3, UNITS), norse.LICell()
    weights = fused.input_weights
    assert torch.equal(library_of(fused).run(fused, currents).membranes, library_of(plain).run(plain, currents).membranes)
    assert fused.input_weights is weights
    assert library_of(fused).synapse(fused).weight == "input_weights"


@pytest.mark.parametrize(
    "neuron",
    [norse.LIFRecurrentCell(UNITS, UNITS), norse.LIFRecurrent(UNITS, UNITS), norse.CobaLIFCell(UNITS, UNITS)],
    ids=lambda neuron: type(neuron).__name__,
)
def test_neurons_with_weights_of_their_own_are_refused_by_name(neuron, currents):
    library = library_of(neuron)
    assert library.synapse(neuron).module is neuron
    assert library.synapse(neuron).weight == "input_weights"
    assert library.synapse(neuron).parameters == [(neuron, "input_weights")]
    with pytest.raises(UnsupportedModuleError, match=type(neuron).__name__) as error:
        library.run(neuron, currents)
    assert "LICell" in error.value.needed


def test_what_is_a_neuron():
    assert libraries_in(norse.SequentialState()) == ["norse"]
    assert not is_neuron(norse.SequentialState())
    assert not is_neuron(norse.Lift(nn.Linear(1, 1)))
    assert not is_neuron(norse.ConstantCurrentLIFEncoder(3))
    assert all(is_neuron(make()) for make in (*CELLS.values(), *LAYERS.values()))
    mine = type("Mine", (norse.LIFCell,), {})()
    assert is_neuron(mine)
    assert not library_of(mine).takes_sequences(mine)


def test_thresholds():
    library = library_of(norse.LIFCell())
    assert library.threshold(norse.LIFCell(norse.LIFParameters(v_th=torch.tensor(0.5)))) == (0.5, 0.5)
    assert library.threshold(norse.LIFRefracCell()) == (1.0, 1.0)
    assert library.threshold(norse.LICell()) is None


def test_a_layer_shows_only_its_last_membrane(currents):
    layer = norse.LIF()
    library, output = library_of(layer), layer(currents)
    assert library.membrane(layer, output) is None
    assert library.spikes(output) is output[0]
    library.reset(layer)


def test_constants_do_not_begin_to_require_gradients(currents):
    # Its first call marks its constants, which it uses as its first state; the default ones are every cell's.
    cell = norse.IAFCell(norse.IAFParameters(v_reset=torch.tensor(0.0)))
    with quiet(copied := private_copy(cell), seed=0):
        copied(currents[0])
    library_of(cell).run(cell, currents)
    assert not cell.p.v_reset.requires_grad


def test_recurrent_matrices(currents):
    cell, layer = norse.LIFRecurrentCell(3, UNITS), norse.LIFRecurrent(3, UNITS, autapses=True)
    library = library_of(cell)
    found = library.recurrence(cell)
    assert found.weight == (cell, "recurrent_weights")
    assert (found.units, found.autapses, library.recurrence(layer).autapses) == (UNITS, False, True)
    assert library.recurrence(norse.LIFCell()) is None


def test_dynamics_of_other_classes_are_refused():
    with pytest.raises(UnsupportedModuleError, match="LIFRecurrentCell"):
        library_of(norse.LSNNCell()).dynamics(norse.LSNNCell())


def test_a_layers_forward_of_the_users_own_gets_all_steps_in_one_call(currents):
    class Centred(norse.LIF):
        def forward(self, inputs, state=None):
            return super().forward(inputs - inputs.mean(0), state)

    centred, plain = Centred(), norse.LIF()
    found = library_of(centred).run(centred, currents)
    expected = library_of(plain).run(plain, currents - currents.mean(0))
    assert found.spikes.any()
    assert torch.equal(found.spikes, expected.spikes)
    assert torch.equal(found.membranes, expected.membranes)
    assert not centred.record_states


def test_leaks_are_not_saved_with_the_net():
    for neuron in (norse.LIFCell(), norse.LIF(), norse.LIFRecurrent(3, 3)):
        assert library_of(neuron).leak_name(neuron) is None
        assert not any("tau" in name for name in neuron.state_dict())
