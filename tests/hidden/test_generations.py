"""Recurrent layers built in generations: every row does in the layer what it did as a candidate."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from snn_recon_plugin.convex import Features, Problem, SquaredHinge
from snn_recon_plugin.hidden.clock import add_latches, make_clock, simulate_first
from snn_recon_plugin.hidden.recurrent_choice import build_generations
from snn_recon_plugin.hidden.samplers import traces
from snn_recon_plugin.networks.libraries import library_of

from ..helpers import HIDDEN, STEPS
from ..nets import NorseRows, Rows
from .tasks import see, write


def first_of(kind, recurrent, seen):
    neuron = recurrent.layer.neuron
    if kind in ("clock", "latches"):
        clock = make_clock(neuron, seen.inputs, 16 * STEPS, tonic=recurrent.tonic is not None, autapses=recurrent.autapses)
        return clock if kind == "clock" else add_latches(seen, clock, torch.Generator().manual_seed(0))
    weight, matrix, tonic = recurrent.take(HIDDEN // 2)
    return simulate_first("reservoir", neuron, seen.inputs, 0.3 * weight, matrix, tonic)


def build(net, kind, sampler=traces):
    task, seen = see(net)
    task = replace(task, witnesses=sampler, n_candidates=3 * HIDDEN // 2)

    def problem(emitted):
        return Problem(Features(emitted.features), task.labels, loss=SquaredHinge(), penalty="group_l1", num_outputs=10)

    first = first_of(kind, seen.recurrent, seen)
    return task, seen, build_generations(task, seen, first, problem, torch.Generator().manual_seed(0))


MAKES = {"Rows": Rows, "NorseRows": NorseRows, "autapses": partial(NorseRows, autapses=True)}


@pytest.mark.parametrize(
    ("make", "kind"), [("Rows", "latches"), *((make, kind) for make in MAKES for kind in ("clock", "reservoir"))]
)
def test_the_written_layer_spikes_as_its_candidates_did(make, kind):
    net = MAKES[make]()
    task, seen, built = build(net, kind)
    write(seen.recurrent.make_values(*built.weights))
    neuron, count = seen.recurrent.neuron, len(built.first)
    library = library_of(neuron)
    with torch.no_grad():
        matrix = getattr(*library.recurrence(neuron).weight).clone()
        assert make != "NorseRows" or ((matrix.diagonal() == 0).all() and "autapses" not in built.kinds)
        current = seen.inputs @ neuron.input_weights.T if make != "Rows" else net.fc1(seen.inputs) + neuron.recurrent.bias
        spikes = library.run(neuron, current, matrix).spikes
    torch.testing.assert_close(spikes[:, :, :count], built.first.spikes.float().expand(-1, spikes.shape[1], -1))
    features = torch.einsum("kt,tnp->nkp", task.temporary.filters.float(), spikes[:, :, count:]).flatten(0, 1)
    torch.testing.assert_close(features, built.emitted.features)
    # A row receives the first generation and, where that is allowed, itself.
    assert matrix.shape == (HIDDEN, HIDDEN)
    assert (matrix[:count, count:] == 0).all()
    assert (matrix[count:, :count] != 0).any() or kind == "reservoir"
    assert (matrix[count:, count:].fill_diagonal_(0) == 0).all()


def test_rows_lie_in_order_of_their_kinds():
    *_, built = build(Rows(), "clock")
    assert built.kinds[: len(built.first)] == ("clock",) * STEPS
    order = list(dict.fromkeys(built.kinds))
    assert order == [kind for kind in ("clock", "gates", "traces", "autapses") if kind in order]
    assert built.kinds == tuple(sorted(built.kinds, key=order.index))
    assert {"gates", "traces"} < set(order)
    diagonal = built.weights[1].diagonal()
    own = torch.tensor([kind == "autapses" for kind in built.kinds])
    assert (diagonal[own] > 0).all()
    assert (diagonal[STEPS:][~own[STEPS:]] == 0).all()


def test_rows_of_a_sampler_receive_latches_and_no_neuron_of_a_clock():
    *_, built = build(Rows(), "latches")
    drawn = torch.tensor([kind == "traces" for kind in built.rows.kinds])
    from_clock, from_latches = built.rows.before[drawn].tensor_split([len(built.first) - built.first.latches], 1)
    assert (from_clock == 0).all()
    assert (from_latches != 0).any()


def test_the_clock_of_a_layer_without_a_bias_starts_with_the_first_input():
    neuron = NorseRows().layers[0]
    inputs = torch.zeros(STEPS, 3, 8)
    inputs[0, 0], inputs[2, 1], inputs[5, 2] = 0.5, 0.7, 0.6
    spikes = make_clock(neuron, inputs, 16 * STEPS, tonic=False, autapses=False).spikes.float()[:, :, 0]
    assert spikes.argmax(0).tolist() == [0, 2, 5]
    assert (spikes.sum(0) == 1).all()
    assert make_clock(neuron, -inputs, 16 * STEPS, tonic=False, autapses=False) is None


def test_too_few_different_candidates_build_nothing():
    def same(site, count, generator):
        return traces(site, count, generator).take(torch.zeros(count, dtype=torch.long))

    assert build(Rows(), "reservoir", sampler=same)[-1] is None
