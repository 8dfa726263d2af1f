"""Peak memory of a training step, a start and a refit of four nets, against time steps and images.

Each cell runs in a process of its own, with one thread.  A training step is forward, backward and Adam on one batch.  A start is
``convex_init_`` with default options, which rebuilds hidden layers.  A refit is ``refit_``, after a start on two batches that is
not counted.  Memory depends on shapes alone, so images are class patterns with noise: no files are needed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import norse.torch as norse
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.nets import NorseSteps, convolutions, dense, of_pixels, recurrent
from benchmarks.process import Meter, Report, in_process
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from snn_recon_plugin import convex_init_, refit_
from snn_recon_plugin.report.figures import BLUE, GREEN, ORANGE

STEPS, IMAGES = (25, 100, 250, 1000), (2_000, 10_000)
HOUR = 3600.0  # that ends a process that hangs
DRAWN = ("dense", "conv", "recurrent")
LINES = {"step": (ORANGE, "training step"), "start": (BLUE, "start"), "refit": (GREEN, "refit")}
APART = 1.45  # least ratio of the heights of two labels
BATCH, CLASSES, CHANNELS = 128, 10, 28  # channels of a sequence
_NOISE = 0.3  # standard deviation of pixels from 0 to 1
_RATE = 1e-3  # of Adam
_WARM = (5, 64)  # steps and samples of a run that is not counted, in which modules are imported


def images(samples: int, steps: int) -> DataLoader[tuple[Tensor, ...]]:
    """Return images (B, 784) from 0 to 1: one of ten patterns, and noise."""
    del steps
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    patterns = torch.rand(CLASSES, 784, generator=generator)
    values = (patterns[labels] + _NOISE * torch.randn(samples, 784, generator=generator)).clamp_(0, 1)
    return DataLoader(TensorDataset(values, labels), BATCH)


@dataclass(frozen=True)
class Sequences:
    """Batches of sequences (B, T, 28), made batch by batch: all at once would take more memory than what is measured.

    Each class has a pattern of frequencies over the channels; a sample shifts its phases.
    """

    samples: int
    steps: int

    def __len__(self) -> int:
        return math.ceil(self.samples / BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        rates = 0.5 * torch.rand(CLASSES, 1, CHANNELS, generator=generator)
        time = torch.arange(self.steps, dtype=torch.float32)[:, None]
        for start in range(0, self.samples, BATCH):
            count = min(BATCH, self.samples - start)
            labels = torch.randint(CLASSES, (count,), generator=generator)
            phases = torch.rand(count, 1, 1, generator=generator)
            yield torch.sin(time * rates[labels] + 6.3 * phases), labels


@dataclass(frozen=True)
class Net:
    """A net.

    Args:
        title: for the table.
        build: from time steps and a width to the net.
        width: of the study.
        small: width of a warm-up.
        loader: from samples and time steps to (input, target) batches.
    """

    title: str
    build: Callable[[int, int], nn.Module]
    width: int
    small: int
    loader: Callable[[int, int], Any] = images


NETS = {
    "dense": Net("784-1000-10 Leaky, snnTorch", lambda steps, width: dense(784, width, CLASSES, steps=steps), 1000, 30),
    "norse": Net(
        "784-1000-10 LIF, Norse",
        lambda steps, width: NorseSteps(
            nn.Linear(784, width), norse.LIFCell(), nn.Linear(width, CLASSES), norse.LICell(), steps=steps
        ),
        1000,
        30,
    ),
    "conv": Net(
        "8C5-MP2-16C5-MP2-10 Leaky, snnTorch",
        lambda steps, width: of_pixels(convolutions(channels=(width, 2 * width), beta=0.9, steps=steps)),
        8,
        2,
    ),
    "recurrent": Net("28-256-10 RLeaky, snnTorch", lambda _, width: recurrent(CHANNELS, width, axis=1), 256, 20, Sequences),
}


def measure_memory(name: str, action: str, steps: int, samples: int, report: Report) -> None:
    """Report seconds and peak bytes of an action."""
    warnings.filterwarnings("ignore")
    net = NETS[name]
    _act(action, net.build(_WARM[0], net.small), net.loader(_WARM[1], _WARM[0]), Meter())
    torch.manual_seed(0)
    made, meter = net.build(steps, net.width), Meter()
    found = _act(action, made, net.loader(samples, steps), meter)
    report({"added_bytes": meter.added, "seconds": meter.seconds, "cpu_seconds": meter.cpu_seconds, **found})


def _act(action: str, net: nn.Module, loader: Any, meter: Meter) -> dict[str, Any]:
    """Run the action in the meter, and return what it found."""
    if action == "step":
        inputs, labels = next(iter(loader))
        optimizer = torch.optim.Adam(net.parameters(), lr=_RATE)
        with meter:
            nn.functional.cross_entropy(net(inputs).mean(0), labels).backward()
            optimizer.step()
        return {}
    if action == "refit":
        batches = [batch for batch, _ in zip(loader, range(2), strict=False)]
        report = convex_init_(net, batches, hidden="rescale", progress=False)
        del batches
        with meter:
            report = refit_(net, loader)
    else:
        with meter:
            report = convex_init_(net, loader, progress=False)
    return {"heldout_accuracy": report.accuracy_after, "samples": report.program.samples}


def measure(net: str, action: str, steps: int, images: int) -> dict[str, Any]:
    """Return seconds and peak bytes of an action of a net."""
    found, reason = in_process(measure_memory, net, action, steps, images, threads=1, limit=HOUR)
    if reason:
        raise RuntimeError(reason)
    return {"net": net, "action": action, "T": steps, "n": images, **found[-1]}


def cells(bench: Bench) -> Cells:
    """Every action of every net; of those that take longest, few images show how memory grows with the steps."""
    del bench
    wanted = [(net, "step", steps, BATCH) for steps, net in product(STEPS, NETS)]
    for steps, net, images, action in product(STEPS, NETS, IMAGES, ("start", "refit")):
        if images == IMAGES[0] or (net != "conv" and steps <= 250):
            wanted.append((net, action, steps, images))
    return {f"{net}-{action}-T{steps}-n{n}": partial(measure, net, action, steps, n) for net, action, steps, n in wanted}


def memory_table(store: Store, steps: Sequence[int], images: Sequence[int]) -> str:
    """Return peak memory in MiB: a row a net and number of steps, in bold what is below the training step."""
    rows = []
    for (net, case), T in product(NETS.items(), steps):
        least = store[f"{net}-step-T{T}-n{BATCH}"]["added_bytes"]
        values = [f"{least / 2**20:,.0f}"]
        for n, action in product(images, ("start", "refit")):
            sizes = [cell["added_bytes"] for cell in store.cells(f"{net}-{action}-T{T}-n{n}")]
            values.append("".join(f"**{size / 2**20:,.0f}**" if size < least else f"{size / 2**20:,.0f}" for size in sizes))
        rows.append((case.title, str(T), *values))
    head = ("net", "T", "training step", *(f"{action}, {n:,} images" for n, action in product(images, ("start", "refit"))))
    return markdown_table(head, rows)


def pages(store: Store) -> dict[str, dict[str, str]]:
    """All measurements."""
    memory = memory_table(store, STEPS, IMAGES)
    return {"evidence/scale.md": {"scale memory": memory, "scale setting": machines_line(store.cells())}}


def figures(store: Store) -> dict[str, Figure]:
    """Peak memory against time steps, a panel a net."""
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    for axes, net in zip(figure.subplots(1, len(DRAWN)), DRAWN, strict=True):
        _draw_net(axes, store, net)
        axes.set_title(NETS[net].title, fontsize=10)
        axes.set(xlabel="time steps T", ylabel="peak memory, MiB", ylim=(10, 10_000))
    return {"scale.png": figure}


def _draw_net(axes: Axes, store: Store, net: str) -> None:
    ends: list[tuple[float, float, str, str]] = []
    for action, (colour, label) in LINES.items():
        found = [store[f"{net}-{action}-T{T}-n{BATCH if action == 'step' else IMAGES[0]}"] for T in STEPS]
        points = [(cell["T"], cell["added_bytes"] / 2**20) for cell in found]
        axes.loglog(*zip(*points, strict=True), color=colour, marker="o", markersize=3)
        ends.append((*reversed(points[-1]), label, colour))
    height = 0.0
    for memory, steps, label, colour in sorted(ends):
        height = max(memory, APART * height)
        axes.annotate(label, (steps, height), xytext=(6, -3), textcoords="offset points", color=colour, fontsize=10)
    axes.set_xlim(20, 9_000)  # labels are to the right of the lines
    axes.set_xticks(STEPS, [str(T) for T in STEPS])
    axes.minorticks_off()


STUDY = Study(
    title="peak memory of a training step, a start and a refit",
    minutes=60,
    cells=cells,
    pages=pages,
    figures=figures,
    fields=("net", "action", "T", "n", "added_bytes", "seconds", "cpu_seconds", "heldout_accuracy", "samples"),
    packages=("snntorch", "norse"),
)
