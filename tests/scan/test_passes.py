"""The package's own passes: by plans to the values of the net's own code, with no more than is asked for."""

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional

from snn_recon_plugin.errors import CaptureError, NetworkError
from snn_recon_plugin.networks.calls.forward import plain_forward
from snn_recon_plugin.networks.calls.record import StoredBatch, Taps, record, spike_taps, watch
from snn_recon_plugin.networks.libraries import is_neuron
from snn_recon_plugin.networks.libraries.snntorch import SnnTorchStepper
from snn_recon_plugin.networks.private.parameters import with_values
from snn_recon_plugin.networks.private.quiet import quiet
from snn_recon_plugin.networks.private.workbench import private_copy
from snn_recon_plugin.options import Options
from snn_recon_plugin.read.step import read_first
from snn_recon_plugin.scan.passes import KeptPasses, fast_passes

from .loops import BATCH, NETS, STEPS, Dense, Products, vectors

PASSES = 4  # of a kind: one by the net's own code, one that is recorded, and two by the plan
LABELS = torch.arange(BATCH) % 3


class Noisy(Dense):
    """Noise on the input, and on what the output neuron gets."""

    def __init__(self):
        super().__init__(lambda spikes, state: (spikes + 0.1 * torch.rand_like(spikes), state))

    def forward(self, x):
        return super().forward(x + torch.rand_like(x))


def batch_of(inputs, number=1):
    return StoredBatch(inputs, slice(BATCH * (number - 1), BATCH * number), number)


def run(net, batch, forward=plain_forward, *, whole=True):
    """What a pass returns, what enters the net's linear layers, and its neurons' spikes."""
    inputs, spikes = {}, {}
    taps = Taps(
        inputs={each: inputs.setdefault(name, []).append for name, each in net.named_modules() if type(each) is nn.Linear},
        outputs=spike_taps({each: spikes.setdefault(name, []).append for name, each in net.named_modules() if is_neuron(each)}),
    )
    output = (record if whole else watch)(net, batch, forward, taps)
    return output, [value for part in (inputs, spikes) for values in part.values() for value in values]


def products(net, batch, **options):
    with Products() as seen:
        run(net, batch, **options)
    return seen.count


@pytest.fixture
def dense():
    torch.manual_seed(0)
    net = Dense()
    with quiet(net, seed=0):
        yield net


@pytest.mark.parametrize("name", NETS)
def test_taps_and_outputs_are_those_of_the_nets_own_code(name):
    build, draw, forward = NETS[name]
    torch.manual_seed(0)
    net, forward, batches = build(), forward or plain_forward, [batch_of(draw(), number) for number in (1, 2, 3, 4)]
    with quiet(net, seed=0):
        expected = [run(net, batch, forward) for batch in batches]
        with fast_passes(net):
            found = [run(net, batch, forward) for batch in batches]
            parts = [run(net, batch, forward, whole=False) for batch in batches]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert [output for output, _ in parts] == [None] * len(batches)
    torch.testing.assert_close([seen for _, seen in parts], [seen for _, seen in expected], rtol=1e-4, atol=1e-5)


def test_the_nets_own_code_runs_twice_for_each_kind_of_batch(dense):
    batch, short = batch_of(vectors()), batch_of(vectors(3))
    with fast_passes(dense):
        counts = [products(dense, each) for each in [batch] * PASSES + [short] * PASSES]
    own = 2 * STEPS
    assert counts == 2 * [own, own + 2, 2, 2]  # the second pass is compared with its plan
    assert products(dense, batch) == own


def test_only_what_is_asked_for_is_computed(dense):
    batch, taps = batch_of(vectors()), Taps(inputs={dense.fc1: lambda value: None})
    with fast_passes(dense):
        for whole in (False, False, False, True):
            with Products() as seen:
                (record if whole else watch)(dense, batch, plain_forward, taps)
            last = seen.count
            assert last <= 2 * STEPS + 2
    with fast_passes(dense):
        for _ in range(2):
            watch(dense, batch, plain_forward, taps)
        with Products() as seen:
            watch(dense, batch, plain_forward, Taps(outputs=spike_taps({dense.lif1: lambda spikes: None})))
    assert (seen.count, last) == (1, 2)


def test_random_numbers_are_those_of_the_batch_and_draw():
    torch.manual_seed(0)
    net, batches = Noisy(), [batch_of(vectors(), number) for number in (1, 2, 3)]
    first = Taps(inputs={net.fc1: (seen := []).append})
    with quiet(net, seed=0):
        expected = [run(net, batch) for batch in batches]
        watch(net, batches[2], plain_forward, first)
        again = record(net, batches[2], plain_forward, draw=1)
        with fast_passes(net):
            found = [run(net, batch) for batch in batches]
            watch(net, batches[2], plain_forward, first)
            redrawn = record(net, batches[2], plain_forward, draw=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[: len(seen) // 2], seen[len(seen) // 2 :], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(redrawn, again, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(redrawn, found[2][0])


def test_a_neuron_whose_own_code_runs_keeps_its_states_from_step_to_step():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 20), snn.Alpha(alpha=0.9, beta=0.8, init_hidden=True), nn.Linear(20, 3), snn.Leaky(beta=0.9))
    forward = lambda net, x: torch.stack([net[3](net[:3](x), torch.zeros(()))[1] for _ in range(STEPS)])  # noqa: E731
    with quiet(net, seed=0):
        expected = run(net, batch := batch_of(vectors()), forward)[1]
        with fast_passes(net):
            found = [run(net, batch, forward, whole=False)[1] for _ in range(PASSES)]
    torch.testing.assert_close(found, [expected] * PASSES)


def test_new_values_of_parameters_are_seen(dense):
    batch = batch_of(vectors())
    with fast_passes(dense):
        before = [run(dense, batch)[0] for _ in range(PASSES)][-1]
        with with_values({(dense.fc1, "weight"): torch.zeros_like(dense.fc1.weight)}):
            found, products_now = run(dense, batch)[0], products(dense, batch)
        assert torch.equal(run(dense, batch)[0], before)
    assert products_now == 2
    assert not torch.allclose(found, before)


@pytest.mark.parametrize("replaces", ["new_inputs", "new_outputs", "calls"])
def test_a_pass_that_replaces_values_runs_as_it_is_written(replaces, dense):
    change = (lambda *given: given[-1]) if replaces == "calls" else (lambda value: value)
    with fast_passes(dense), Products() as seen:
        for _ in range(PASSES):
            record(dense, batch_of(vectors()), plain_forward, Taps(**{replaces: {dense.fc2: change}}))
    assert seen.count == PASSES * 2 * STEPS


def test_another_net_runs_as_it_is_written(dense):
    with fast_passes(nn.Linear(2, 2)):
        assert [products(dense, batch_of(vectors())) for _ in range(PASSES)] == [2 * STEPS] * PASSES


def test_a_pass_that_would_take_too_much_memory_runs_as_it_is_written(dense, monkeypatch):
    monkeypatch.setattr("snn_recon_plugin.scan.passes._MOST_BYTES", 2_000)
    batch = batch_of(vectors())
    expected = run(dense, batch)
    with fast_passes(dense):
        found = [run(dense, batch) for _ in range(PASSES)]
        assert products(dense, batch) == 2 * STEPS
    torch.testing.assert_close(found, [expected] * PASSES, rtol=0, atol=0)


def test_a_plan_with_other_values_is_not_used(dense, monkeypatch):
    expected = run(dense, batch := batch_of(vectors()))
    own = SnnTorchStepper.scan

    def late(*given, **options):
        spikes, states = own(*given, **options)
        return spikes.roll(1, 0), states

    monkeypatch.setattr(SnnTorchStepper, "scan", late)
    with fast_passes(dense):
        found = [run(dense, batch) for _ in range(PASSES)]
    torch.testing.assert_close(found, [expected] * PASSES, rtol=0, atol=0)


def test_a_pass_that_calls_no_tapped_module_is_refused(dense):
    dense.fc3, batch = nn.Linear(2, 2), batch_of(vectors())
    with fast_passes(dense):
        for _ in range(PASSES):
            with pytest.raises(CaptureError, match=r"calls none of 'fc3' \(Linear\)"):
                watch(dense, batch, plain_forward, Taps(inputs={dense.fc3: lambda value: None}))


def test_an_error_of_the_net_is_explained_in_each_pass(dense):
    with fast_passes(dense):
        for _ in range(PASSES):
            with pytest.raises(NetworkError, match=r"raised RuntimeError.*batch 1"):
                record(dense, batch_of(torch.rand(BATCH, 5)), plain_forward)


class Scaled:
    """A forward with a value of its own."""

    scale = 1.0

    def __call__(self, net, batch):
        return net(self.scale * batch[0])


class Sensitive(snn.Leaky):
    def __init__(self):
        super().__init__(beta=0.9, threshold=0.5)


def heavier(net, forward):
    with torch.no_grad():
        net.fc1.weight.mul_(2)


def another_layer(net, forward):
    net.fc2 = nn.Linear(20, 3)


def shorter(net, forward):
    net.steps = 3


def another_kind(net, forward):
    net.lif1 = Sensitive()


def weaker(net, forward):
    forward.scale = 0.5


def as_step(net, forward):
    """The forward inside a training step, as it is read."""
    step = lambda net, batch: functional.cross_entropy(forward(net, batch).sum(0), batch[1])  # noqa: E731
    return read_first(net, [(vectors(), LABELS)], Options(step=step)).call


@pytest.mark.parametrize("wrapped", [lambda net, forward: forward, as_step], ids=["forward", "step"])
@pytest.mark.parametrize(("change", "records"), [(heavier, 0), (another_layer, 0), (shorter, 1), (another_kind, 1), (weaker, 1)])
def test_plans_last_over_copies_while_only_values_change(change, records, wrapped):
    torch.manual_seed(0)
    net, scaled, kept, batch = Dense(), Scaled(), KeptPasses(), batch_of((3 * vectors(), LABELS))
    net.place, net.precision = torch.device("cpu"), torch.float32  # a Lightning module holds both; a copy has another device object
    forward = wrapped(net, scaled)

    def count_records():
        """Measure three copies, each twice, and compare with the net itself."""
        counts = []
        for _ in range(3):
            with kept.of(private_copy(net)) as copied, quiet(copied, seed=0):
                counts += [products(copied, batch, forward=forward) for _ in range(2)]
                found = run(copied, batch, forward)
        with quiet(net, seed=0):
            torch.testing.assert_close(found, run(net, batch, forward), rtol=1e-4, atol=1e-5)
        return sum(count > 2 * net.steps for count in counts)

    assert count_records() == 1
    change(net, scaled)
    assert count_records() == records


def test_what_changes_with_each_copy_is_not_kept_for_ever():
    kept, net, seen = KeptPasses(), Dense(), set()
    for number in range(100):
        net.number = number
        with kept.of(private_copy(net)) as copied, quiet(copied, seed=0):
            run(copied, batch_of(vectors()))
            seen.add(copied)
    assert len(seen) == 2
