import pytest
import torch
from torch import nn

from snn_recon_plugin.errors import DataError
from snn_recon_plugin.networks import check_finite, device_of, split_batch


@pytest.mark.parametrize("batch", [(torch.ones(2), torch.tensor([0, 1])), [torch.ones(2), [0, 1]]])
def test_pairs(batch):
    inputs, target = split_batch(batch, 1)
    assert inputs is batch[0]
    assert torch.equal(target, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        (torch.ones(2), "batch 3 is tensor"),
        ((torch.ones(2),), "batch 3 is a tuple of 1"),
        ((1, 2, 3), "batch 3 is a tuple of 3"),
        ({"x": 1, "y": 2}, "batch 3 is a dict with the keys"),
        ((torch.ones(2), "label"), "the target of batch 3 is a str"),
        ((torch.ones(2), ["a", "b"]), "the target of batch 3 is a list"),
        ((torch.ones(2), torch.tensor(1)), "the target of batch 3 is a single number"),
    ],
)
def test_anything_else(batch, found):
    with pytest.raises(DataError, match=found):
        split_batch(batch, 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite(bad):
    with pytest.raises(DataError, match="batch 2 holds 1 NaN or infinite"):
        check_finite({"x": (torch.tensor([1.0, bad]),)}, 2)


def test_finite_and_whole_numbers():
    check_finite([torch.ones(2), torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.bool)], 1)


def test_device_of():
    assert device_of(nn.Linear(1, 1)) == torch.device("cpu")
    assert device_of(nn.Identity()) == torch.device("cpu")
