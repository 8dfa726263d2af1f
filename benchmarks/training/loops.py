"""Plain loops: one epoch after the one line, under ``report.protect`` and without it.

    cd benchmarks && python -m training.loops --root DIR --speech DIR       writes benchmarks/results/training_loops.json

*protected* and *protected, validation* are the nets that the guard leaves after the epoch, chosen on samples that were fitted or on
validation data; *trained* is the net as it was trained under the guard.
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.common import RESULTS, machine, run_all
from benchmarks.hidden_networks import loss_of
from benchmarks.temporal.tasks import Places
from benchmarks.temporal.training import BATCH
from snn_recon_plugin import convex_init_

from .cases import CASES, Case, split
from .runs import accuracy

OPTIMIZERS = {
    "SGD 0.05": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "Adam 0.001": partial(torch.optim.Adam, lr=1e-3),
    "AdamW 0.002": partial(torch.optim.AdamW, lr=2e-3),
}


def measure(case: Case, places: Places, optimizer: str, protected: bool, validated: bool, seed: int) -> dict[str, Any]:
    """Test accuracy after the line, and after an epoch: of the trained net, and of what the guard leaves."""
    torch.manual_seed(seed)
    data = case.load(places)
    parts = split(data, seed)
    net = case.make(data)
    loader = DataLoader(parts.train, BATCH, shuffle=True)
    report = convex_init_(net, loader, seed=seed, progress=False)
    line = accuracy(net, *parts.test)
    stepper = OPTIMIZERS[optimizer](net.parameters())
    guard = report.protect(stepper, DataLoader(parts.validation, 500) if validated else None) if protected else None
    for inputs, labels in loader:
        stepper.zero_grad()
        loss_of(net(inputs), labels).backward()
        stepper.step()
    result = {"line": line, "trained": accuracy(net, *parts.test)}
    if guard is not None:
        guard.close()
        result["left"] = accuracy(net, *parts.test)
    return result


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.loops", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--root", help="where torchvision finds MNIST")
    parser.add_argument("--speech", help="folder of the spoken digits, with ende.npz")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    places = Places(options.root, options.speech)
    cases = {
        f"{name} | {optimizer} | {kind}": partial(measure, CASES[name], places, optimizer, kind != "free", "validation" in kind, 0)
        for name in options.cases
        for optimizer in OPTIMIZERS
        for kind in ("free", "protected", "protected, validation")
    }
    run_all(RESULTS / "training_loops.json", {"machine": machine("snntorch", "norse"), "seed": 0}, cases)


if __name__ == "__main__":
    main()
