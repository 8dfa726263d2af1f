"""Cost of a start and of a refit in epochs of training, on MNIST and on harder images.

    python benchmarks/start_cost.py --root DIR                        writes benchmarks/results/start_cost.json
    PYTHONPATH=OTHER python benchmarks/start_cost.py --root DIR --code before --methods reconstruct

The net is 784-1000-10 with 25 steps, 10,000 training images, batch 128, Adam.  The second command measures another checkout of
the package, for comparison, into the same json.  Seconds are CPU seconds of one thread (``time.process_time``), so that other
processes on the machine disturb them less.  A plain epoch is timed right before each start, in the same process, and the two are
compared.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import RESULTS, machine, run_all
from benchmarks.hidden_networks import NETWORKS, accuracy, loader_of, loss_of
from snn_recon_plugin import ConvexInitializer, ReconstructionCallback
from snn_recon_plugin.demo import Data, load_mnist_data
from snn_recon_plugin.report import Report

NETWORK, SAMPLES, VALIDATION, BATCH, RATE = "784-1000-10", 10_000, 1_000, 128, 5e-4
REACHABLE = 0.85  # share of the labels that are right where they are mixed
NOISE = 1.0  # standard deviation, of pixels from 0 to 1
WEIGHT = 0.55  # of the image whose label counts, where two are averaged
BLUR = 7  # pixels of a square whose mean replaces its middle, twice
METHODS = ("callback", "reconstruct", "rescale")


def mixed(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A part of the labels replaced by other classes."""
    other = (labels + torch.randint(1, 10, labels.shape, generator=generator)) % 10
    return images, torch.where(torch.rand(labels.shape, generator=generator) < REACHABLE, labels, other)


def noisy(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gaussian noise on every pixel, cut off at 0 and 1."""
    return (images + NOISE * torch.randn(images.shape, generator=generator)).clamp(0, 1), labels


def averaged(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each image averaged with another one, of a little less weight."""
    return torch.lerp(images[torch.randperm(len(images), generator=generator)], images, WEIGHT), labels


def blurred(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images without detail, so that hidden neurons do nearly the same and their features nearly span each other."""
    del generator
    square = images.reshape(-1, 1, 28, 28)
    for _ in range(2):
        square = nn.functional.avg_pool2d(square, BLUR, 1, BLUR // 2)
    return square.flatten(1), labels


Change = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
DATA: dict[str, Change | None] = {
    "MNIST": None,
    "labels mixed, 85 % reachable": mixed,
    "heavy noise": noisy,
    "two images averaged": averaged,
    "blurred": blurred,
}


def data_of(name: str, root: str, seed: int, samples: int = SAMPLES, validation: int = VALIDATION) -> tuple[Data, TensorDataset]:
    """Training and test images of a name, and images to validate on."""
    whole, change = load_mnist_data(root, samples + validation), DATA[name]
    generator = torch.Generator().manual_seed(seed)
    train, test = (whole.train_inputs, whole.train_labels), (whole.test_inputs, whole.test_labels)
    if change is not None:
        train, test = change(*train, generator), change(*test, generator)
    data = Data(train[0][:samples], train[1][:samples], *test)
    return data, TensorDataset(train[0][samples:], train[1][samples:])


class Module(pl.LightningModule):
    """A user's module."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return loss_of(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("validation", loss_of(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), RATE)


class Clock(pl.Callback):
    """CPU seconds of an epoch's batches."""

    def __init__(self) -> None:
        self.seconds = self._began = 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self._began = time.process_time()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seconds = time.process_time() - self._began


class Timed(ReconstructionCallback):
    """The callback, the CPU seconds of its start and refit, and test accuracy after each; a refit comes before the validation."""

    def __init__(self, seed: int, data: Data) -> None:
        super().__init__(ConvexInitializer(hidden="reconstruct", seed=seed))
        self.data, self.spent, self.tests = data, {"start": 0.0, "refit": 0.0}, dict[str, float]()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began, solves = time.process_time(), len(self.reports)
        yield
        if len(self.reports) > solves:
            self.spent[name] = time.process_time() - began

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        with self._timed("start"):
            super().on_train_start(trainer, pl_module)
        self.tests["start"] = accuracy(pl_module.net, self.data)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        with self._timed("refit"):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.tests["refit"] = accuracy(pl_module.net, self.data)  # of the weights that are validated
        super().on_validation_end(trainer, pl_module)


def fit(data: Data, validation: TensorDataset, seed: int, callback: pl.Callback) -> nn.Module:
    """One epoch in Lightning's loop."""
    pl.seed_everything(seed, verbose=False)
    module = Module(NETWORKS[NETWORK]())
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[callback], num_sanity_val_steps=0, **quiet)
    trainer.fit(
        module, DataLoader(TensorDataset(data.train_inputs, data.train_labels), BATCH, shuffle=True), DataLoader(validation, 1000)
    )
    return module.net


def start(data: Data, method: str, seed: int) -> tuple[nn.Module, Report, float]:
    """A new net, initialised by the one line; its report and the CPU seconds that it took."""
    torch.manual_seed(seed)
    net, began = NETWORKS[NETWORK](), time.process_time()
    report = ConvexInitializer(hidden=method, seed=seed, progress=False).initialize(net, loader_of(data))
    return net, report, time.process_time() - began


def run(code: str, name: str, method: str, root: str, seed: int) -> dict[str, Any]:
    """A plain epoch, then a start of a net like it, and with the callback an epoch and a refit."""
    data, validation = data_of(name, root, seed)
    clock = Clock()
    net = fit(data, validation, seed, clock)
    found: dict[str, Any] = {"code": code, "data": name, "method": method, "epoch": clock.seconds}
    found["tests"] = {"plain epoch": accuracy(net, data)}
    if method == "callback":
        timed = Timed(seed, data)
        fit(data, validation, seed, timed)
        report, spent, tests = timed.reports[0], timed.spent, timed.tests
        found["refit_gap"] = timed.reports[-1].certificate.relative_gap
    else:
        net, report, seconds = start(data, method, seed)
        spent, tests = {"start": seconds}, {"start": accuracy(net, data)}
    found["tests"] |= tests
    gap = {"relative_gap": report.certificate.relative_gap, "outcome": report.outcome, "fit_loss": report.fit_loss}
    return {**found, **spent, **gap, "wall_clock": report.seconds}


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of all scripts that measure this net."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    return parser


def measure(script: str, head: dict[str, Any], cases: dict[str, Callable[[], dict[str, Any]]], *packages: str) -> dict[str, Any]:
    """Run the cases of a script in one thread, without warnings; its json's content."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return run_all(RESULTS / f"{script}.json", {"machine": machine("snntorch", *packages), **head}, cases)


def main() -> None:
    """Reads the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--code", default="now", help="name of the code that is measured (default: now)")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    cases = {
        f"{name}, {method}, {options.code}": partial(run, options.code, name, method, options.root, options.seed)
        for name, method in product(options.data, options.methods)
    }
    measure("start_cost", {"samples": SAMPLES, "seed": options.seed}, cases, "lightning")


if __name__ == "__main__":
    main()
