from collections import UserDict
from typing import NamedTuple

import pytest
import torch

from snn_recon_plugin.networks.calls.batches import INSPECTED, describe, first_samples, map_tensors, refilled, tensors_in, to_device
from snn_recon_plugin.networks.calls.record import prepare_batch

CPU = torch.device("cpu")
ONES = torch.ones(2)


def test_finite_and_whole_numbers_are_moved():
    inputs = [ONES, torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.bool)]
    batch = prepare_batch(inputs, torch.zeros(2), 1, torch.device("meta"))
    assert {value.device.type for value in (*batch.inputs, batch.targets)} == {"meta"}


def test_first_samples():
    static, over_time = torch.rand(64, 3), torch.rand(5, 64, 3)
    few, count = first_samples(static, 64, run=lambda x: x)
    assert count == INSPECTED
    assert torch.equal(few, static[:INSPECTED])
    assert torch.equal(first_samples(over_time, 64, 7)[0], over_time[:, :7])
    (left, right), _ = first_samples((static, over_time.movedim(0, 1)), 64, run=lambda x: x[0])
    assert len(left) == len(right) == INSPECTED
    square = torch.rand(16, 16, 3)
    assert torch.equal(first_samples(square, 16, 4, axis=1)[0], square[:, :4])
    for whole, count, run in [
        (static, 64, lambda x: x.view(64, 3)),
        (static, 64, lambda _: torch.zeros(64, 2)),
        (static, 30, None),
        (square, 16, None),
        (static[:6], 6, None),
    ]:
        few, found = first_samples(whole, count, run=run)
        assert few is whole
        assert found == count


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
    assert [len(tensor) for tensor in tensors_in(value)] == [2, 1, 1, 3]  # depth first


def test_to_device_moves_nested_tensors_and_objects_with_a_to():
    class Graph:
        def to(self, device):
            return f"moved to {device}"

    assert to_device(Graph(), CPU) == "moved to cpu"
    assert to_device((torch.zeros(1),), torch.device("meta"))[0].device.type == "meta"
    assert to_device(None, CPU) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.zeros(2, 3), "tensor [2, 3]"),
        ((torch.zeros(2), None), "a tuple of 2 (tensor [2], a NoneType)"),
        ([1] * 6, "a list of 6 (a int, a int, a int, a int, ...)"),
        ({"x": 1}, "a dict with the keys ['x']"),
        ("text", "a str"),
    ],
)
def test_describe(value, text):
    assert describe(value) == text


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
