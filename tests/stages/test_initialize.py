"""An error or an interrupt in any stage leaves the network as before."""

import itertools
import pkgutil

import pytest
import torch

from snn_recon_plugin.distributed import SingleProcess
from snn_recon_plugin.errors import WriteError
from snn_recon_plugin.networks.calls.batches import tensors_in
from snn_recon_plugin.networks.capture import Captured
from snn_recon_plugin.networks.write import Transaction
from snn_recon_plugin.stages.collect import ProgramData, gather_spikes
from snn_recon_plugin.stages.criterion import Labels
from snn_recon_plugin.stages.initialize import gather_first
from snn_recon_plugin.stages.stream import Split, Stream
from snn_recon_plugin.tables import Tables

from ..helpers import batches, loop_net, refused

pytestmark = pytest.mark.usefixtures("one_rate")


@pytest.mark.parametrize(
    ("hidden", "number", "error"),
    [
        ("keep", 0, OSError("disk gone")),
        ("keep", 1, KeyboardInterrupt()),
        ("keep", 3, StopIteration()),
        ("rescale", 0, StopIteration()),
        ("rescale", 1, OSError("disk gone")),
        ("rescale", 3, KeyboardInterrupt()),
    ],
)
def test_a_loader_that_raises(hidden, number, error):
    def loader():
        yield from batches(400, 100)[:number]
        raise error

    expected = RuntimeError if isinstance(error, StopIteration) else type(error)
    caught = refused(loop_net(), loader(), expected, hidden=hidden)
    assert caught is error or caught.__cause__ is error


@pytest.mark.parametrize(
    ("place", "number", "drawn", "error"),
    [
        ("stages.task.inspect_network", 1, 3, KeyboardInterrupt),
        ("stages.build.rebuild_layer", 1, 3, MemoryError),
        ("stages.collect.capture", 1, 3, KeyboardInterrupt),
        ("stages.fit.choose_strength", 1, 3, KeyboardInterrupt),
        ("convex.path.solve", 3, 3, MemoryError),
        ("stages.place.decode_batches", 1, 3, KeyboardInterrupt),
        ("stages.initialize.make_report", 1, 0, MemoryError),
        # All is written by then, but the user holds no report to undo it with.
        ("networks.write.Transaction.__exit__", 1, 0, KeyboardInterrupt),
        ("networks.write.Transaction.__exit__", 1, 0, MemoryError),
    ],
)
def test_an_interrupt_in_any_stage(monkeypatch, place, number, drawn, error):
    target = f"snn_recon_plugin.{place}"
    function, calls = pkgutil.resolve_name(target), itertools.count(1)

    def interrupted(*arguments, **options):
        if next(calls) == number:
            torch.rand(drawn)
            raise error
        return function(*arguments, **options)

    monkeypatch.setattr(target, interrupted)
    refused(loop_net(), batches(60), error)


def test_scores_that_are_not_the_programs(monkeypatch):
    """The comparison after the write is a real one: a bias that is slightly wrong is found, and rolled back."""
    write = Transaction.write

    def wrong(self, module, name, value):
        write(self, module, name, value)
        if name == "bias":
            # Behind the back of the comparison, which reads the parameters that were written.
            module.register_forward_hook(lambda _module, _args, output: output + 0.01)

    monkeypatch.setattr(Transaction, "write", wrong)
    refused(loop_net(), batches(200), WriteError, "differ from those promised by up to 0.0", hidden="keep", strength=1e-3)


# -- samples of several processes, brought together as one process would read them ------------------------------------------
class Rank(SingleProcess):
    """One of several ranks; the last one finds what the others have sent."""

    is_distributed = True

    def __init__(self, rank, sent):
        self.rank, self.size, self._sent = rank, len(sent), sent

    def collect(self, value):
        self._sent[self.rank] = value
        return [] if None in self._sent else self._sent


def gathered(wanted, *shares):
    """Return the first samples of ranks that hold these batches, and the batches; rank 0 is asked last."""
    sent = [None] * len(shares)
    for rank in reversed(range(len(shares))):
        found = gather_first(Stream(shares[rank]), wanted, Rank(rank, sent))
        assert (found is None) is (rank > 0)
    return found[1], list(found[0])


def dealt(values, world, size, axis=0):
    """Return samples dealt out one by one, in batches of each rank."""
    return [
        list(zip(values.index_select(axis, own).split(size, axis), own.split(size), strict=True))
        for own in (torch.arange(rank, values.shape[axis], world) for rank in range(world))
    ]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("world", [2, 3])
def test_samples_dealt_out_one_by_one_are_read_as_by_one_process(world, axis, nested):
    values = torch.randn(7, 40) if axis else torch.randn(40, 7)
    shares = dealt(values, world, 5, axis)
    if nested:
        shares = [[({"x": inputs, "more": [inputs]}, targets) for inputs, targets in batches] for batches in shares]
    numbers, batches = gathered(24, *shares)
    count = len(numbers)
    assert 24 <= count <= 24 + 5 * world
    assert torch.equal(numbers, torch.arange(count))
    assert [len(batch.targets) for batch in batches[:-1]] == [5] * (len(batches) - 1)
    for each in zip(*(tensors_in(batch.inputs) for batch in batches), strict=True):
        assert torch.equal(torch.cat(each, axis), values.narrow(axis, 0, count))
    assert torch.equal(torch.cat([batch.targets for batch in batches]), torch.arange(count))


def test_a_rank_that_has_few_samples_leaves_gaps():
    values = torch.randn(40, 7)
    first, second = dealt(values, 2, 5)
    numbers, batches = gathered(40, first, second[:1])
    assert sorted(numbers.tolist()) == [*range(0, 10), *range(10, 40, 2)]
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), values[numbers])


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda values: values.expand(5, 5, 7), id="either axis may be the samples'"),
        pytest.param(lambda values: values.repeat(1, 1 + int(values[0, 0])), id="unequal forms"),
    ],
)
def test_batches_that_cannot_be_joined_stay_whole_in_rounds(make):
    values = torch.arange(20.0).repeat_interleave(5)[:, None].expand(-1, 7)
    shares = [[(make(inputs), targets) for inputs, targets in batches] for batches in dealt(values, 2, 5)]
    numbers, batches = gathered(20, *shares)
    assert torch.equal(numbers, torch.cat([batch.targets for batch in batches]))
    for batch, (inputs, targets) in zip(batches, [shares[0][0], shares[1][0], shares[0][1], shares[1][1]], strict=True):
        assert all(map(torch.equal, tensors_in(batch.inputs), tensors_in(inputs)))
        assert torch.equal(batch.targets, targets)


class Recorded(SingleProcess):
    """One of two ranks, which records what it sends; the second one to run gets what the other has sent."""

    is_distributed = True

    def __init__(self, received=()):
        self.sent, self._received = [], iter(received)

    def gather(self, value):
        self.sent.append(value)
        return [value, next(self._received, value)]

    def gather_rows(self, rows, places):
        own, other = self.gather((rows, places))
        order = torch.cat([own[1], other[1]]).argsort()
        return torch.cat([own[0], other[0]])[order]


def kept(processes, places, steps, heldout):
    """Data of a rank with the spikes of two samples, whose values are their places."""
    places = torch.tensor(places)
    spikes = (places + 1.0).expand(steps, 2)[..., None]
    captured = Captured(torch.zeros(2, 1), places, torch.zeros(2, 1), {}, [], steps, spikes)
    split = Split((~torch.tensor(heldout)).nonzero()[:, 0], torch.tensor(heldout).nonzero()[:, 0])
    labels, seen = Labels(places, None, None), torch.zeros(1, 1)
    return ProgramData(captured, split, labels, seen, {}, {}, places, Tables(), processes, places, (3, 2), 0)


def test_spikes_of_ranks_whose_batches_differ_in_steps_end_together():
    first = Recorded()
    gather_spikes(kept(first, [1, 3], 2, [True, False]))
    found = gather_spikes(kept(Recorded(first.sent), [0, 2], 3, [False, True]))
    assert found.captured.spikes[..., 0].T.tolist() == [[1, 1, 1], [0, 2, 2], [3, 3, 3], [0, 4, 4]]
    assert found.captured.lengths.tolist() == [3, 2, 3, 2]
    assert found.labels.targets.tolist() == [0, 1, 2, 3]
    assert (found.split.fitted.tolist(), found.split.heldout.tolist()) == ([0, 3], [1, 2])
