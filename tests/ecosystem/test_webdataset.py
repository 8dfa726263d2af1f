"""Samples in tar files, read by WebDataset; `make ecosystem` runs this where it is installed."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from snn_recon_plugin import convex_init_, over_time

from ..nets import sequential_net

webdataset = pytest.importorskip("webdataset", reason="make ecosystem installs it in an environment of its own")
SAMPLES, WIDTH, CLASSES, BATCH = 250, 16, 3, 32
pytestmark = pytest.mark.filterwarnings("ignore")


def draw():
    """Return three kinds of patterns with noise, and their classes."""
    random = np.random.default_rng(0)
    labels = np.arange(SAMPLES) % CLASSES
    patterns = random.random((CLASSES, WIDTH))
    return np.clip(patterns[labels] + 0.2 * random.standard_normal((SAMPLES, WIDTH)), 0, 1).astype(np.float32), labels


@pytest.fixture
def shards(tmp_path):
    """Write the samples into three tar files; return their names."""
    with webdataset.ShardWriter(f"{tmp_path}/%03d.tar", maxcount=100, verbose=0) as writer:
        for number, (values, label) in enumerate(zip(*draw(), strict=True)):
            writer.write({"__key__": f"{number:04d}", "input.npy": values, "label.cls": int(label)})
    return sorted(map(str, tmp_path.glob("*.tar")))


def build():
    return sequential_net(sizes=(WIDTH, 40, CLASSES))


def stream(shards):
    return webdataset.WebDataset(shards, shardshuffle=False).decode().to_tuple("input.npy", "label.cls")


def solve(net, loader, **options):
    return convex_init_(net, loader, forward=over_time(10), progress=False, **options)


@pytest.mark.parametrize("loader", [DataLoader, webdataset.WebLoader])
def test_a_stream_of_shards_is_solved_as_a_list_of_its_batches(shards, loader):
    assert len(shards) == 3
    inputs, labels = map(torch.from_numpy, draw())
    streamed, listed = build(), build()
    report = solve(streamed, loader(stream(shards), batch_size=BATCH), max_memory=2**20)
    solve(listed, list(zip(inputs.split(BATCH), labels.split(BATCH), strict=True)))
    assert report.program.samples == SAMPLES
    assert report.certificate.reached
    assert all(torch.equal(mine, other) for mine, other in zip(streamed.parameters(), listed.parameters(), strict=True))


def test_a_stream_in_another_order_at_each_pass(shards):
    """Batches are made in the pipeline, after a buffer that shuffles."""
    pipeline = stream(shards).shuffle(100).batched(BATCH)
    report = solve(build(), webdataset.WebLoader(pipeline, batch_size=None))
    assert report.program.samples == SAMPLES
    assert report.certificate.reached
    assert report.accuracy_after > 0.9
