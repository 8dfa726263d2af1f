"""Inputs as users have them: odd loaders, odd batches and odd labels give the result of the plain ones, or say what to type."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from snn_recon_plugin import ConvexInitializer, convex_init_, over_time
from snn_recon_plugin.errors import DataError, OptionError
from snn_recon_plugin.stages.stream import split_samples

from ..helpers import batches, loop_net, sequential_net, train_data, values

pytestmark = pytest.mark.usefixtures("one_rate")


OPTIONS = {"hidden": "keep", "strength": 1e-3, "progress": False}


def bits_after(loader, **options):
    """All parameters after the one line."""
    net = loop_net(steps=5)
    convex_init_(net, loader, **{**OPTIONS, **options})
    return values(net)


@pytest.fixture(scope="module")
def plain():
    return bits_after(batches(300))


def dictionaries():
    for inputs, labels in batches(300):
        yield {"image": inputs, "label": labels, "index": torch.arange(len(labels))}


def reused():
    """One buffer, filled again for each batch."""
    inputs, labels = (torch.empty_like(part) for part in batches(100)[0])
    for new_inputs, new_labels in batches(300):
        yield inputs.copy_(new_inputs), labels.copy_(new_labels)


class Nominal(IterableDataset):
    """A stream whose length is an upper bound."""

    def __iter__(self):
        return iter(zip(*train_data(300), strict=True))

    def __len__(self):
        return 10**12


def test_dictionaries(plain):
    assert bits_after(dictionaries(), unpack=lambda batch: (batch["image"], batch["label"])) == plain


def test_a_reused_buffer(plain):
    assert bits_after(reused()) == plain


@pytest.mark.parametrize("hidden", ["rescale", "reconstruct"])
def test_a_reused_buffer_and_hidden_layers(hidden):
    assert bits_after(reused(), hidden=hidden) == bits_after(batches(300), hidden=hidden)


def test_a_nominal_length(plain):
    assert bits_after(DataLoader(Nominal(), batch_size=100)) == plain


def test_ignored_labels_are_as_samples_left_out(plain):
    extra, _ = train_data(400)
    marked = [
        (torch.cat([inputs, extra[-3:]]), torch.cat([labels, labels.new_full((3,), -100)])) for inputs, labels in batches(300)
    ]
    assert bits_after(marked, loss=nn.CrossEntropyLoss()) == plain


def test_labels_of_minus_100_without_the_loss_itself():
    with pytest.raises(DataError, match="labels of -100") as caught:
        bits_after([(inputs, labels.masked_fill(labels == 3, -100)) for inputs, labels in batches(100)])
    assert "loss=nn.CrossEntropyLoss()" in caught.value.fix


def test_smoothed_labels():
    net, loss = loop_net(steps=5), nn.CrossEntropyLoss(label_smoothing=0.2)
    report = convex_init_(net, batches(300), loss=loss, fit_loss="same", **OPTIONS)
    assert report.certificate.reached
    assert report.fit_loss == "cross_entropy(label_smoothing=0.2)"
    # No other readout is better by the user's own loss and the ridge.
    inputs, labels = train_data(300)
    scores = net(inputs).mean(0)
    ridge = 0.5 * 1e-3 * net.fc2.weight.square().sum()
    (slope,) = torch.autograd.grad(loss(scores, labels) + ridge, net.fc2.weight)
    assert float(slope.abs().max()) < 1e-4


def test_sparse_inputs(plain):
    sparse = [(inputs.to_sparse(), labels) for inputs, labels in batches(300)]
    assert bits_after(sparse, forward=lambda net, x: net(x.to_dense())) == plain


def test_batches_of_one_sample():
    count, seed = 40, 2
    assert 0 not in split_samples(count, 0.2, seed).fitted  # so that the first batch holds no sample that takes part
    report = convex_init_(
        sequential_net(),
        DataLoader(TensorDataset(*train_data(count)), batch_size=1),
        forward=over_time(3),
        hidden="reconstruct",
        n_candidates=1.0,
        strength=1e-3,
        seed=seed,
        progress=False,
    )
    assert report.samples == count


def test_unpack_is_a_function():
    with pytest.raises(OptionError, match="unpack='label'"):
        ConvexInitializer(unpack="label")
