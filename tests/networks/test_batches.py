from collections import UserDict
from typing import NamedTuple

import pytest
import torch
from torch import nn

from snn_recon_plugin.errors import DataError
from snn_recon_plugin.networks import INSPECTED, device_of, few_samples, map_tensors, prepare_batch, split_batch
from snn_recon_plugin.networks.batches import describe, refilled, tensors_in, to_device

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
    assert few_samples(static, 64, lambda x: x).shape == (INSPECTED, 3)
    assert few_samples(over_time, 64, lambda x: x).shape == (5, INSPECTED, 3)
    pair = few_samples((static, over_time.movedim(0, 1)), 64, lambda x: x[0])
    assert [len(part) for part in pair] == [INSPECTED, INSPECTED]


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


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


def test_map_keeps_the_structure():
    value = {"a": [torch.ones(2), "text"], "b": Pair(torch.zeros(1), torch.ones(1)), "c": (torch.ones(3),)}
    doubled = map_tensors(lambda t: t * 2, value)
    assert torch.equal(doubled["a"][0], torch.full((2,), 2.0))
    assert doubled["a"][1] == "text"
    assert isinstance(doubled["b"], Pair)
    assert torch.equal(doubled["b"].right, torch.full((1,), 2.0))
    assert isinstance(doubled["c"], tuple)
    assert torch.equal(value["a"][0], torch.ones(2))


def test_tensors_in_walks_depth_first():
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    assert [len(t) for t in tensors_in([a, {"x": (b, "no")}, 3, c])] == [1, 2, 3]


def test_to_device_moves_nested_tensors_and_objects_with_a_to():
    class Graph:
        def to(self, device):
            return f"moved to {device}"

    cpu = torch.device("cpu")
    assert to_device(Graph(), cpu) == "moved to cpu"
    assert to_device((torch.zeros(1),), cpu)[0].device == cpu
    assert to_device(None, cpu) is None


def test_describe():
    assert describe(torch.zeros(2, 3)) == "tensor [2, 3]"
    assert describe((torch.zeros(2), None)) == "a tuple of 2 (tensor [2], a NoneType)"
    assert describe([1] * 6).endswith("a int, ...)")
    assert describe({"x": 1}) == "a dict with the keys ['x']"
    assert describe("text") == "a str"


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_mappings_that_cannot_be_copied(kind):
    """As those whose attributes are their items are before Python 3.11."""

    class Output(kind):
        note = None

        def __copy__(self):
            raise KeyError("__getstate__")

    output = Output(a=torch.zeros(2), b=3)
    output.note = "kept"
    if kind is UserDict:
        with pytest.raises(KeyError):
            refilled(output, {"a": 1})
        return
    other = refilled(output, {"a": 1})
    assert (type(other), dict(other), other.note) == (Output, {"a": 1, "b": 3}, "kept")
    assert torch.equal(output["a"], torch.zeros(2))
