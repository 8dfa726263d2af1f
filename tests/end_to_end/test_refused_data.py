"""Every bad loader, batch or label gives an error with the fix, and leaves the network and its surroundings as before."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import DataError, NetworkError

from ..helpers import CLASSES, HIDDEN, batches, data_loader, loop_net, refused, replaced, spoiled, train_data

pytestmark = pytest.mark.usefixtures("one_rate")
BOTH = pytest.mark.parametrize("hidden", ["keep", "rescale"])


def many_batches():
    """3000 samples, as many as choose the gains."""
    return 5 * batches(600)


@BOTH
@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_finite(hidden, number, value):
    loader = replaced(number, spoiled(value))
    refused(loop_net(), loader, DataError, f"batch {number + 1}", "NaN or infinite", "nan_to_num", hidden=hidden)


def test_bad_inputs_beyond_the_samples_that_rescaling_looks_at():
    loader = [*many_batches(), *replaced(0, spoiled(float("nan")))]
    refused(loop_net(), loader, DataError, "batch 31", hidden="rescale")


@BOTH
@pytest.mark.parametrize("loader", [[], (), DataLoader([]), iter([])], ids=["list", "tuple", "loader", "iterator"])
def test_an_empty_loader(hidden, loader):
    refused(loop_net(), loader, DataError, "empty loader", "at least one (input, target) batch", hidden=hidden)


@BOTH
def test_batches_without_a_sample(hidden):
    inputs, labels = train_data(20)
    refused(loop_net(), [(inputs[:0], labels[:0])], DataError, hidden=hidden)


@BOTH
@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_batch_without_a_sample(hidden, number):
    loader = replaced(number, lambda inputs, labels: (inputs[:0], labels[:0]))
    refused(loop_net(), loader, DataError, f"batch {number + 1}", hidden=hidden)


@pytest.mark.parametrize(
    "loader", [None, 5, torch.rand(3, 4), "mnist", {"a": 1}, lambda: None], ids=["None", "int", "tensor", "str", "dict", "function"]
)
def test_what_is_no_loader(loader):
    refused(loop_net(), loader, DataError, type(loader).__name__, "(input, target) batches", "DataLoader")


@BOTH
@pytest.mark.parametrize(
    "batch",
    [
        lambda x, y: x,
        lambda x, y: (x,),
        lambda x, y: (x, y, y),
        lambda x, y: {"x": x, "y": y},
        lambda x, y: None,
        lambda x, y: (x, "cat"),
        lambda x, y: (x, None),
        lambda x, y: (x, 3),
        lambda x, y: (x, torch.tensor(3)),
    ],
    ids=["tensor", "single", "triple", "dict", "None", "text", "no target", "number", "scalar"],
)
@pytest.mark.parametrize("number", [0, 2])
def test_batches_that_are_no_pairs(hidden, batch, number):
    refused(loop_net(), replaced(number, batch), DataError, f"batch {number + 1}", "(input, target)", hidden=hidden)


LABELS = {
    "float": (lambda y: y.float(), "torch.float32"),
    "one-hot": (lambda y: nn.functional.one_hot(y, CLASSES), "argmax"),
    "negative": (lambda y: y - 1, "-1"),
    "too large": (lambda y: y + 1, "10"),
}


@BOTH
@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_every_batch(hidden, kind):
    change, word = LABELS[kind]
    loader = [(inputs, change(labels)) for inputs, labels in batches(300)]
    refused(loop_net(), loader, DataError, word, hidden=hidden)


@BOTH
@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_a_later_batch(hidden, kind):
    change, _ = LABELS[kind]
    refused(loop_net(), replaced(2, lambda x, y: (x, change(y))), DataError, hidden=hidden)


def test_bad_labels_beyond_the_samples_that_rescaling_looks_at():
    loader = [*many_batches(), *replaced(0, lambda x, y: (x, y + 0.7))]
    refused(loop_net(), loader, DataError, "float32", hidden="rescale")


@BOTH
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("change", [lambda y: y[:-7], lambda y: torch.cat([y, y[:7]])], ids=["fewer", "more"])
def test_labels_of_another_length(hidden, number, change):
    loader = replaced(number, lambda x, y: (x, change(y)))
    refused(loop_net(), loader, DataError, "targets", hidden=hidden)


@BOTH
@pytest.mark.parametrize("loss", ["cross_entropy", "squared", "logistic"])
def test_a_single_class(hidden, loss):
    loader = [(inputs, torch.full_like(labels, 7)) for inputs, labels in batches(200)]
    refused(loop_net(), loader, DataError, "a single class, 7", "at least two classes", hidden=hidden, loss=loss)


def test_regression_targets_of_the_wrong_width_or_not_finite():
    loader = [(inputs, torch.rand(len(inputs), 3)) for inputs, _ in batches(200)]
    refused(loop_net(), loader, DataError, "(samples, 10)", loss="squared")
    loader = [(inputs, torch.full((len(inputs), CLASSES), float("nan"))) for inputs, _ in batches(200)]
    refused(loop_net(), loader, DataError, "NaN", loss="squared")


@BOTH
@pytest.mark.parametrize("count", [1, 9])
def test_too_few_samples(hidden, count):
    refused(loop_net(), batches(count), DataError, f"{count} samples", "at least 10", hidden=hidden)
    net = loop_net()
    convex_init_(net, batches(10), hidden="keep")


def test_samples_of_another_width():
    loader = replaced(2, lambda x, y: (x[:, :32], y))
    error = refused(loop_net(), loader, NetworkError, "batch 3", "[100, 32]", "mat1 and mat2 shapes", hidden="keep")
    assert isinstance(error.__cause__, RuntimeError)


@pytest.fixture
def room(monkeypatch):
    """Sets the bytes that are free on disk, where no memory is."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=0))
    return lambda free: monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))


@pytest.mark.parametrize("hidden", ["keep", "rescale"])
def test_too_little_room(room, hidden):
    room(12 * HIDDEN * 250)
    message = "300 samples of 48 features"
    refused(loop_net(), data_loader(300), DataError, message, "max_samples=250", hidden=hidden)
    report = convex_init_(loop_net(), data_loader(300), hidden="keep", max_samples=250, strength=1e-3)
    assert report.samples == 250


def test_room_is_asked_for_the_samples_that_a_sampler_draws(room):
    room(12 * HIDDEN * 250)
    loader = DataLoader(TensorDataset(*train_data(600)), 50, sampler=SubsetRandomSampler(range(100)))
    assert convex_init_(loop_net(), loader, hidden="keep", strength=1e-3).samples == 100
