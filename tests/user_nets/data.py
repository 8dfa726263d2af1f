"""Scikit-learn's digits as users' loaders give them, and users' own tests, which use nothing of the package."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from operator import itemgetter
from typing import Any, NamedTuple

import snntorch.functional as SF
import torch
from snntorch import utils
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from snn_recon_plugin.demo import load_digits_data

STEPS, CLASSES, HIDDEN, BATCH = 10, 10, 64, 100
TRAIN = 600  # images; the package compares up to 2,048 samples, so that all of these are compared

Loader = Iterable[Any]
OwnTest = Callable[[nn.Module, Loader], float]


class Samples(NamedTuple):
    """Images ``[n, 1, 8, 8]`` in 0 to 1 and labels ``[n]``."""

    images: Tensor
    labels: Tensor

    def of(self, rows: Tensor | slice) -> Samples:
        return Samples(self.images[rows], self.labels[rows])


@cache
def all_digits() -> Samples:
    data = load_digits_data()
    inputs, labels = torch.cat([data.train_inputs, data.test_inputs]), torch.cat([data.train_labels, data.test_labels])
    return Samples(inputs.reshape(-1, 1, 8, 8), labels)


def digits(number: int = 0, train: int = TRAIN) -> tuple[Samples, Samples]:
    """Return copies of ``train`` images for training and of all others, which no call sees; drawn anew for each number."""
    whole = all_digits()
    rows = torch.randperm(len(whole.labels), generator=torch.Generator().manual_seed(number))
    return whole.of(rows[:train]), whole.of(rows[train:])


# -- loaders ------------------------------------------------------------------------------------------------------------
def shaped(*shape: int) -> Callable[[Samples], Loader]:
    return lambda samples: DataLoader(TensorDataset(samples.images.reshape(-1, *shape), samples.labels), BATCH)


as_images = shaped(1, 8, 8)
as_pixels = shaped(64)
as_rows = shaped(8, 8)  # a row of the image a step, batch first


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


def lengths(samples: Samples) -> Tensor:
    """``[n]``: 8, 9 or 10 steps, chosen by the image's brightness."""
    return STEPS - 2 + (16 * samples.images).sum((1, 2, 3)).long() % 3


def by_length(samples: Samples) -> Samples:
    return samples.of(lengths(samples).argsort(stable=True))


def as_batches_pad_batches(samples: Samples) -> Loader:
    """Events in batches of another number of steps each, of samples in the order of their lengths."""
    parts = [samples.of((lengths(samples) == steps).nonzero()[:, 0]) for steps in lengths(samples).unique().tolist()]
    return [batch for part in parts for batch in as_events(part, int(lengths(part)[0]))]


def as_dicts(samples: Samples) -> Loader:
    return [{"image": images, "label": labels} for images, labels in as_images(samples)]


def as_triples(samples: Samples) -> Loader:
    return [(events, labels, torch.full_like(labels, len(events))) for events, labels in as_events(samples)]


class OneBuffer:
    def __init__(self, samples: Samples) -> None:
        self.batches = list(as_pixels(samples))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, labels = (torch.empty_like(part) for part in self.batches[0])
        for new_inputs, new_labels in self.batches:
            count = len(new_labels)
            yield inputs[:count].copy_(new_inputs), labels[:count].copy_(new_labels)


class _Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(self.samples.images.flatten(1), self.samples.labels, strict=True))


def as_stream(samples: Samples) -> Loader:
    return DataLoader(_Stream(samples), BATCH)


def as_doubles(samples: Samples) -> Loader:
    return [(inputs.double(), labels) for inputs, labels in as_pixels(samples)]


def as_reconstruction(samples: Samples) -> Loader:
    return [(images, images) for images, _ in as_images(samples)]


def as_levels(samples: Samples) -> Loader:
    """``[B, 64]`` whole grey levels, 0 to 16."""
    return [((16 * inputs).long(), labels) for inputs, labels in as_pixels(samples)]


def as_rows_by_length(samples: Samples) -> Loader:
    """The first 6 to 8 rows of an image, batch first, in batches of one number each."""
    parts = [samples.of((lengths(samples) == steps).nonzero()[:, 0]) for steps in lengths(samples).unique().tolist()]
    return [(rows[:, : int(lengths(part)[0]) - 2], labels) for part in parts for rows, labels in as_rows(part)]


def as_features(samples: Samples) -> Loader:
    return [{"pixel_values": inputs, "labels": labels} for inputs, labels in as_pixels(samples)]


def as_halves(samples: Samples) -> Loader:
    return [((inputs[:, :32], inputs[:, 32:]), labels) for inputs, labels in as_pixels(samples)]


def as_arrays(samples: Samples) -> Loader:
    return [(inputs.numpy(), labels) for inputs, labels in as_pixels(samples)]


def with_targets(target: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Samples], Loader]:
    """Build a loader of flat images, and of targets made of them and of their labels."""
    return lambda samples: [(inputs, target(inputs, labels)) for inputs, labels in as_pixels(samples)]


as_large = with_targets(lambda inputs, labels: (labels > 4).long())
as_large_floats = with_targets(lambda inputs, labels: (labels > 4).float()[:, None])
as_brightness = with_targets(lambda inputs, labels: inputs.mean(1, keepdim=True))
as_row_brightness = with_targets(lambda inputs, labels: inputs.unflatten(1, (8, 8)).mean(2))


def as_steps_to_follow(samples: Samples) -> Loader:
    """``[T, B, 8]`` and ``[T, B, 1]``: a row of the image a step, and the mean brightness so far."""
    return [(rows, (rows.mean(2, keepdim=True).cumsum(0) / 8)) for rows, _ in as_row_steps(samples)]


# -- how scripts run a net and decide -------------------------------------------------------------------------------------
def call_flat(net: nn.Module, data: Tensor) -> Any:
    return net(data.view(data.size(0), -1))


def reset_and_call(net: nn.Module, data: Tensor) -> Any:
    utils.reset(net)
    return net(data)


def forward_pass(net: nn.Module, data: Tensor, num_steps: int = STEPS) -> Tensor:
    """Spikes over time of a net whose neurons keep their membranes: snnTorch's population tutorial."""
    utils.reset(net)
    return torch.stack([net(data)[0] for _ in range(num_steps)])


def each_step(steps_of: Callable[[Tensor], Iterable[Tensor]]) -> Callable[[nn.Module, Tensor], Tensor]:
    """Build a script's loop over the steps of its data, of a net whose neurons keep their membranes."""

    def run(net: nn.Module, data: Tensor) -> Tensor:
        utils.reset(net)
        return torch.stack([net(step)[0] for step in steps_of(data)])

    return run


over_events = each_step(lambda events: events)  # [T, B, 2, H, W]
over_rows = each_step(lambda rows: rows.unbind(1))  # [B, T, 8]


# From values over time ``[T, B, C]`` to scores ``[B, C]``.
mean, total, largest, last = partial(torch.mean, dim=0), partial(torch.sum, dim=0), partial(torch.amax, dim=0), itemgetter(-1)


def own_test(
    decode: Callable[[Any], Tensor] = lambda scores: scores,
    item: int | None = None,
    run: Callable[[nn.Module, Any], Any] = lambda net, data: net(data),
    unpack: Callable[[Any], tuple[Any, Tensor]] = lambda batch: batch,
) -> OwnTest:
    """Build a test loop as scripts have it, from ``decode``, which turns part ``item`` of the net's output into ``[B, C]``."""

    def test(net: nn.Module, loader: Loader) -> float:
        correct = total = 0
        training, has_modes = net.training, type(net).train is nn.Module.train  # else a training loop of the script's own
        if has_modes:
            net.eval()
        with torch.no_grad():
            for data, targets in map(unpack, loader):
                output = run(net, data)
                predicted = decode(output if item is None else output[item]).argmax(1)
                total += targets.size(0)
                correct += int((predicted == targets).sum())
        if has_modes:
            net.train(training)
        return correct / total

    return test


def single_test(decode: Callable[[Any], Tensor] = lambda scores: scores, item: int | None = None, middle: float = 0.0) -> OwnTest:
    """Build the test of a net with one output: class 1 where the value is above the middle."""

    def two(output: Any) -> Tensor:
        above = decode(output).reshape(-1, 1) - middle
        return torch.cat([-above, above], 1)

    return own_test(two, item, unpack=lambda batch: (batch[0], batch[1].flatten().long()))


def loss_test(loss: Callable[[Tensor, Tensor], Tensor]) -> OwnTest:
    """Build the mean of a loss of each value, summed over the outputs."""

    def test(net: nn.Module, loader: Loader) -> float:
        with torch.no_grad():
            losses = [loss(net(data), targets).sum(-1).flatten() for data, targets in loader]
        return float(torch.cat(losses).mean())

    return test


squared_test = loss_test(lambda values, targets: 0.5 * (values - targets).square())
huber_test = loss_test(partial(nn.functional.huber_loss, reduction="none"))


def library_test(measure: Callable[[Tensor, Tensor], float], run: Callable[[nn.Module, Tensor], Tensor]) -> OwnTest:
    """Build a test by an accuracy of snnTorch's own, weighted by the batches' sizes."""

    def test(net: nn.Module, loader: Loader) -> float:
        with torch.no_grad():
            parts = [(measure(run(net, data), targets), len(targets)) for data, targets in loader]
        return sum(accuracy * count for accuracy, count in parts) / sum(count for _, count in parts)

    return test


def forward_pass_test(num_steps: int = STEPS, **population: Any) -> OwnTest:
    return library_test(partial(SF.accuracy_rate, **population), partial(forward_pass, num_steps=num_steps))


def repeated(test: OwnTest, times: int = 5) -> OwnTest:
    """Build the mean of several passes of a test, for nets that draw random numbers."""
    return lambda net, loader: sum(test(net, loader) for _ in range(times)) / times


by_count = own_test(total, 0)  # the class that spikes most, of a net that returns (spikes, membranes)
by_count_flat = own_test(total, 0, call_flat)


def expand(net: nn.Module, images: Tensor) -> Any:
    """Show flat images at each step to a net that takes all steps."""
    return net(images.flatten(1).expand(STEPS, -1, -1))
