"""Checks of labels, through the losses, and of numbers that users pass."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from snn_recon_plugin.convex import LOSSES, CrossEntropy, Logistic, Squared, make_loss
from snn_recon_plugin.convex.checks import checked_bound, positive_number
from snn_recon_plugin.errors import DataError, OptionError

from .helpers import VALUES

FLAGS, NUMBERS, SEVERAL = torch.tensor([True, False]), torch.tensor([0.5, 2.0]), torch.tensor([[1, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64])
def test_labels_of_any_integer_dtype(dtype):
    classes = torch.tensor([0, 2, 1], dtype=dtype)
    assert torch.equal(CrossEntropy().prepare(classes, 3), torch.tensor([0, 2, 1]))
    hot = torch.eye(3, dtype=torch.float64)[[0, 2, 1]]
    assert torch.equal(Squared().prepare(classes, 3), hot)
    assert torch.equal(Logistic().prepare(classes, 3), 2 * hot - 1)


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "expected"),
    [
        (CrossEntropy, 2, FLAGS, [1, 0]),
        (Logistic, 1, FLAGS, [[1.0], [-1.0]]),
        (Logistic, 2, FLAGS, [[-1.0, 1.0], [1.0, -1.0]]),
        (Logistic, 2, torch.tensor([[0, 1], [1, 1]]), [[-1.0, 1.0], [1.0, 1.0]]),
        (Logistic, 1, torch.tensor([0.0, 1.0]), [[-1.0], [1.0]]),  # as torch's BCEWithLogitsLoss takes them for scores (n,)
        (Squared, 1, FLAGS, [[1.0], [0.0]]),
        (Squared, 1, torch.tensor([0, 1], dtype=torch.uint8), [[0.0], [1.0]]),
        (Squared, 1, NUMBERS, [[0.5], [2.0]]),
        (Squared, 2, NUMBERS[None].half(), [[0.5, 2.0]]),
    ],
)
def test_other_forms_of_targets(loss, outputs, targets, expected):
    prepared = loss().prepare(targets, outputs)
    assert prepared.tolist() == expected
    assert prepared.dtype == (torch.int64 if loss is CrossEntropy else torch.float64)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("targets", "found", "needed"),
    [
        (torch.tensor([[0, 1, 2]]).T, r"labels of shape \(3, 1\)", "one class index a sample"),
        (torch.eye(3, dtype=torch.int64)[:, :2], r"labels of shape \(3, 2\)", "one class index a sample"),
        (torch.tensor([0, 1, 3]), "labels from 0 to 3", "class indices from 0 to 2"),
        (torch.tensor([-1, 0, 1]), "labels from -1 to 1", "class indices from 0 to 2"),
        (torch.tensor([0.0, 1.0, 2.0]), "labels of dtype torch.float32", "integer class indices"),
        (torch.tensor([0, 1, 2]).to(torch.complex64), "labels of dtype torch.complex64", "integer class indices"),
    ],
)
def test_bad_labels(name, targets, found, needed):
    if targets.is_floating_point() and name in VALUES:
        found, needed = r"regression targets of shape \(3,\)", "shape (samples, 3)"
    with pytest.raises(DataError, match=found) as caught:
        make_loss(name).prepare(targets, 3)
    assert needed in caught.value.needed
    assert caught.value.fix


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "found", "fix"),
    [
        ("cross_entropy", 3, torch.eye(3), "labels of shape", "labels.argmax(1)"),
        ("cross_entropy", 3, torch.tensor([[0], [2]]), "labels of shape", "labels.squeeze(1)"),
        ("cross_entropy", 3, SEVERAL, "labels of shape", "loss=nn.BCEWithLogitsLoss()"),
        ("cross_entropy", 3, SEVERAL.float(), "labels of shape", "loss=nn.BCEWithLogitsLoss()"),
        ("cross_entropy", 3, torch.rand(2, 3), "labels of shape", "loss=nn.MSELoss()"),
        ("cross_entropy", 3, torch.tensor([0.0, 2.0]), "labels of dtype", "labels.long()"),
        ("cross_entropy", 3, torch.tensor([0.3, 1.2]), "labels of dtype", "loss=nn.MSELoss()"),
        ("cross_entropy", 2, torch.tensor([0, -100]), "labels of -100", "CrossEntropyLoss"),  # the label that torch ignores
        ("cross_entropy", 1, torch.tensor([0, 1]), "cross_entropy with one output", "loss='logistic'"),
        ("cross_entropy", 1, NUMBERS, "cross_entropy with one output", "nn.MSELoss()"),
        ("logistic", 1, torch.tensor([0.0, 2.0]), "other than 0 and 1", "class indices"),
        ("logistic", 3, torch.tensor([[0.0, 0.5, 1.0]]), "other than 0 and 1", "class indices"),
        ("squared", 1, torch.tensor([0, 1, 2]), "labels from 0 to 2", "renumber"),
        ("squared", 2, torch.zeros(4), r"regression targets of shape \(4,\)", "reshape"),
        ("squared", 2, torch.zeros(4, 3), r"regression targets of shape \(4, 3\)", "reshape"),
        ("squared", 2, torch.zeros(4, 2, 1), r"regression targets of shape \(4, 2, 1\)", "reshape"),
        ("squared", 1, torch.tensor([0.0, torch.nan]), "NaN or infinite", "clean"),
        ("squared", 1, torch.tensor([0.0, torch.inf]), "NaN or infinite", "clean"),
    ],
)
def test_what_to_type_for_targets_of_another_form(loss, outputs, targets, found, fix):
    with pytest.raises(DataError, match=found) as caught:
        make_loss(loss).prepare(targets, outputs)
    assert fix in caught.value.fix


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.float64(2), Fraction(1, 2)])
def test_any_positive_real_number_is_taken(value):
    found = positive_number("tol", value, "pass tol=1e-6")
    assert (found, type(found)) == (float(value), float)
    assert checked_bound("max_products", value) == checked_bound("time_limit", value, may_be_zero=True) == float(value)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, np.bool_(True), "1", None, 1 + 0j])
def test_other_values_are_refused(value):
    with pytest.raises(OptionError, match="tol="):
        positive_number("tol", value, "pass tol=1e-6")
    if value not in (0, float("inf")):
        with pytest.raises(OptionError, match="time_limit="):
            checked_bound("time_limit", value, may_be_zero=True)
    if value != float("inf"):
        with pytest.raises(OptionError, match="max_products="):
            checked_bound("max_products", value)
