"""Test accuracy against epochs and wall-clock in Lightning's loop: plain surrogate training, and with the callback in several ways.

    python benchmarks/time_to_accuracy.py --root DIR                    writes benchmarks/results/time_to_accuracy.json
    python benchmarks/time_to_accuracy.py --root DIR --samples 60000 --epochs 15 --seeds 1 --networks 784-1000-10
    python benchmarks/time_to_accuracy.py --root DIR --seeds 1 --networks "784-1000-10 spiking" --epochs 12
    python benchmarks/time_to_accuracy.py --root DIR --seeds 1 --networks 784-1000-10 --rates 2.5e-4,5e-4,1e-3,2e-3

MNIST, Adam, batch 128; other numbers of images than 10,000, and several learning rates, have a json of their own.  Every run
validates after each epoch, on 1,000 training images that are not among those it trains on: plain runs to look at, the callback to
tell refits by.  Seconds are those of training, of the callback and of validation; testing is left out.  Points are the net before
the first step, with what a start took, and each epoch's end.  After a start the net that is trained is tested within the first
200 steps too, also after the last batch of an epoch of 10,000 images, which has 16.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import lightning.pytorch as pl
import torch
from common import RESULTS, machine, run_all
from hidden import accuracy
from hidden_networks import NETWORKS, loss_of
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback
from snn_recon_plugin.demo import Data, load_mnist_data

SAMPLES, VALIDATION, BATCH, RATE = 10_000, 1_000, 128, 5e-4
LOOKS = (1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 78, 79, 80, 90, 100, 120, 140, 158, 160, 180, 200)
EPOCHS = {"784-1000-10": 12, "784-256x5-10": 6, "784-1000-10 spiking": 4, "Norse 784-1000-10": 4, "conv": 4}
METHODS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "average alone": {"at_start": False, "every_n_epochs": 0, "at_end": False},
    "refits": {"at_start": False},
    "refit after every epoch": {"at_start": False, "max_share": 1.0},
    "refit after every epoch, overwriting": {"at_start": False, "max_share": 1.0, "swap": "overwrite"},
    "start and refits": {"initializer": {"hidden": "reconstruct"}},
    "start, refit after every epoch": {"initializer": {"hidden": "reconstruct"}, "max_share": 1.0},
}


class Module(pl.LightningModule):
    """A user's module, and a clock that stands still while the net is tested."""

    def __init__(self, net: nn.Module, data: Data, rate: float) -> None:
        super().__init__()
        self.net, self.data, self.rate = net, data, rate
        self.epochs: list[dict[str, float]] = []
        self.steps: dict[int, float] = {}
        self.first: dict[str, float] = {}
        self.began = self.testing = 0.0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs, labels = batch
        return loss_of(self.net(inputs), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), self.rate)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, labels = batch
        self.log("validation", loss_of(self.net(inputs), labels))

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.epochs.append(self.point())

    def point(self) -> dict[str, float]:
        """Seconds so far, and test accuracy."""
        return {"seconds": time.perf_counter() - self.began - self.testing, "test": self.tested()}

    def tested(self) -> float:
        """Test accuracy; its seconds don't count."""
        began = time.perf_counter()
        found = accuracy(self.net, self.data)
        self.testing += time.perf_counter() - began
        return found


class Looks(pl.Callback):
    """Tests the net before the first step, and after some; last in the list, so that it sees what the others did."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        self.steps = steps

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.first = pl_module.point()
        pl_module.steps[0] = pl_module.first["test"]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step in self.steps:
            pl_module.steps[trainer.global_step] = pl_module.tested()


def train(
    data: Data,
    validation: TensorDataset,
    network: str,
    options: dict[str, Any] | None,
    epochs: int,
    seed: int,
    rate: float,
    kind: Callable[[nn.Module, Data, float], Module] = Module,
) -> dict[str, Any]:
    """One training, without the callback where there are no options for it; a start's samples follow the seed too."""
    pl.seed_everything(seed, verbose=False)
    module = kind(NETWORKS[network](), data, rate)
    if options and "initializer" in options:
        options = {**options, "initializer": ConvexInitializer(seed=seed, **options["initializer"])}
    made = None if options is None else ReconstructionCallback(**options)
    looks = Looks(LOOKS if options and "initializer" in options else ())
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[*([] if made is None else [made]), looks], **quiet)
    loader = DataLoader(TensorDataset(data.train_inputs, data.train_labels), BATCH, shuffle=True)
    module.began = time.perf_counter()
    trainer.fit(module, loader, DataLoader(validation, 1000))
    result: dict[str, Any] = {"first": module.first, "epochs": module.epochs, "steps": module.steps}
    if made is not None:
        result["final"] = module.tested()
        result["callback"] = made._seconds  # solves, and the passes over validation data that they are judged by
        result["solves"] = [{"samples": r.samples, "seconds": sum(r.seconds.values())} for r in made.reports]
    return result


def load(root: str, samples: int) -> tuple[Data, TensorDataset]:
    """The first ``samples`` training images, fewer where they would leave none to validate on, and those after them."""
    whole = load_mnist_data(root, None)
    samples = min(samples, len(whole.train_labels) - VALIDATION)
    rest = slice(samples, samples + VALIDATION)
    data = Data(whole.train_inputs[:samples], whole.train_labels[:samples], whole.test_inputs, whole.test_labels)
    return data, TensorDataset(whole.train_inputs[rest], whole.train_labels[rest])


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--epochs", type=int, help="default: 12 of 784-1000-10, 6 of 784-256x5-10, 4 of the others")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=EPOCHS, default=list(EPOCHS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rates", type=lambda text: [float(part) for part in text.split(",")], default=[RATE])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data, validation = load(options.root, options.samples)
    head = {"machine": machine("snntorch", "lightning"), "samples": options.samples}
    cases: dict[str, Any] = {}
    for seed, network, method, rate in product(range(options.seeds), options.networks, options.methods, options.rates):
        epochs = options.epochs or EPOCHS[network]
        longer = options.samples == SAMPLES and epochs != EPOCHS[network]
        label = f"{network}, {epochs} epochs" if longer else network

        def case(network: str = network, method: str = method, seed: int = seed, rate: float = rate, label: str = label) -> Any:
            found = train(data, validation, network, METHODS[method], options.epochs or EPOCHS[network], seed, rate)
            return {"network": label, "method": method, "rate": rate, **found}

        cases[f"{label}, {method}, seed {seed}" + (f", rate {rate:g}" if len(options.rates) > 1 else "")] = case
    suffix = ("" if options.samples == SAMPLES else f"_{options.samples}") + ("_rates" if len(options.rates) > 1 else "")
    run_all(RESULTS / f"time_to_accuracy{suffix}.json", head, cases)


if __name__ == "__main__":
    main()
