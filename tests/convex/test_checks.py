"""Checks of labels, through the losses, and of numbers that users pass."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from snn_recon_plugin.convex import LOSSES, CrossEntropy, Logistic, Squared, make_loss
from snn_recon_plugin.convex.checks import checked_bound, checked_time_limit, positive_number
from snn_recon_plugin.errors import DataError, OptionError

from .helpers import VALUES


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64])
def test_labels_of_any_integer_dtype(dtype):
    classes = torch.tensor([0, 2, 1], dtype=dtype)
    assert torch.equal(CrossEntropy().prepare(classes, 3), torch.tensor([0, 2, 1]))
    hot = torch.eye(3, dtype=torch.float64)[[0, 2, 1]]
    assert torch.equal(Squared().prepare(classes, 3), hot)
    assert torch.equal(Logistic().prepare(classes, 3), 2 * hot - 1)


def test_labels_of_two_classes():
    flags = torch.tensor([True, False])
    assert torch.equal(CrossEntropy().prepare(flags, 2), torch.tensor([1, 0]))
    assert torch.equal(Logistic().prepare(flags, 1), torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    assert torch.equal(Logistic().prepare(flags, 2), torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64))


def test_label_indicators_and_regression_targets():
    indicators = torch.tensor([[0, 1], [1, 1]])
    assert torch.equal(Logistic().prepare(indicators, 2), torch.tensor([[-1.0, 1.0], [1.0, 1.0]], dtype=torch.float64))
    assert Squared().prepare(torch.tensor([0.5, 2.0]), 1).tolist() == [[0.5], [2.0]]
    columns = Squared().prepare(torch.tensor([[0.5, 2.0]], dtype=torch.float16), 2)
    assert columns.dtype == torch.float64
    assert columns.tolist() == [[0.5, 2.0]]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("targets", "found", "needed"),
    [
        (torch.tensor([[0, 1, 2]]).T, r"labels of shape \(3, 1\)", "one class index a sample"),
        (torch.eye(3, dtype=torch.int64)[:, :2], r"labels of shape \(3, 2\)", "one class index a sample"),
        (torch.tensor([0, 1, 3]), "labels from 0 to 3", "class indices from 0 to 2"),
        (torch.tensor([-1, 0, 1]), "labels from -1 to 1", "class indices from 0 to 2"),
    ],
)
def test_bad_labels(name, targets, found, needed):
    with pytest.raises(DataError, match=found) as caught:
        make_loss(name).prepare(targets, 3)
    assert needed in caught.value.needed
    assert caught.value.fix


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in VALUES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_labels_that_are_not_integers(name, dtype):
    with pytest.raises(DataError, match=f"labels of dtype {dtype}") as caught:
        make_loss(name).prepare(torch.tensor([0, 1, 2]).to(dtype), 3)
    assert "labels.long()" in caught.value.fix


SEVERAL = torch.tensor([[1, 0, 1], [0, 0, 0]])
FIXES = {
    "one-hot": (torch.eye(3), "labels.argmax(1)"),
    "a column": (torch.tensor([[0], [2]]), "labels.squeeze(1)"),
    "several classes": (SEVERAL, "loss=nn.BCEWithLogitsLoss()"),
    "several classes, floating": (SEVERAL.float(), "loss=nn.BCEWithLogitsLoss()"),
    "values": (torch.rand(2, 3), "loss=nn.MSELoss()"),
    "whole numbers": (torch.tensor([0.0, 2.0]), "labels.long()"),
    "numbers": (torch.tensor([0.3, 1.2]), "loss=nn.MSELoss()"),
}


@pytest.mark.parametrize("name", FIXES)
def test_what_to_type_for_labels_of_another_form(name):
    targets, fix = FIXES[name]
    with pytest.raises(DataError, match="labels of") as caught:
        CrossEntropy().prepare(targets, 3)
    assert fix in caught.value.fix


@pytest.mark.parametrize("targets", [torch.tensor([0, 1]), torch.tensor([0.5, 2.0])])
def test_one_output_has_no_cross_entropy(targets):
    with pytest.raises(DataError, match="cross_entropy with one output") as caught:
        CrossEntropy().prepare(targets, 1)
    assert "loss='logistic'" in caught.value.fix
    assert "nn.MSELoss()" in caught.value.fix


def test_floating_labels_of_one_output_need_no_second_axis():
    """As torch's BCEWithLogitsLoss takes them for scores (n,)."""
    assert Logistic().prepare(torch.tensor([0.0, 1.0]), 1).tolist() == [[-1.0], [1.0]]
    with pytest.raises(DataError, match="other than 0 and 1"):
        Logistic().prepare(torch.tensor([0.0, 2.0]), 1)


def test_bad_indicators():
    with pytest.raises(DataError, match="other than 0 and 1"):
        Logistic().prepare(torch.tensor([[0.0, 0.5, 1.0]]), 3)


def test_the_label_that_torch_ignores_has_its_own_advice():
    with pytest.raises(DataError, match="-100") as caught:
        CrossEntropy().prepare(torch.tensor([0, -100]), 2)
    assert "CrossEntropyLoss" in caught.value.fix


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.float64(2), Fraction(1, 2)])
def test_any_positive_real_number_is_taken(value):
    found = positive_number("tol", value, "pass tol=1e-6")
    assert (found, type(found)) == (float(value), float)
    assert checked_bound("max_products", value) == checked_time_limit(value) == float(value)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, np.bool_(True), "1", None, 1 + 0j])
def test_other_values_are_refused(value):
    with pytest.raises(OptionError, match="tol="):
        positive_number("tol", value, "pass tol=1e-6")
    if value not in (0, float("inf")):
        with pytest.raises(OptionError, match="time_limit="):
            checked_time_limit(value)
    if value != float("inf"):
        with pytest.raises(OptionError, match="max_products="):
            checked_bound("max_products", value)
