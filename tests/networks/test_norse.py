import norse.torch as norse
import pytest
import torch
from torch import nn

from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.networks import adapter_of, is_neuron, library_of, preserved

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


def membrane_of(state):
    return membrane_of(state.lif) if hasattr(state, "lif") else state.v


@pytest.mark.parametrize("name", CELLS)
def test_cells_run_bit_for_bit_as_the_user_steps_them(name, currents):
    cell = CELLS[name]()
    state, spikes, membranes = None, [], []
    with torch.no_grad():
        for current in currents:
            out, state = cell(current, state)
            spikes.append(out)
            membranes.append(membrane_of(state))
    trace = adapter_of(cell).run(cell, currents)
    assert torch.equal(trace.spikes, torch.stack(spikes))
    assert torch.equal(trace.membranes, torch.stack(membranes))
    assert trace.spikes.any()
    assert not trace.membranes.requires_grad


@pytest.mark.parametrize("name", LAYERS)
def test_layers_run_bit_for_bit_as_the_user_runs_them(name, currents):
    layer = LAYERS[name]()
    adapter = adapter_of(layer)
    with torch.no_grad():
        spikes, state = layer(currents)
    trace = adapter.run(layer, currents)
    assert torch.equal(trace.spikes, spikes)
    assert torch.equal(trace.membranes[-1], state.v)
    assert trace.membranes.shape == currents.shape
    assert not layer.record_states
    assert adapter.takes_sequences(layer)
    assert torch.equal(adapter.membrane(layer, (spikes, state)), spikes) if name == "LI" else True


@pytest.mark.parametrize("cell", [norse.LIFCell(), norse.LICell(), norse.LIF(), norse.LILinearCell(UNITS, UNITS)], ids=str)
def test_run_leaves_modules_and_shared_constants_alone(cell, currents, snapshot, assert_same):
    constants = [value.clone() for value in cell.p if isinstance(value, torch.Tensor)]
    before, shared, p = snapshot(cell), norse.LIFCell().p, cell.p
    adapter_of(cell).run(cell, currents)
    assert_same(before, snapshot(cell))
    assert cell.p is p
    assert all(torch.equal(a, b) for a, b in zip(constants, [v for v in cell.p if isinstance(v, torch.Tensor)], strict=True))
    assert norse.LIFCell().p.v_th is shared.v_th


def test_a_linear_cell_without_its_weights(currents):
    fused, plain = norse.LILinearCell(3, UNITS), norse.LICell()
    weights = fused.input_weights
    assert torch.equal(adapter_of(fused).run(fused, currents).membranes, adapter_of(plain).run(plain, currents).membranes)
    assert fused.input_weights is weights
    assert adapter_of(fused).synapse(fused).weight == "input_weights"


@pytest.mark.parametrize(
    "neuron",
    [norse.LIFRecurrentCell(UNITS, UNITS), norse.LIFRecurrent(UNITS, UNITS), norse.CobaLIFCell(UNITS, UNITS)],
    ids=lambda neuron: type(neuron).__name__,
)
def test_neurons_with_weights_of_their_own_are_refused_by_name(neuron, currents):
    adapter = adapter_of(neuron)
    assert adapter.synapse(neuron).module is neuron
    assert adapter.synapse(neuron).weight is None
    with pytest.raises(UnsupportedModuleError, match=type(neuron).__name__) as error:
        adapter.run(neuron, currents)
    assert "LICell" in error.value.needed


def test_what_is_a_neuron():
    assert library_of(norse.SequentialState()) == "norse"
    assert not is_neuron(norse.SequentialState())
    assert not is_neuron(norse.Lift(nn.Linear(1, 1)))
    assert not is_neuron(norse.ConstantCurrentLIFEncoder(3))
    assert all(is_neuron(make()) for make in (*CELLS.values(), *LAYERS.values()))
    mine = type("Mine", (norse.LIFCell,), {})()
    assert is_neuron(mine)
    assert not adapter_of(mine).takes_sequences(mine)


def test_thresholds():
    adapter = adapter_of(norse.LIFCell())
    assert adapter.threshold(norse.LIFCell(norse.LIFParameters(v_th=torch.tensor(0.5)))) == (0.5, 0.5)
    assert adapter.threshold(norse.LIFRefracCell()) == (1.0, 1.0)
    assert adapter.threshold(norse.LICell()) is None


def test_a_layer_shows_only_its_last_membrane(currents):
    layer = norse.LIF()
    adapter, output = adapter_of(layer), layer(currents)
    assert adapter.membrane(layer, output) is None
    assert adapter.spikes(output) is output[0]
    adapter.reset(layer)


def test_constants_do_not_begin_to_require_gradients(currents):
    # Its first call marks its constants, which it uses as its first state; the default ones are every cell's.
    cell = norse.IAFCell(norse.IAFParameters(v_reset=torch.tensor(0.0)))
    with preserved(cell, seed=0):
        cell(currents[0])
    adapter_of(cell).run(cell, currents)
    assert not cell.p.v_reset.requires_grad
