"""The choice for a recurrent layer: its own weights, or one built on a clock or on a reservoir."""

from dataclasses import replace
from functools import partial

import pytest
import snntorch as snn
import torch

from snn_recon_plugin import ReconstructionError, convex_init_
from snn_recon_plugin.convex import Features, Problem, SquaredHinge
from snn_recon_plugin.hidden.clock import add_latches, make_clock, simulate_first
from snn_recon_plugin.hidden.recurrent_choice import build_generations
from snn_recon_plugin.hidden.samplers import traces
from snn_recon_plugin.networks.libraries import library_of

from ..helpers import HIDDEN, STEPS, accuracy, batches, one_line, values
from ..nets import NorseRows, Rows, Series
from .tasks import see, write


def moments(count, seed=0):
    """The class is the quarter of the sequence in which the first channel is on; all channels are on equally often."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    x = torch.zeros(count, 16, 3)
    steps = 4 * labels + torch.randint(4, (count,), generator=generator)
    x[torch.arange(count), steps, 0] = 1
    for channel in (1, 2):
        x[torch.arange(count), torch.randint(16, (count,), generator=generator), channel] = 1
    return x, labels


def start(net, data=None, **options):
    inputs, labels = moments(400) if data is None else data
    return convex_init_(net, list(zip(inputs.split(200), labels.split(200), strict=True)), **{"hidden": "reconstruct", **options})


def score(net):
    x, labels = moments(500, seed=1)
    with torch.no_grad():
        return float((net(x).mean(0).argmax(1) == labels).float().mean())


def make_net(make=snn.RLeaky, width=64, bias=True, **options):
    return Series(partial(make, **{"beta": 0.5, "linear_features": width, **options}), 3, width, 4, bias)


@pytest.mark.parametrize(
    ("options", "first"),
    [
        pytest.param({}, "clock", id="subtract"),
        pytest.param({"make": snn.RSynaptic, "alpha": 0.5}, "clock", id="with a synapse"),
        # Neurons that reset to zero can't keep time.
        pytest.param({"reset_mechanism": "zero"}, "reservoir", id="zero", marks=pytest.mark.slow),
        pytest.param({"beta": 0.95}, "clock", id="remembers long", marks=pytest.mark.slow),
        pytest.param({"learn_beta": True}, "clock", id="learnable", marks=pytest.mark.slow),
    ],
)
def test_what_happens_when_is_learned_without_a_gradient(options, first):
    net = make_net(**options)
    report = start(net)
    witnesses = report.layers[0].witnesses
    assert next(iter(witnesses.kinds)) == first
    assert sum(witnesses.kinds.values()) == 64
    assert "of own weights" in witnesses.reason
    assert score(net) > 0.9
    assert report.accuracy_after == pytest.approx(score(net), abs=0.05)


def test_a_layer_whose_only_bias_is_that_of_its_recurrence():
    net = make_net(bias=False)
    assert start(net).layers[0].witnesses is not None
    assert (net.lif1.recurrent.bias != 0).any()
    assert score(net) > 0.9


def test_leaks_of_their_own():
    net = make_net()
    report = start(net, heterogeneous=True)
    assert net.lif1.beta.shape == (64,)
    assert len(report.layers[0].witnesses.leaks) > 2
    assert score(net) > 0.9
    report.undo()
    assert net.lif1.beta.shape == torch.Size()


@pytest.mark.parametrize("width", [2, 8])
def test_layers_too_narrow_for_a_clock_stay_or_are_built_on_a_reservoir(width):
    witnesses = start(make_net(width=width), moments(400)).layers[0].witnesses
    assert witnesses is None or "clock" not in witnesses.kinds


def test_a_layer_as_good_as_a_built_one_is_kept_unless_every_layer_is_to_be_rebuilt():
    net, data = make_net(), moments(200, seed=1)  # three choices take 5 s: few samples
    start(net, data, hidden="auto")
    built = net.fc1.weight.detach().clone()
    kept = start(net, data, hidden="auto").layers[0]
    assert "own weights: held-out loss" in kept.reason
    assert torch.equal(net.fc1.weight, built)
    again = start(net, data, seed=1, write="always").layers[0]
    assert "of own weights" in again.witnesses.reason
    assert not torch.equal(net.fc1.weight, built)


def test_a_layer_whose_rows_do_something_else_together_is_not_built():
    net = make_net()
    net.lif1.register_forward_pre_hook(lambda _, args: (args[0], torch.zeros_like(args[1]), *args[2:]))  # no spike comes back
    report = start(net, moments(200))
    assert report.layers[0].witnesses is None
    assert "recurrent; own weights" in one_line(report)


@pytest.mark.parametrize("empty", ["inputs", "labels"])
@pytest.mark.parametrize("hidden", ["auto", "reconstruct"])
def test_data_without_anything_to_tell_apart_are_refused_and_leave_the_net(empty, hidden):
    (x, labels), net = moments(200), make_net()
    before = values(net)
    with pytest.raises(ReconstructionError):
        start(net, (torch.zeros_like(x), labels) if empty == "inputs" else (x, torch.zeros_like(labels)), hidden=hidden)
    assert values(net) == before


def test_a_single_step_is_accepted():
    x, labels = moments(300)
    report = start(make_net(), (x[:, :1] + torch.rand(300, 1, 3), labels), hidden="auto")
    assert report.layers[0].stats.silent < 1


@pytest.mark.parametrize("make", [pytest.param(Rows, marks=pytest.mark.slow), NorseRows])
def test_the_same_seed_builds_the_same_bits_and_undo_gives_back_the_old(make):
    nets = [make() for _ in range(2)]
    before = values(nets[0])
    reports = [convex_init_(net, batches(300), hidden="reconstruct", seed=3) for net in nets]
    assert reports[0].layers[0].witnesses is not None
    assert accuracy(nets[0]) > 0.6
    assert values(nets[0]) == values(nets[1])
    reports[0].undo()
    assert values(nets[0]) == before


# -- generations: every row does in the layer what it did as a candidate ----------------------------------------------------
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
