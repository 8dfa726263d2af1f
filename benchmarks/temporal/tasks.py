"""The tasks of the study: MNIST and digits in pieces, spoken digits, and two made tasks whose classes differ only in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.sequences import sequential
from snn_recon_plugin.demo import Data, load_digits_data, load_mnist_data

__all__ = ["TASKS", "Places", "delayed_match", "load_task", "speech", "spike_timing"]

IMAGES, MADE = (10_000, 10_000), (2_000, 2_000)  # of training and of test
BIN_MS, BINS, CHANNELS = 15, 60, 70  # spoken digits: 900 ms contain all but 0.2 % of the spikes


@dataclass(frozen=True)
class Places:
    """Folders of the data that are not made here."""

    mnist: str | None = None
    speech: str | None = None


def load_task(name: str, places: Places) -> Data:
    """Return sequences (n, T, D) float32 and labels (n,) of a task; every run of it gets the same ones."""
    return TASKS[name](places)


def mnist(places: Places, steps: int, permutation: int | None = None, images: int = IMAGES[0]) -> Data:
    """MNIST cut into ``steps`` pieces, its first images."""
    if places.mnist is None:
        raise SystemExit("MNIST is needed: pass --root DIR, where torchvision finds it")
    data, (train, test) = load_mnist_data(places.mnist, images), (images, IMAGES[1])
    train_part = sequential(data.train_inputs[:train], data.train_labels[:train], steps, permutation)
    test_part = sequential(data.test_inputs[:test], data.test_labels[:test], steps, permutation)
    return Data(train_part.inputs, train_part.targets, test_part.inputs, test_part.targets)


def digits(places: Places) -> Data:
    """scikit-learn's digits, a row of 8 pixels a step."""
    del places
    data = load_digits_data()
    return Data(data.train_inputs.view(-1, 8, 8), data.train_labels, data.test_inputs.view(-1, 8, 8), data.test_labels)


def speech(places: Places) -> Data:
    """Spoken digits as spike counts of 15 ms, 60 x 70; later spikes count in the last step. Test speakers are others."""
    if places.speech is None:
        raise SystemExit("the spoken digits are needed: pass --speech DIR, the folder of ende.npz")
    stored = np.load(Path(places.speech) / "ende.npz")
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
    del places
    draw = _generator()
    preferred = torch.randint(steps, (classes, channels), generator=draw)
    labels = torch.randint(classes, (sum(MADE),), generator=draw)
    shape = (len(labels), channels)
    near = (preferred[labels] + 2 * torch.randn(shape, generator=draw)).round().long().clamp(0, steps - 1)
    anywhere = torch.randint(steps, shape, generator=draw)
    times = torch.where(torch.rand(shape, generator=draw) < 0.5, near, anywhere)
    return _split(torch.nn.functional.one_hot(times, steps).transpose(1, 2).float(), labels)


def delayed_match(places: Places, cues: int = 4, each: int = 5, noise: float = 0.02) -> Data:
    """Two cues, 8 to 14 steps apart, among noise; class 1 if they are the same.

    A cue is 4 steps in which each of the ``each`` channels of the cue spikes with probability 0.5 a step. The first one begins at
    step 2. Both classes use every cue as often.
    """
    del places
    draw, steps, long = _generator(), 24, 4
    count = sum(MADE)
    labels, first = torch.randint(2, (count,), generator=draw), torch.randint(cues, (count,), generator=draw)
    other = (first + torch.randint(1, cues, (count,), generator=draw)) % cues
    shown = torch.stack([first, torch.where(labels == 1, first, other)], 1)
    begins = torch.stack([torch.full((count,), 2), 2 + long + torch.randint(8, 15, (count,), generator=draw)], 1)
    since = torch.arange(steps)[None, None] - begins[:, :, None]
    active = (since >= 0) & (since < long)  # (n, 2, T)
    cue_of_channel = torch.arange(cues * each) // each
    rates = (active[..., None] & (shown[:, :, None, None] == cue_of_channel)).any(1) * 0.5 + noise
    return _split((torch.rand(rates.shape, generator=draw) < rates).float(), labels)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _split(inputs: Tensor, labels: Tensor) -> Data:
    train = MADE[0]
    return Data(inputs[:train], labels[:train], inputs[train:], labels[train:])


TASKS: dict[str, Callable[[Places], Data]] = {
    "rows": partial(mnist, steps=28),
    "pieces-4": partial(mnist, steps=4),
    "pieces-14": partial(mnist, steps=14),
    "pixels": partial(mnist, steps=784),
    "permuted": partial(mnist, steps=784, permutation=0),
    "speech": speech,
    "digits": digits,
    "timing": spike_timing,
    "match": delayed_match,
}
