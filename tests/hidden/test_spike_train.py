"""Spikes stored in bits are the spikes that were given."""

import pytest
import torch

from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.hidden.spike_train import SpikeRecorder, SpikeTrain, split_in_blocks

SAMPLES, NEURONS = 5, 3
SIZES = torch.tensor([0.5, 1.0, 3.0])


def make(steps, size=1.0):
    return (torch.rand(steps, SAMPLES, NEURONS, generator=torch.Generator().manual_seed(steps)) < 0.4).float() * size


def pack(spikes):
    recorder = SpikeRecorder(len(spikes))
    for step in spikes:
        recorder.add(step)
    return recorder.finish()


@pytest.mark.parametrize(("steps", "size"), [*((steps, 1.0) for steps in (1, 7, 8, 9, 16, 30)), (12, SIZES)])
def test_every_step_comes_back_in_its_size_also_after_a_delay(steps, size):
    spikes = make(steps, size)
    train = pack(spikes)
    assert train.shape == (steps, SAMPLES, NEURONS)
    assert train.bits.nbytes == -(-steps // 8) * SAMPLES * NEURONS
    delayed = torch.cat([torch.zeros_like(spikes[:1]), spikes[:-1]])  # the last one is dropped
    for found, expected in ((train, spikes), (train.delay(), delayed)):
        assert torch.equal(found.unpack(), expected)
        assert all(torch.equal(found.at(step), expected[step]) for step in range(steps))
        torch.testing.assert_close(found.average(), expected.mean(0))


@pytest.mark.parametrize("sizes", [(1.0, 2.0), (-1.0, -1.0), (-1.0, 1.0)])
def test_spikes_of_several_sizes_or_below_zero_are_refused(sizes):
    spikes = make(12) * torch.tensor(sizes).repeat(6)[:, None, None]
    with pytest.raises(UnsupportedModuleError, match="differ in size or are negative"):
        pack(spikes)


def test_samples_are_joined_even_if_a_neuron_is_silent_in_some():
    spikes = make(12, SIZES)
    spikes[:, :2, 0] = 0.0
    assert torch.equal(SpikeTrain.join([pack(spikes[:, :2]), pack(spikes[:, 2:])]).unpack(), spikes)


def test_some_samples_and_neurons():
    spikes = make(10)
    train = pack(spikes)
    for index in (torch.tensor([4, 0, 0]), slice(1, 3)):
        assert torch.equal(train.take_samples(index).unpack(), spikes[:, index])
    assert torch.equal(train.take_neurons(slice(2, None)).unpack(), spikes[:, :, 2:])


def test_neurons_that_do_the_same_in_all_samples_are_joined_with_others():
    spikes, alike = make(10, 2.0), make(10)[:, :1]
    joined = pack(alike).append_neurons(pack(spikes))
    assert torch.equal(joined.unpack(), torch.cat([alike.expand(-1, SAMPLES, -1), spikes], 2))


@pytest.mark.parametrize(
    ("samples", "steps", "widest", "most"),
    [(10, 8, 2**13, 2**14), (3, 8, 2**20, 2**14), (1000, 8, 10, 2**14), (100, 2**9, 2**10, 2**12)],  # long trains at last
)
def test_blocks_cover_the_samples_and_are_of_limited_size(samples, steps, widest, most):
    blocks = split_in_blocks(samples, steps, widest)
    sizes = [block.stop - block.start for block in blocks]
    assert [number for block in blocks for number in range(block.start, block.stop)] == list(range(samples))
    assert all(size == 1 or size * widest <= most for size in sizes)
    assert len(blocks) == 1 or (sizes[0] + 1) * widest > most  # no smaller than needed
