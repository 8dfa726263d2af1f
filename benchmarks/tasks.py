"""The catalogue of data: every task of the studies by its name, drawn from a seed alone.

Sequences are (n, T, D); images are (n, pixels), hard ones (n, channels, height, width), which nets show at every step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.datasets import MNIST

from benchmarks.sequences import sequential
from benchmarks.study import Places
from snn_recon_plugin.demo import Data, load_digits_data

IMAGES, TESTS = 10_000, 10_000
FEW = 5_400  # images of tasks that are trained in Lightning
MADE = 2_000  # made samples to train on, and as many to test on
BIN_MS, BINS, CHANNELS = 15, 60, 70  # spoken digits: 900 ms contain all but 0.2 % of the spikes
REACHABLE = 0.85  # share of the labels that are right where they are mixed
NOISE = 1.0  # standard deviation, of pixels from 0 to 1
HARD_TESTS = 2_000  # hard images to test on
FAINT = (0.3, 0.75)  # brightness of the other digit
HARD_NOISE, SHIFT = 0.25, 2  # standard deviation of the noise, and pixels of a shift at most
PATH = ((0, 0), (6, 3), (0, 6), (0, 0))  # corners of the movement of an image in a frame of 34 x 34 pixels
MOVES, CHANGE = 4, 0.3  # steps from corner to corner, and the change of a pixel that is an event
EVENT_TRAIN, EVENT_TEST = 1_650, 1_000
SMALL, SMALL_DIGIT, SMALL_TRAIN, SMALL_TEST = 16, 14, 3_000, 2_000  # pixels of an image and of a digit; images
VALIDATION = 0.1  # share of the training data
Change = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


def load_mnist_data(root: str, samples: int | None) -> Data:
    """Return MNIST from torchvision's files below ``root``, with the first ``samples`` training images; None means all."""
    train, test = ((part.data.flatten(1) / 255, part.targets) for part in (MNIST(root, train=train) for train in (True, False)))
    return Data(train[0][:samples], train[1][:samples], *test)


def images(places: Places, count: int | None, change: Change | None = None) -> Data:
    """MNIST, its first images, changed in training and in test."""
    whole, draw = load_mnist_data(places.need("mnist"), count), _generator()
    train, test = (whole.train_inputs, whole.train_labels), (whole.test_inputs, whole.test_labels)
    if change is not None:
        train, test = change(*train, draw), change(*test, draw)
    return Data(*train, *test)


def square(pixels: Tensor, labels: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shape pixels as images, for convolutions."""
    return pixels.view(-1, 1, 28, 28), labels


def mixed(pixels: Tensor, labels: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Replace a part of the labels by other classes."""
    other = (labels + torch.randint(1, 10, labels.shape, generator=draw)) % 10
    return pixels, torch.where(torch.rand(labels.shape, generator=draw) < REACHABLE, labels, other)


def noisy(pixels: Tensor, labels: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Add Gaussian noise to every pixel, cut off at 0 and 1."""
    return (pixels + NOISE * torch.randn(pixels.shape, generator=draw)).clamp(0, 1), labels


def hard_images(places: Places, count: int) -> Data:
    """Two digits in an image, shifted at random, with noise; the brighter one is the label."""
    whole, draw = load_mnist_data(places.need("mnist"), None), _generator()
    parts = []
    for inputs, labels, size in (
        (whole.train_inputs, whole.train_labels, count),
        (whole.test_inputs, whole.test_labels, HARD_TESTS),
    ):
        drawn = torch.randperm(len(labels), generator=draw)[:size]  # the first images are of few writers
        parts += [mix_digits(inputs[drawn], draw), labels[drawn]]
    return Data(*parts)


def mix_digits(pixels: Tensor, draw: torch.Generator) -> Tensor:
    """Return (n, 1, 28, 28), with a fainter digit in each image."""
    count = len(pixels)
    other = pixels[torch.randperm(count, generator=draw)]
    bright, faint = (_shifted(part.view(-1, 28, 28), draw) for part in (pixels, other))
    faint = faint * torch.empty(count, 1, 1, 1).uniform_(*FAINT, generator=draw)
    image = torch.maximum(bright, faint)
    return (image + HARD_NOISE * torch.randn(image.shape, generator=draw)).clamp(0, 1)


def small_images(places: Places) -> Data:
    """Two digits of random colours in an image of 16 x 16 pixels; the brighter one is the label."""
    whole, draw = load_mnist_data(places.need("mnist"), 2 * SMALL_TRAIN), _generator()
    train = _small(whole.train_inputs, whole.train_labels, SMALL_TRAIN, draw)
    return Data(*train, *_small(whole.test_inputs, whole.test_labels, SMALL_TEST, draw))


def _small(pixels: Tensor, labels: Tensor, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    chosen = torch.randint(len(pixels), (count, 2), generator=draw)
    size = (SMALL_DIGIT, SMALL_DIGIT)
    small = torch.nn.functional.interpolate(pixels[chosen].view(count, 2, 28, 28), size=size, mode="area")
    shifts = torch.randint(SMALL - SMALL_DIGIT + 1, (count, 2, 2), generator=draw).tolist()
    digits = torch.zeros(count, 2, SMALL, SMALL)
    for sample, corners in enumerate(shifts):
        for which, (down, right) in enumerate(corners):
            digits[sample, which, down : down + SMALL_DIGIT, right : right + SMALL_DIGIT] = small[sample, which]
    colours = 0.3 + 0.7 * torch.rand(count, 2, 3, 1, 1, generator=draw)
    ground = 0.3 * torch.rand(count, 3, 1, 1, generator=draw)
    noise = 0.1 * torch.randn(count, 3, SMALL, SMALL, generator=draw)
    shown = digits[:, 0, None] * colours[:, 0] + 0.35 * digits[:, 1, None] * colours[:, 1]
    return (shown + ground + noise).clamp(0, 1), labels[chosen[:, 0]]


def moving_images(places: Places) -> Data:
    """Events of MNIST's images, which move as in front of N-MNIST's camera: (n, 12, 2, 34, 34), brighter and darker pixels."""
    whole = load_mnist_data(places.need("mnist"), EVENT_TRAIN)
    test = move(whole.test_inputs[:EVENT_TEST]), whole.test_labels[:EVENT_TEST]
    return Data(move(whole.train_inputs), whole.train_labels, *test)


def move(pixels: Tensor) -> Tensor:
    """Return the events (n, T, 2, 34, 34) of images (n, 784) that move along ``PATH``."""
    corners = torch.tensor(PATH, dtype=torch.float32)
    shares = torch.arange(MOVES)[:, None] / MOVES
    places = torch.cat([one.lerp(two, shares) for one, two in itertools.pairwise(corners)] + [corners[-1:]]).round().int().tolist()
    frames = torch.zeros(len(pixels), len(places), 34, 34)
    for step, (down, right) in enumerate(places):
        frames[:, step, down : down + 28, right : right + 28] = pixels.view(-1, 28, 28)
    change = frames.diff(dim=1)
    return torch.stack([change > CHANGE, change < -CHANGE], 2).float()


def pieces(places: Places, steps: int, permutation: int | None = None) -> Data:
    """MNIST cut into ``steps`` pieces."""
    data = images(places, IMAGES)
    train = sequential(data.train_inputs, data.train_labels, steps, permutation)
    test = sequential(data.test_inputs[:TESTS], data.test_labels[:TESTS], steps, permutation)
    return Data(train.inputs, train.targets, test.inputs, test.targets)


def digits(places: Places) -> Data:
    """scikit-learn's digits, a row of 8 pixels a step."""
    data = load_digits_data()
    return Data(data.train_inputs.view(-1, 8, 8), data.train_labels, data.test_inputs.view(-1, 8, 8), data.test_labels)


def speech(places: Places) -> Data:
    """Spoken digits as spike counts of 15 ms, 60 x 70; later spikes count in the last step. Test speakers are others."""
    stored = np.load(Path(places.need("speech")) / "ende.npz")
    words = np.repeat(np.arange(len(stored["y"])), np.diff(stored["ptr"]))
    counts = np.zeros((len(stored["y"]), BINS, CHANNELS), dtype=np.float32)
    np.add.at(counts, (words, np.minimum(stored["times"] // BIN_MS, BINS - 1), stored["units"]), 1)
    inputs, labels = torch.from_numpy(counts), torch.from_numpy(stored["y"].astype(np.int64))
    test = torch.from_numpy(stored["test"].astype(bool))
    return Data(inputs[~test], labels[~test], inputs[test], labels[test])


def spike_timing(places: Places, classes: int = 10, channels: int = 20, steps: int = 50) -> Data:
    """Every channel spikes once a sample, so that averages over time are equal; the class says when.

    Half of the spikes, drawn anew for each sample, are within a jitter of 2 steps (standard deviation) of their class's step for
    the channel. The others come at any step.
    """
    draw = _generator()
    preferred = torch.randint(steps, (classes, channels), generator=draw)
    labels = torch.randint(classes, (2 * MADE,), generator=draw)
    shape = (len(labels), channels)
    near = (preferred[labels] + 2 * torch.randn(shape, generator=draw)).round().long().clamp(0, steps - 1)
    anywhere = torch.randint(steps, shape, generator=draw)
    times = torch.where(torch.rand(shape, generator=draw) < 0.5, near, anywhere)
    return _halves(torch.nn.functional.one_hot(times, steps).transpose(1, 2).float(), labels)


def delayed_match(places: Places, cues: int = 4, each: int = 5, noise: float = 0.02) -> Data:
    """Two cues, 8 to 14 steps apart, among noise; class 1 if they are the same.

    A cue is 4 steps in which each of the ``each`` channels of the cue spikes with probability 0.5 a step. The first one begins at
    step 2. Both classes use every cue as often.
    """
    draw, steps, long, count = _generator(), 24, 4, 2 * MADE
    labels, first = torch.randint(2, (count,), generator=draw), torch.randint(cues, (count,), generator=draw)
    other = (first + torch.randint(1, cues, (count,), generator=draw)) % cues
    shown = torch.stack([first, torch.where(labels == 1, first, other)], 1)
    begins = torch.stack([torch.full((count,), 2), 2 + long + torch.randint(8, 15, (count,), generator=draw)], 1)
    since = torch.arange(steps)[None, None] - begins[:, :, None]
    active = (since >= 0) & (since < long)  # (n, 2, T)
    cue_of_channel = torch.arange(cues * each) // each
    rates = (active[..., None] & (shown[:, :, None, None] == cue_of_channel)).any(1) * 0.5 + noise
    return _halves((torch.rand(rates.shape, generator=draw) < rates).float(), labels)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _shifted(images: Tensor, draw: torch.Generator) -> Tensor:
    """Return images (n, 1, 28, 28) with the given ones (n, 28, 28) near their middle."""
    size = images.shape[1]
    wide = torch.nn.functional.pad(images, (SHIFT,) * 4)
    corners = torch.randint(2 * SHIFT + 1, (len(images), 2, 1), generator=draw)
    rows, columns = (corners + torch.arange(size)).unbind(1)
    return wide[torch.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]][:, None]


def _halves(inputs: Tensor, labels: Tensor) -> Data:
    return Data(inputs[:MADE], labels[:MADE], inputs[MADE:], labels[MADE:])


TASKS: dict[str, Callable[[Places], Data]] = {
    "rows": partial(pieces, steps=28),
    "pieces-4": partial(pieces, steps=4),
    "pieces-14": partial(pieces, steps=14),
    "pixels": partial(pieces, steps=784),
    "permuted": partial(pieces, steps=784, permutation=0),
    "speech": speech,
    "digits": digits,
    "timing": spike_timing,
    "match": delayed_match,
    "whole digits": lambda places: load_digits_data(),
    "images": partial(images, count=FEW),
    "2,400 images": partial(images, count=2_400),
    "10,000 images": partial(images, count=IMAGES),
    "22,000 images": partial(images, count=22_000),
    "all images": partial(images, count=None),
    "1,500 images": partial(images, count=1_500, change=square),
    "3,300 hard images": partial(hard_images, count=3_300),
    "moving images": moving_images,
    "small colour images": small_images,
    "noisy images": partial(images, count=FEW, change=noisy),
    "mixed labels": partial(images, count=FEW, change=mixed),
}


@lru_cache(maxsize=1)
def load_task(name: str, places: Places) -> Data:
    """Return inputs (float32) and labels (n,) of a task; every run of it gets the same ones."""
    return TASKS[name](places)


class Parts:
    """Data to train on, to validate on, and to test on, which nothing is chosen by.

    Args:
        data: of a task.
        seed: of the draw of validation data from the training data.
        held: number of them; a tenth by default.
    """

    def __init__(self, data: Data, seed: int, held: int | None = None) -> None:
        order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(seed))
        validation, rest = order.tensor_split([held or round(VALIDATION * len(order))])
        self.train, self.validation = (
            TensorDataset(data.train_inputs[part], data.train_labels[part]) for part in (rest, validation)
        )
        self.test = data.test_inputs, data.test_labels
