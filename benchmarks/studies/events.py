"""Recordings of events, read through Tonic, with the nets of two papers.

The repository has none of these recordings: ``make bench-events ROOT=DIR`` reads them, and Tonic fetches to DIR what is not there.
SHD and SSC get a recurrent layer (Cramer and others 2020, arXiv 1910.07407), N-MNIST and DVS Gesture the dense and the
convolutional layers of Shrestha and Orchard (2018, arXiv 1810.08646), with leaky neurons and maxima over neighbours.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from benchmarks.methods import Method, run, tune_method
from benchmarks.nets import Steps, accuracy, dense, leaky, recurrent, steep
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Places, Study
from benchmarks.tasks import Parts
from snn_recon_plugin.demo import Data

MOST = 10_000  # recordings of a part, drawn once: all frames are in memory
SEEDS, TUNING_SEED = range(3), 1000
METHODS = {"alone": Method(cycle=True, average=True), "callback": Method(cycle=True, options={})}


@dataclass(frozen=True)
class Recordings:
    """A data set, its frames, and a net.

    Args:
        kind: class in tonic.datasets.
        make: a fresh net for inputs (B, steps, ...).
        steps: frames of a recording: later events are left out, and shorter recordings end in empty frames.
        window: microseconds of a frame.
        epochs: of a training.
        pool: pixels whose events are counted together, along each side.
        parts: how the class is told to open the data to train on, and to test on.
    """

    kind: str
    make: Callable[[], nn.Module]
    steps: int
    window: int
    epochs: int
    pool: int = 1
    parts: tuple[Mapping[str, Any], Mapping[str, Any]] = ({"train": True}, {"train": False})


def gestures() -> Steps:
    """16c5-2p-32c3-2p-512-11 on 32 x 32 pixels, what a pooling by four leaves of 128 x 128."""
    convolutions = (nn.Conv2d(2, 16, 5, padding=2), leaky()), (nn.Conv2d(16, 32, 3, padding=1), leaky())
    return Steps(
        *convolutions, (nn.Linear(2048, 512), leaky()), (nn.Linear(512, 11), leaky(reset_mechanism="none")), axis=1, pool=2
    )


SETS = {
    "SHD": Recordings("SHD", partial(recurrent, 700, 128, 20, axis=1), 100, 10_000, 30),
    "SSC": Recordings("SSC", partial(recurrent, 700, 128, 35, axis=1), 100, 10_000, 15, 1, ({"split": "train"}, {"split": "test"})),
    "N-MNIST": Recordings("NMNIST", partial(dense, 2312, 500, 500, 10, axis=1), 30, 10_000, 10),
    "DVS Gesture": Recordings("DVSGesture", gestures, 30, 50_000, 30, 4),
}


def frames(recordings: Any, steps: int) -> tuple[Tensor, Tensor]:
    """Return counts of events (n, steps, ...) of recordings in frames of any number, and their labels (n,)."""
    chosen = torch.randperm(len(recordings), generator=torch.Generator().manual_seed(0))[:MOST].tolist()
    labels, inputs = torch.empty(len(chosen), dtype=torch.int64), torch.empty(0)
    for row, index in enumerate(tqdm(chosen, disable=None, desc="recordings", leave=False)):
        counts, label = recordings[index]
        shown = torch.from_numpy(counts[:steps]).float()
        if row == 0:
            inputs = torch.zeros(len(chosen), steps, *shown.shape[1:])
        inputs[row, : len(shown)], labels[row] = shown, int(label)
    return inputs, labels


@lru_cache(maxsize=1)
def load(name: str, places: Places) -> Data:
    """Read a data set below ``places.events``."""
    import tonic

    chosen = SETS[name]
    kind, root = getattr(tonic.datasets, chosen.kind), places.need("events")
    width, height, signs = kind.sensor_size
    size = (width // chosen.pool, max(height // chosen.pool, 1), signs)
    changes = [tonic.transforms.ToFrame(sensor_size=size, time_window=chosen.window, include_incomplete=True)]
    if chosen.pool > 1:
        changes.insert(0, tonic.transforms.Downsample(spatial_factor=1 / chosen.pool))
    parts = (kind(root, transform=tonic.transforms.Compose(changes), **part) for part in chosen.parts)
    (inputs, labels), test = (frames(part, chosen.steps) for part in parts)
    return Data(inputs, labels, *test)


def cells(bench: Bench) -> Cells:
    """A tuned rate for each data set, and each way to train with three seeds."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for name in SETS:
        found[f"{name}-rate"] = partial(tuned, bench, name)
        for label, seed in itertools.product(METHODS, SEEDS):
            found[f"{name}-{label}-{seed}"] = partial(measure, bench, name, label, seed)
    return found


def tuned(bench: Bench, name: str) -> dict[str, Any]:
    """Tune the rate of the net without the plugin."""
    parts = Parts(load(name, bench.places), TUNING_SEED)
    return tune_method(lambda: steep(SETS[name].make()), parts, METHODS["alone"], SETS[name].epochs, TUNING_SEED)


def measure(bench: Bench, name: str, label: str, seed: int) -> dict[str, Any]:
    """Train a net in one way; the test accuracy of its fresh weights, too."""
    rate = float(bench.cell(f"{name}-rate", partial(tuned, bench, name))["rate"])
    data = load(name, bench.places)
    torch.manual_seed(seed)
    before = accuracy(SETS[name].make(), data.test_inputs, data.test_labels)
    parts = Parts(data, seed)
    return {"before": before, **run(lambda: steep(SETS[name].make()), parts, METHODS[label], rate, SETS[name].epochs, seed)}


def pages(store: Store) -> dict[str, dict[str, str]]:
    """Accuracies and seconds, a row for each data set that was measured, and which were not."""
    rows, missing = [], []
    for name, chosen in SETS.items():
        alone, started = (store.cells(f"{name}-{label}-[0-9]*") for label in METHODS)
        if not alone or not started:
            missing.append(name)
            continue
        before = f"{100 * statistics.mean(cell['before'] for cell in started):.1f}"
        found = [shown(started, "started"), shown(started, "final"), shown(alone, "final")]
        rows.append((name, before, *found, str(chosen.epochs), str(min(len(alone), len(started)))))
    heads = ("recordings", "before", "the line", "callback", "training alone, tuned", "epochs", "seeds")
    text = f"{markdown_table(heads, rows)}\n\n{machines_line(store.cells())}" if rows else ""
    left = f"Not measured yet, for want of the recordings: {', '.join(missing)}." if missing else ""
    return {"evidence/networks.md": {"events": "\n\n".join(filter(None, (text, left)))}}


def shown(runs: list[dict[str, Any]], when: str) -> str:
    """Return mean test accuracy and CPU seconds of runs, after the line or in the end."""
    test, seconds = (statistics.mean(run[when][what] for run in runs) for what in ("test", "seconds"))
    return f"{100 * test:.1f} ({seconds:.0f} s)"


STUDY = Study(
    title="recordings of events, read through Tonic (not measured yet)",
    minutes=0,
    cells=cells,
    pages=pages,
    fields=("before", "epochs", "final", "rate", "started", "metrics", "start", "validation", "seconds"),
    packages=("snntorch", "tonic"),
    needs=("events",),
)
