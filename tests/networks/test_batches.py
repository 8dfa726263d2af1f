import pytest
import torch
from torch import nn

from snn_recon_plugin.errors import DataError
from snn_recon_plugin.networks import device_of, few_samples, prepare_batch, split_batch

CPU = torch.device("cpu")


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
        prepare_batch({"x": (torch.tensor([1.0, bad]),)}, torch.zeros(2), 2, CPU)


def test_finite_and_whole_numbers():
    inputs = [torch.ones(2), torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.bool)]
    batch = prepare_batch(inputs, torch.zeros(2), 1, torch.device("meta"))
    assert {value.device.type for value in (*batch.inputs, batch.targets)} == {"meta"}


def test_an_empty_batch():
    with pytest.raises(DataError, match="batch 2 is empty"):
        prepare_batch(torch.zeros(0, 4), torch.zeros(0), 2, CPU)


def test_device_of():
    assert device_of(nn.Linear(1, 1)) == torch.device("cpu")
    assert device_of(nn.Identity()) == torch.device("cpu")


def test_few_samples():
    static, over_time = torch.rand(64, 3), torch.rand(5, 64, 3)
    assert few_samples(static, 64, lambda x: x).shape == (8, 3)
    assert few_samples(over_time, 64, lambda x: x, keep=4).shape == (5, 4, 3)
    pair = few_samples((static, over_time.movedim(0, 1)), 64, lambda x: x[0])
    assert [len(part) for part in pair] == [8, 8]


def test_batches_that_stay_whole():
    x = torch.rand(64, 3)

    def needs_all(x):
        return x.view(64, 3)

    assert few_samples(x, 64, needs_all) is x
    assert few_samples(x, 64, lambda _: torch.zeros(64, 2)) is x
    assert few_samples(x, 30, lambda x: x) is x
    assert few_samples(x[:6], 6, lambda x: x).shape == (6, 3)
    square = torch.rand(16, 16, 3)
    assert few_samples(square, 16, lambda x: x) is square
