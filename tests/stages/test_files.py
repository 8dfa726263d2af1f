"""Features in temporary files: the same network to the last bit, read from any data, and nothing left behind."""

import tempfile

import pytest
import snntorch as snn
import torch

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.errors import NetworkError

from ..helpers import values
from ..nets import sequential_net

SAMPLES = 600
FILES = {"max_memory": 2**20, "hidden": "keep", "forward": over_time(4)}  # 480 kB of features, and a third is the limit
LEAKS = torch.tensor([0.5, 0.8, 0.9])


def batches(size=100):
    inputs = 2 * torch.rand(SAMPLES, 10, generator=torch.Generator().manual_seed(0))
    labels = (inputs[:, :3] * torch.tensor([1.0, 1.2, 0.9])).argmax(1)
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def build(beta=0.8):
    output = snn.Leaky(beta=beta, init_hidden=True, output=True, reset_mechanism="none")
    return sequential_net(sizes=(10, 200, 3), output=output)


@pytest.mark.parametrize(
    ("beta", "options"),
    [
        (0.8, {}),
        (0.8, {"penalty": "group_l1", "fit_loss": "same"}),
        (0.8, {"readout": "membrane_per_step"}),
        (LEAKS, {}),
        (LEAKS, {"readout": "membrane_per_step"}),
    ],
    ids=["means", "sparse", "steps", "filters", "filters and steps"],
)
def test_files_change_no_bit(beta, options, tmp_path, monkeypatch):
    made, mkstemp = [], tempfile.mkstemp
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "mkstemp", lambda **names: made.append(names) or mkstemp(**names))
    nets = [build(beta), build(beta)]
    in_memory = convex_init_(nets[0], batches(), **{**FILES, "max_memory": 2**30}, **options)
    assert not made
    in_files = convex_init_(nets[1], iter(batches()), **FILES, **options)  # a stream of unknown length
    assert made
    assert values(nets[0]) == values(nets[1])
    assert (in_files.program.samples, in_files.accuracy_after) == (SAMPLES, in_memory.accuracy_after)
    assert not list(tmp_path.iterdir())


def test_nan_in_a_late_batch_names_it():
    late, net = batches(20), build()
    late[22][0][3] = 100.0  # the others are at most 2
    net[1].register_forward_hook(lambda neuron, inputs, spikes: spikes * torch.where(inputs[0].abs().amax() > 50, torch.nan, 1.0))
    before = values(net)
    with pytest.raises(NetworkError, match="entering the readout in batch 23"):
        convex_init_(net, late, **FILES)
    assert values(net) == before
