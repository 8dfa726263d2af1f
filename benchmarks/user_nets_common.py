"""What the user nets share: the form of an entry, scikit-learn's digits as users' loaders give them, and users' own tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from snn_recon_plugin.demo import load_digits_data

STEPS, CLASSES, BATCH = 10, 10, 100
TRAIN = 600  # images; the package compares up to 2,048 samples, so that all of these are compared

Loader = Iterable[Any]
OwnTest = Callable[[nn.Module, Loader], float]


class Samples(NamedTuple):
    """Images ``[n, 1, 8, 8]`` in 0 to 1 and labels ``[n]``."""

    images: Tensor
    labels: Tensor

    def of(self, rows: Tensor) -> Samples:
        """Some of them."""
        return Samples(self.images[rows], self.labels[rows])


ALIKE = 0.005  # half a percentage point


@dataclass(frozen=True)
class UserNet:
    """One net of a kind that users write.

    Args:
        name: for the table.
        make: builds the net.
        loader: gives batches of samples as the user's loader does.
        test: the user's own test, accuracy 0 to 1, which uses nothing of the package.
        typed: the user's line; it is what runs.
        names: what the line refers to, beyond the package, torch and snntorch.functional.
        refused: words that the refusal must hold, for nets that have no convex readout; empty for nets that must work.
        either: whether the net may work too, where it is refused with these words.
        order: puts samples into an order that the loader needs.
        rebuilds: whether the line runs a second time with ``hidden="reconstruct"``.
        alike: largest difference of the report from the own test, 0 to 1; more than half a point only for nets that draw random
            numbers, of which two passes differ by themselves.
    """

    name: str
    make: Callable[[], nn.Module]
    loader: Callable[[Samples], Loader]
    test: OwnTest
    typed: str = "convex_init_(net, loader)"
    names: dict[str, Any] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    either: bool = False
    order: Callable[[Samples], Samples] = lambda samples: samples
    rebuilds: bool = True
    alike: float = ALIKE

    @property
    def must(self) -> str:
        """What must happen."""
        return "work or be refused" if self.either else "be refused" if self.refused else "work"


def digits(number: int = 0, train: int = TRAIN) -> tuple[Samples, Samples]:
    """``train`` images for training, and all others, which no call sees; drawn anew for each number."""
    data = load_digits_data()
    inputs, labels = torch.cat([data.train_inputs, data.test_inputs]), torch.cat([data.train_labels, data.test_labels])
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(number))
    whole = Samples(inputs.reshape(-1, 1, 8, 8), labels)
    return whole.of(rows[:train]), whole.of(rows[train:])


# -- loaders ------------------------------------------------------------------------------------------------------------


def as_images(samples: Samples) -> Loader:
    """``[B, 1, 8, 8]``, as torchvision's data sets give them."""
    return DataLoader(TensorDataset(*samples), BATCH)


def as_pixels(samples: Samples) -> Loader:
    """``[B, 64]``."""
    return DataLoader(TensorDataset(samples.images.flatten(1), samples.labels), BATCH)


def as_rows(samples: Samples) -> Loader:
    """``[B, 8, 8]``: a row of the image a step, batch first."""
    return DataLoader(TensorDataset(samples.images[:, 0], samples.labels), BATCH)


def as_row_steps(samples: Samples) -> Loader:
    """``[T, B, 8]``: a row of the image a step, time first."""
    return [(inputs.transpose(0, 1), labels) for inputs, labels in as_rows(samples)]


def as_rate_code(samples: Samples) -> Loader:
    """``[T, B, 64]``: a pixel spikes as often as it is bright, at steps that were drawn once for all samples."""
    drawn = torch.rand(STEPS, 1, 64, generator=torch.Generator().manual_seed(0))
    return [((images.flatten(1) > drawn).float(), labels) for images, labels in as_images(samples)]


def as_events(samples: Samples, steps: int = STEPS) -> Loader:
    """``[T, B, 2, 8, 8]``: brighter and darker pixels while the image moves to and fro, as an event camera gives them."""
    frames = torch.stack([samples.images.roll((step % 3) - 1, dims=3) for step in range(steps + 1)])
    change = frames[1:] - frames[:-1]
    events = torch.cat([change > 0.3, change < -0.3], dim=2).float()
    return list(zip(events.split(BATCH, dim=1), samples.labels.split(BATCH), strict=True))


def by_length(samples: Samples) -> Samples:
    """Samples in the order of how long their recordings are."""
    return samples.of(lengths(samples).argsort(stable=True))


def lengths(samples: Samples) -> Tensor:
    """``[n]``: 8, 9 or 10 steps, as the image's brightness has it."""
    return STEPS - 2 + (16 * samples.images).sum((1, 2, 3)).long() % 3


def as_batches_pad_batches(samples: Samples) -> Loader:
    """Events in batches of another number of steps each, of samples in the order of their lengths."""
    parts = [samples.of((lengths(samples) == steps).nonzero()[:, 0]) for steps in lengths(samples).unique().tolist()]
    return [batch for part in parts for batch in as_events(part, int(lengths(part)[0]))]


def as_dicts(samples: Samples) -> Loader:
    """``{"image": ..., "label": ...}``."""
    return [{"image": images, "label": labels} for images, labels in as_images(samples)]


def as_triples(samples: Samples) -> Loader:
    """Events, labels and the number of steps of each sample."""
    return [(events, labels, torch.full_like(labels, len(events))) for events, labels in as_events(samples)]


class OneBuffer:
    """Fills the same tensors again for each batch."""

    def __init__(self, samples: Samples) -> None:
        self.batches = list(as_pixels(samples))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, labels = (torch.empty_like(part) for part in self.batches[0])
        for new_inputs, new_labels in self.batches:
            count = len(new_labels)
            yield inputs[:count].copy_(new_inputs), labels[:count].copy_(new_labels)


class _Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Samples one after another, of unknown number."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(self.samples.images.flatten(1), self.samples.labels, strict=True))


def as_stream(samples: Samples) -> Loader:
    """A DataLoader over an IterableDataset."""
    return DataLoader(_Stream(samples), BATCH)


def as_doubles(samples: Samples) -> Loader:
    """``[B, 64]`` in double precision."""
    return [(inputs.double(), labels) for inputs, labels in as_pixels(samples)]


# -- users' own tests -----------------------------------------------------------------------------------------------------


def own_test(predict: Callable[[nn.Module, Any], tuple[Tensor, Tensor]]) -> OwnTest:
    """Build a test loop as scripts have it.

    Args:
        predict: from the net and a batch to predicted classes and labels, both ``[B]``.
    """

    def test(net: nn.Module, loader: Loader) -> float:
        correct = total = 0
        training, has_modes = net.training, type(net).train is nn.Module.train  # else a training loop of the script's own
        if has_modes:
            net.eval()
        with torch.no_grad():
            for batch in loader:
                predicted, targets = predict(net, batch)
                total += targets.size(0)
                correct += int((predicted == targets).sum())
        if has_modes:
            net.train(training)
        return correct / total

    return test


def repeated(test: OwnTest, times: int = 5) -> OwnTest:
    """Build the mean of several passes of a test, for nets that draw random numbers."""
    return lambda net, loader: sum(test(net, loader) for _ in range(times)) / times


def by_count(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """The class that spikes most, of a net that returns (spikes, membranes) over time."""
    data, targets = batch
    spikes, _ = net(data)
    _, predicted = spikes.sum(dim=0).max(1)
    return predicted, targets


def by_count_flat(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """The same where the test loop flattens the images."""
    data, targets = batch
    spikes, _ = net(data.view(data.size(0), -1))
    _, predicted = spikes.sum(dim=0).max(1)
    return predicted, targets


def by_mean_membrane(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """The class of the largest mean membrane, of a net that returns membranes over time."""
    data, targets = batch
    return net(data).mean(0).argmax(1), targets


def by_score(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """The class of the largest score, of a net that returns one score a class."""
    data, targets = batch
    return net(data).argmax(dim=1), targets
