"""Features in temporary files: the same network to the last bit, read from any data, and nothing left behind."""

import tempfile

import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from snn_recon_plugin import ConvexInitializer, convex_init_, over_time
from snn_recon_plugin.errors import DataError, NetworkError, OptionError
from snn_recon_plugin.tables import Tables

WIDTH, STEPS, SAMPLES = 200, 4, 600
FILES = {"max_memory": 2**20, "hidden": "keep", "forward": over_time(STEPS)}  # 480 kB of features, and a third is the limit


def data():
    generator = torch.Generator().manual_seed(0)
    inputs = 2 * torch.rand(SAMPLES, 10, generator=generator)
    return inputs, (inputs[:, :3] * torch.tensor([1.0, 1.2, 0.9])).argmax(1)


def batches(size=100):
    inputs, labels = data()
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def build(beta=0.8):
    torch.manual_seed(1)
    hidden, output = (
        snn.Leaky(beta=0.9, init_hidden=True),
        snn.Leaky(beta=beta, init_hidden=True, output=True, reset_mechanism="none"),
    )
    return nn.Sequential(nn.Linear(10, WIDTH), hidden, nn.Linear(WIDTH, 3), output)


@pytest.fixture
def made(monkeypatch):
    """Sizes of the files that were made."""
    sizes, empty = [], Tables.empty

    def counted(self, *args):
        result = empty(self, *args)
        if not self.in_memory(result.nbytes):
            sizes.append(result.nbytes)
        return result

    monkeypatch.setattr(Tables, "empty", counted)
    return sizes


@pytest.mark.parametrize(
    ("beta", "options"),
    [
        (0.8, {}),
        (0.8, {"penalty": "group_l1", "fit_loss": "same"}),
        (0.8, {"readout": "membrane_per_step"}),
        (torch.tensor([0.5, 0.8, 0.9]), {}),
        (torch.tensor([0.5, 0.8, 0.9]), {"readout": "membrane_per_step"}),
    ],
    ids=["means", "sparse", "steps", "filters", "filters and steps"],
)
def test_files_change_no_bit(beta, options, made, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    nets = [build(beta), build(beta)]
    in_memory = convex_init_(nets[0], batches(), **{**FILES, "max_memory": 2**30}, **options)
    assert not made
    in_files = convex_init_(nets[1], batches(), **FILES, **options)
    assert made
    assert all(torch.equal(mine, other) for mine, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    assert in_files.accuracy_after == in_memory.accuracy_after
    assert not list(tmp_path.iterdir())


class Shards(IterableDataset):
    """Samples of files that are read one after another."""

    def __init__(self, folder):
        self.paths = sorted(folder.glob("*.npz"))

    def __iter__(self):
        for path in self.paths:
            shard = np.load(path)
            yield from zip(torch.from_numpy(shard["inputs"]), torch.from_numpy(shard["labels"]), strict=True)


def test_a_stream_of_unknown_length(made, tmp_path):
    for number, (inputs, labels) in enumerate(batches()):
        np.savez(tmp_path / f"{number}.npz", inputs=inputs.numpy(), labels=labels.numpy())
    streamed, listed = build(), build()
    report = convex_init_(streamed, DataLoader(Shards(tmp_path), batch_size=100), **FILES)
    convex_init_(listed, batches(), **FILES)
    assert report.samples == SAMPLES
    assert made
    assert torch.equal(streamed[2].weight, listed[2].weight)


def test_nan_in_a_late_batch_names_it():
    late, net = batches(20), build()
    late[22][0][3] = 100.0  # the others are at most 2
    net[1].register_forward_hook(lambda neuron, inputs, spikes: spikes * torch.where(inputs[0].abs().amax() > 50, torch.nan, 1.0))
    before = net[2].weight.clone()
    with pytest.raises(NetworkError, match="entering the readout in batch 23"):
        convex_init_(net, late, **FILES)
    assert torch.equal(net[2].weight, before)


def test_no_room_for_a_file_leaves_the_network(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 0}))
    net = build()
    before = net[2].weight.clone()
    with pytest.raises(DataError, match="temporary files"):
        convex_init_(net, batches(), **FILES)
    assert torch.equal(net[2].weight, before)


def test_memory_is_a_number_of_bytes():
    with pytest.raises(OptionError, match="max_memory='4 GB'"):
        ConvexInitializer(max_memory="4 GB")
