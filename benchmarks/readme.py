"""The README's figure and table: snnTorch's tutorial 5 on MNIST, alone, with the one line, and with the callback.

    python benchmarks/readme.py --root DIR      runs what has no result yet, draws docs/readme.png, writes the table

784-1000-10, beta 0.95, 25 steps, spiking outputs; cross-entropy of the membranes at every step, Adam at 5e-4, batches of 128.
Classes are decided by spike counts.  All three train on the same 55,000 images; 5,000 are for validation.  Seconds are CPU
seconds of one thread without those of tests, which all methods have eight of.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import snntorch as snn
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import RESULTS, machine, run_all
from benchmarks.render_docs import ROOT, markdown_table, replace
from benchmarks.render_networks import machine_line
from snn_recon_plugin import ConvexInitializer, ReconstructionCallback, convex_init_
from snn_recon_plugin.demo import load_mnist_data
from snn_recon_plugin.plots import BLUE, GREEN, ORANGE

EPOCHS, TESTS_AN_EPOCH, SEED = 2, 4, 0
RATE, BATCH, MNIST, VALIDATION = 5e-4, 128, 60_000, 5_000
# Colour, point of the label, its offset in points, and its side.
LINES = {
    "training alone": (ORANGE, -1, (8, -4), "left"),
    "the one line, then training": (BLUE, 0, (0, 8), "left"),
    "the callback": (GREEN, -1, (0, -16), "right"),
}


class Net(nn.Module):
    """Two dense layers of leaky neurons over 25 steps; returns output spikes and membranes, (25, B, 10) each."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(784, 1000), snn.Leaky(beta=0.95)
        self.fc2, self.lif2 = nn.Linear(1000, 10), snn.Leaky(beta=0.95)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden, output = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes, membranes = [], []
        for _ in range(25):
            below, hidden = self.lif1(self.fc1(x), hidden)
            spike, output = self.lif2(self.fc2(below), output)
            spikes.append(spike)
            membranes.append(output)
        return torch.stack(spikes), torch.stack(membranes)


def loss_of(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the membranes, summed over the steps."""
    _, membranes = net(inputs)
    return sum(nn.functional.cross_entropy(step, labels) for step in membranes)  # type: ignore[return-value]


class Clock:
    """Seconds since the beginning, without those of tests, and the test accuracy at each test."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.points: list[dict[str, float]] = []
        self.began, self.testing = time.process_time(), 0.0

    @torch.no_grad()
    def test(self, net: nn.Module) -> None:
        now = time.process_time()
        predicted = torch.cat([net(part)[0].sum(0).argmax(1) for part in self.images.split(1000)])
        self.points.append({"seconds": now - self.began - self.testing, "test": float((predicted == self.labels).double().mean())})
        self.testing += time.process_time() - now


def train_plain(train: DataLoader[Any], validation: DataLoader[Any], clock: Clock, line: bool) -> dict[str, Any]:
    """The tutorial's loop, with the one line before it, its guard and its sampler, or without all three."""
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    found: dict[str, Any] = {}
    clock.test(net)
    guard = None
    if line:
        report = convex_init_(net, train, progress=False)
        guard = report.protect(optimizer, validation)
        train = DataLoader(train.dataset, BATCH, sampler=report.sampler(train.dataset))
        clock.test(net)
        found["report"] = report.to_dict()
    every = len(train) // TESTS_AN_EPOCH
    for _ in range(EPOCHS):
        for step, (inputs, labels) in enumerate(train, 1):
            optimizer.zero_grad()
            loss_of(net, inputs, labels).backward()
            optimizer.step()
            if step % every == 0 and step // every <= TESTS_AN_EPOCH:
                if guard is None:
                    clock.test(net)
                else:
                    with guard.evaluated():
                        clock.test(net)
    if guard is not None:
        guard.close()
    return found


class Module(pl.LightningModule):
    """The same training in Lightning."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.net, self.clock = Net(), clock

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return loss_of(self.net, *batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", loss_of(self.net, *batch))

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.clock.test(self.net)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=RATE)


def train_callback(train: DataLoader[Any], validation: DataLoader[Any], clock: Clock) -> dict[str, Any]:
    """The callback at its defaults."""
    module = Module(clock)
    clock.test(module.net)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    callback = ReconstructionCallback(ConvexInitializer(progress=False))
    trainer = pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[callback], val_check_interval=1 / TESTS_AN_EPOCH, **quiet)
    trainer.fit(module, train, validation)
    return {"report": callback.reports[0].to_dict()}


def measure(method: Callable[..., dict[str, Any]], root: str, **options: Any) -> dict[str, Any]:
    """Run one method from the same net, with the same order of batches."""
    data = load_mnist_data(root, None)
    everything = TensorDataset(data.train_inputs, data.train_labels)
    parts = torch.utils.data.random_split(
        everything, [len(everything) - VALIDATION, VALIDATION], torch.Generator().manual_seed(SEED)
    )
    train = DataLoader(parts[0], BATCH, shuffle=True, generator=torch.Generator().manual_seed(SEED))
    pl.seed_everything(SEED, verbose=False)
    clock = Clock(data.test_inputs, data.test_labels)
    found = method(train, DataLoader(parts[1], 500), clock, **options)
    return {"points": clock.points, **found}


def draw(cases: dict[str, Any]) -> Figure:
    """Draw test accuracy against seconds into docs/readme.png, a labelled line a method."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, (colour, point, offset, side) in LINES.items():
        points = cases[name]["points"][1:]  # the untrained net is in the table
        seconds, tests = ([point[key] for point in points] for key in ("seconds", "test"))
        axes.plot(seconds, [100 * test for test in tests], color=colour, marker="o", ms=3.5)
        place = {"xytext": offset, "textcoords": "offset points", "ha": side}
        axes.annotate(name, (seconds[point], 100 * tests[point]), color=colour, **place)
    axes.set(xlabel="CPU seconds, one thread", ylabel="test accuracy, %", title="snnTorch tutorial 5 on MNIST")
    axes.margins(x=0.04, y=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(ROOT / "docs" / "readme.png", dpi=160)
    return figure


def table(content: dict[str, Any]) -> str:
    """Return accuracy and seconds: untrained, after the one line, and after each epoch."""
    alone, line, callback = (content["cases"][name]["points"] for name in LINES)

    def cell(point: dict[str, float]) -> str:
        return f"{100 * point['test']:.1f} % ({point['seconds']:.0f} s)"

    rows = [
        ("before", *(f"{100 * points[0]['test']:.1f} %" for points in (alone, line, callback))),
        ("after the line", "", cell(line[1]), ""),
        *(
            (f"after epoch {epoch}", *(cell(points[epoch * TESTS_AN_EPOCH]) for points in (alone, line[1:], callback)))
            for epoch in range(1, EPOCHS + 1)
        ),
    ]
    about = f"{MNIST - VALIDATION:,} training images, seed {content['seed']}; CPU seconds of one thread."
    shown = markdown_table(("test accuracy", "training alone", "with the line, `protect` and `sampler`", "with the callback"), rows)
    return f"{shown}\n\n{about} {machine_line(content['machine'])}"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="where torchvision finds MNIST; without it only what is kept is drawn")
    options = parser.parse_args()
    path = RESULTS / "readme.json"
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if options.root:
        cases = {
            "training alone": lambda: measure(train_plain, options.root, line=False),
            "the one line, then training": lambda: measure(train_plain, options.root, line=True),
            "the callback": lambda: measure(train_callback, options.root),
        }
        run_all(path, {"machine": machine("snntorch", "lightning"), "seed": SEED, "epochs": EPOCHS}, cases)
    content = json.loads(path.read_text(encoding="utf-8"))
    draw(content["cases"])
    replace(ROOT / "README.md", "tutorial 5", table(content), script="readme.py")


if __name__ == "__main__":
    main()
