from collections import UserDict
from typing import NamedTuple

import pytest
import torch

from snn_recon_plugin.errors import DataError
from snn_recon_plugin.networks.structures import RowBuffer, describe, map_tensors, refilled, tensors_in, to_device


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


@pytest.mark.parametrize("expected", [1, 5, 100])
def test_rows_come_back_in_order(expected):
    buffer, rows = RowBuffer(), torch.arange(18.0).reshape(9, 2)
    for part in rows.split(2):
        buffer.append(part, expected=expected)
    assert torch.equal(buffer.rows(), rows)


def test_another_shape():
    buffer = RowBuffer()
    buffer.append(torch.ones(2, 3), expected=4)
    with pytest.raises(DataError, match=r"shape \[4\] after samples of shape \[3\]"):
        buffer.append(torch.ones(2, 4), expected=4)
