"""snnTorch's tutorial 5 as users type it, on 3,000 images: alone, after the line without a guard, and with one.

    python benchmarks/tutorial5.py --root DIR      writes benchmarks/results/tutorial5.json; an interrupted run goes on where it was

784-300-10, beta 0.95, 15 steps, spiking outputs.  The loss is the cross-entropy of the membranes, summed over the steps; spike
counts decide.  Adam, batches of 128.  Seconds are CPU seconds of one thread, without those of tests.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from functools import partial
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import RESULTS, machine, run_all
from snn_recon_plugin import convex_init_
from snn_recon_plugin.demo import load_mnist_data

IMAGES, VALIDATION, TEST, BATCH, HIDDEN, STEPS = 3000, 500, 2000, 128, 300, 15
RATES, SEEDS = (5e-4, 2e-3), 5
EPOCHS = {"alone": 12, "line": 3, "guard": 3}  # training alone also gets the seconds that the line takes
FACTORS, FACTOR_SEEDS = (1.0, 0.5, 0.25, 0.125), 3  # of the solved readout: is the loss that is trained lowest at the best one?


class Net(nn.Module):
    """Two dense layers of leaky neurons; returns output spikes and membranes, (T, B, 10) each."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(784, HIDDEN), snn.Leaky(beta=0.95)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, 10), snn.Leaky(beta=0.95)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2, spikes, membranes = self.lif1.init_leaky(), self.lif2.init_leaky(), [], []
        for _ in range(STEPS):
            below, mem1 = self.lif1(self.fc1(x), mem1)
            spike, mem2 = self.lif2(self.fc2(below), mem2)
            spikes.append(spike)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


@torch.no_grad()
def accuracy(net: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    return float((net(inputs)[0].sum(0).argmax(1) == labels).double().mean())


def loss_of(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the loss that the tutorial trains."""
    return torch.stack([nn.functional.cross_entropy(step, labels) for step in net(inputs)[1]]).sum()


def run(root: str, method: str, rate: float, seed: int) -> list[dict[str, float]]:
    """Return seconds and test accuracy before training and after each epoch."""
    data = load_mnist_data(root, IMAGES + VALIDATION)
    test = data.test_inputs[:TEST], data.test_labels[:TEST]
    parts = (slice(0, IMAGES), slice(IMAGES, None))
    train, held = (TensorDataset(data.train_inputs[part], data.train_labels[part]) for part in parts)
    torch.manual_seed(seed)
    net, loader, points, seconds = Net(), DataLoader(train, BATCH, shuffle=True), [], 0.0
    optimizer, guard, began = torch.optim.Adam(net.parameters(), lr=rate), None, time.process_time()
    if method != "alone":
        report = convex_init_(net, loader, progress=False, seed=seed)
        if method == "guard":
            guard = report.protect(optimizer, DataLoader(held, 500))
        if method.startswith("factor"):
            report.write_solved()
            with torch.no_grad():
                for parameter in net.fc2.parameters():
                    parameter.mul_(float(method.split()[1]))
    for epoch in range(EPOCHS.get(method, 3) + 1):
        if epoch:
            began = time.process_time()
            for inputs, labels in loader:
                optimizer.zero_grad()
                loss_of(net, inputs, labels).backward()
                optimizer.step()
        if guard is None:
            seconds += time.process_time() - began
            with torch.no_grad():
                loss = float(loss_of(net, *test))
            points.append({"seconds": seconds, "test": accuracy(net, *test), "loss": loss})
        else:
            with guard.evaluated():
                seconds += time.process_time() - began
                points.append({"seconds": seconds, "test": accuracy(net, *test)})
    return points


def means(cases: dict[str, Any], rate: float) -> dict[str, float]:
    """Return means over the seeds, training alone also at the seconds that the line and three epochs take."""

    def runs(method: str) -> list[Any]:
        return [cases[f"{method} | {rate:g} | {seed}"] for seed in range(SEEDS)]

    line, guard, alone = runs("line"), runs("guard"), runs("alone")
    level = [
        max((point for point in own if point["seconds"] <= other[-1]["seconds"]), key=lambda point: point["seconds"])["test"]
        for own, other in zip(alone, line, strict=True)
    ]
    return {
        "start": statistics.fmean(run[0]["test"] for run in line),
        "line, 3 epochs": statistics.fmean(run[-1]["test"] for run in line),
        "guard, 3 epochs": statistics.fmean(run[-1]["test"] for run in guard),
        "alone, 3 epochs": statistics.fmean(run[3]["test"] for run in alone),
        "alone, equal seconds": statistics.fmean(level),
    }


def by_factor(cases: dict[str, Any], factor: float) -> list[float]:
    """Return the trained loss at a multiple of the solved readout, and the test accuracy after three epochs at each rate."""
    found = [[cases[f"factor {factor:g} | {rate:g} | {seed}"] for seed in range(FACTOR_SEEDS)] for rate in RATES]
    loss = statistics.fmean(run[0]["loss"] for run in found[0])
    return [loss, statistics.fmean(run[0]["test"] for run in found[0])] + [
        statistics.fmean(run[-1]["test"] for run in runs) for runs in found
    ]


def main() -> None:
    """Run all cases, write the json and print means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    cases = {
        f"{method} | {rate:g} | {seed}": partial(run, options.root, method, rate, seed)
        for method in EPOCHS
        for rate in RATES
        for seed in range(SEEDS)
    }
    cases |= {
        f"{method} | {rate:g} | {seed}": partial(run, options.root, method, rate, seed)
        for method in (f"factor {factor:g}" for factor in FACTORS)
        for rate in RATES
        for seed in range(FACTOR_SEEDS)
    }
    head = {"machine": machine("snntorch"), "images": IMAGES, "validation": VALIDATION, "test": TEST}
    results = run_all(RESULTS / "tutorial5.json", head, cases)["cases"]
    for rate in RATES:
        print(f"rate {rate:g}: " + ", ".join(f"{name} {100 * value:.1f}" for name, value in means(results, rate).items()))


if __name__ == "__main__":
    main()
