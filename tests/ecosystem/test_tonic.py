"""Events of Tonic as the how-to page has them; `make ecosystem` runs this where Tonic is installed."""

import numpy as np
import pytest
import torch
from snntorch import utils
from torch import nn
from torch.utils.data import DataLoader, Dataset

from snn_recon_plugin import convex_init_

from ..nets import sequential_net

tonic = pytest.importorskip("tonic", reason="make ecosystem installs it in an environment of its own")
SENSOR, BINS, CLASSES = (12, 12, 2), 10, 3


class Events(Dataset):
    """Three kinds of event clouds, as Tonic's data sets give them: a structured array and a label, and a transform."""

    def __init__(self, transform, samples=150):
        self.transform, self.random = transform, np.random.default_rng(0)
        self.samples = [(self._cloud(label), label) for label in np.arange(samples) % CLASSES]

    def _cloud(self, label):
        count = int(self.random.integers(200, 300))
        events = np.zeros(count, dtype=[("x", "<i8"), ("y", "<i8"), ("t", "<i8"), ("p", "<i8")])
        events["x"] = np.clip(self.random.normal(3 * label + 3, 1.0, count), 0, 11)
        events["y"] = np.clip(self.random.normal(6, 2.0, count), 0, 11)
        events["t"] = np.sort(self.random.integers(0, 100_000, count))
        events["p"] = self.random.integers(0, 2, count)
        return events

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        events, label = self.samples[index]
        return self.transform(events), int(label)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch_first", [False, True])
def test_frames_of_events(batch_first):
    train = Events(tonic.transforms.ToFrame(sensor_size=SENSOR, n_time_bins=BINS))
    loader = DataLoader(train, batch_size=32, collate_fn=tonic.collation.PadTensors(batch_first=batch_first))
    net = nn.Sequential(nn.Flatten(), *sequential_net(sizes=(288, 60, CLASSES)))

    def forward(net, frames):
        utils.reset(net)
        steps = frames.transpose(0, 1) if batch_first else frames
        return torch.stack([net(step)[1] for step in steps]).mean(0)

    report = convex_init_(net, loader, forward=forward)
    assert report.certificate.relative_gap <= 1e-4
    with torch.no_grad():
        right = [(forward(net, frames).argmax(1) == labels).float() for frames, labels in loader]
    assert float(torch.cat(right).mean()) > 0.95
