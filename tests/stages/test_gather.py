"""The first samples of several processes, brought together in rank 0 as one process would read them."""

import pytest
import torch

from snn_recon_plugin.distributed import SingleProcess
from snn_recon_plugin.networks.calls.batches import tensors_in
from snn_recon_plugin.stages.gather import gather_first
from snn_recon_plugin.stages.stream import Stream


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
    return found.numbers, list(found.stream)


def dealt(values, world, size, axis=0):
    """Return samples dealt out one by one, in batches of each rank."""
    return [
        list(zip(values.index_select(axis, own).split(size, axis), own.split(size), strict=True))
        for own in (torch.arange(rank, values.shape[axis], world) for rank in range(world))
    ]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("world", [2, 3])
def test_samples_dealt_out_one_by_one_are_read_as_by_one_process(world, axis):
    values = torch.randn(7, 40) if axis else torch.randn(40, 7)
    numbers, batches = gathered(24, *dealt(values, world, 5, axis))
    count = len(numbers)
    assert 24 <= count <= 24 + 5 * world
    assert torch.equal(numbers, torch.arange(count))
    assert [len(batch.targets) for batch in batches[:-1]] == [5] * (len(batches) - 1)
    assert torch.equal(torch.cat([batch.inputs for batch in batches], axis), values.narrow(axis, 0, count))
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
        pytest.param(lambda values: (values, values), id="nested"),
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
