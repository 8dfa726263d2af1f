"""Recurrent layers built in generations: every row does in the layer what it did as a candidate."""

import pytest
import torch

from snn_recon_plugin.convex import CrossEntropy
from snn_recon_plugin.hidden.clock import make_clock, simulate_first
from snn_recon_plugin.hidden.gates import add_latches
from snn_recon_plugin.hidden.generations import build_generations
from snn_recon_plugin.hidden.recurrent import find_recurrent_layer
from snn_recon_plugin.hidden.samplers import WitnessOptions, traces
from snn_recon_plugin.hidden.select import SelectionProgram
from snn_recon_plugin.networks import library_of

from ..helpers import HIDDEN
from .recurrent_nets import STEPS, NorseRows, Rows, layer_of, see


def first_of(kind, recurrent, seen):
    neuron = recurrent.layer.neuron
    if kind in ("clock", "latches"):
        clock = make_clock(neuron, seen.inputs, 16 * STEPS, recurrent.tonic is not None, recurrent.autapses)
        return clock if kind == "clock" else add_latches(seen, clock, torch.Generator().manual_seed(0))
    weight, matrix, tonic = recurrent.take(HIDDEN // 2)
    return simulate_first("reservoir", neuron, seen.inputs, 0.3 * weight, matrix, tonic)


def build(net, kind, sampler=traces):
    task, seen = see(net)
    recurrent = find_recurrent_layer(layer_of(net))
    program = SelectionProgram(task.labels, CrossEntropy(), 10, 1.0)
    first = first_of(kind, recurrent, seen)
    options, filters = WitnessOptions(sampler, n_candidates=3 * HIDDEN // 2), task.temporary.filters
    return task, seen, recurrent, build_generations(seen, first, options, program, filters, torch.Generator().manual_seed(0))


def norse_with_autapses():
    return NorseRows(autapses=True)


MAKES = (Rows, NorseRows, norse_with_autapses)


BUILT = [(Rows, "latches"), *((make, kind) for make in MAKES for kind in ("clock", "reservoir"))]


@pytest.mark.parametrize(("make", "kind"), BUILT)
def test_the_written_layer_spikes_as_its_candidates_did(make, kind):
    net = make()
    task, seen, recurrent, built = build(net, kind)
    assert built.weights[1].shape == (HIDDEN, HIDDEN)
    for place, value in recurrent.make_values(*built.weights).items():
        getattr(*place).data.copy_(value)
    library = library_of(recurrent.layer.neuron)
    with torch.no_grad():
        matrix = getattr(*library.recurrence(recurrent.layer.neuron).weight)
        if isinstance(net, NorseRows):
            current = seen.inputs @ recurrent.layer.neuron.input_weights.T
        else:
            current = torch.nn.functional.linear(seen.inputs, net.fc1.weight, net.fc1.bias) + recurrent.layer.neuron.recurrent.bias
        spikes = library.run(recurrent.layer.neuron, current, matrix).spikes
    count = len(built.first)
    torch.testing.assert_close(spikes[:, :, :count], built.first.spikes.unpack().expand(-1, spikes.shape[1], -1))
    features = torch.einsum("kt,tnp->nkp", task.temporary.filters.float(), spikes[:, :, count:]).flatten(0, 1)
    torch.testing.assert_close(features[..., None], built.emitted.features)


@pytest.mark.parametrize("kind", ["clock", "reservoir"])
def test_a_row_receives_the_first_generation_and_itself_alone(kind):
    *_, built = build(Rows(), kind)
    count, (_, matrix, _) = len(built.first), built.weights
    assert (matrix[:count, count:] == 0).all()
    second = matrix[count:, count:]
    assert (second == second.diagonal().diag()).all()
    assert (matrix[count:, :count] != 0).any()


def test_rows_lie_in_order_of_their_kinds():
    *_, built = build(Rows(), "clock")
    assert built.kinds[: len(built.first)] == ("clock",) * STEPS
    order = [kind for number, kind in enumerate(built.kinds) if number == 0 or kind != built.kinds[number - 1]]
    assert order == sorted(set(order), key=["clock", "gates", "traces", "autapses"].index)
    assert {"gates", "traces"} < set(order)
    diagonal = built.weights[1].diagonal()
    own = torch.tensor([kind == "autapses" for kind in built.kinds])
    assert (diagonal[own] > 0).all()
    assert (diagonal[STEPS:][~own[STEPS:]] == 0).all()


def test_norse_rows_without_autapses_or_a_bias():
    *_, built = build(NorseRows(), "clock")
    _, matrix, tonic = built.weights
    assert (matrix.diagonal() == 0).all()
    assert (tonic == 0).all()
    assert "autapses" not in built.kinds


def test_the_clock_of_a_layer_without_a_bias_starts_with_the_first_input():
    net = NorseRows()
    recurrent = find_recurrent_layer(layer_of(net))
    inputs = torch.zeros(STEPS, 3, 8)
    inputs[0, 0], inputs[2, 1], inputs[5, 2] = 0.5, 0.7, 0.6
    first = make_clock(recurrent.layer.neuron, inputs, 16 * STEPS, False, False)
    spikes = first.spikes.unpack()[:, :, 0]
    started = spikes.argmax(0)
    assert started.tolist() == [0, 2, 5]
    assert (spikes.sum(0) == 1).all()
    assert make_clock(recurrent.layer.neuron, -inputs, 16 * STEPS, False, False) is None


def test_too_few_different_candidates_build_nothing():
    def same(site, count, generator):
        return traces(site, count, generator).take(torch.zeros(count, dtype=torch.long))

    assert build(Rows(), "reservoir", sampler=same)[-1] is None
