"""snnTorch's tutorial 6 as users type it, on 1,500 images: training alone, and from the line with the guard, at its own rate.

    python benchmarks/tutorial6.py --root DIR      writes benchmarks/results/tutorial6.json

12C5-MP2-64C5-MP2-10, beta 0.5, 25 steps (the tutorial has 50), a fast sigmoid of slope 25, spiking outputs, Adam at 1e-2, batches
of 128, cross-entropy of the spike rate.  Seconds are CPU seconds of one thread, without those of tests.
"""

from __future__ import annotations

import argparse
import time
import warnings
from functools import partial
from typing import Any

import snntorch as snn
import snntorch.functional as SF
import torch
from snntorch import surrogate, utils
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import RESULTS, machine, run_all
from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.demo import load_mnist_data

IMAGES, VALIDATION, TEST, BATCH, STEPS, RATE, EPOCHS = 1500, 500, 2000, 128, 25, 1e-2, 3


def build() -> nn.Sequential:
    """Return the tutorial's net."""
    options = {"beta": 0.5, "spike_grad": surrogate.fast_sigmoid(slope=25), "init_hidden": True}
    first, second, last = (snn.Leaky(**options) for _ in range(3))
    last.output = True
    pools = [nn.MaxPool2d(2) for _ in range(2)]
    return nn.Sequential(
        nn.Conv2d(1, 12, 5), pools[0], first, nn.Conv2d(12, 64, 5), pools[1], second, nn.Flatten(), nn.Linear(1024, 10), last
    )


def forward_pass(net: nn.Module, data: Tensor) -> Tensor:
    """Return the output spikes of all steps, (T, B, 10), as the tutorial's function of this name."""
    utils.reset(net)
    return torch.stack([net(data)[0] for _ in range(STEPS)])


@torch.no_grad()
def accuracy(net: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of images whose class has most spikes."""
    net.eval()
    counts = torch.cat([forward_pass(net, part).sum(0) for part in inputs.split(500)])
    net.train()
    return float((counts.argmax(1) == labels).double().mean())


def run(root: str, guarded: bool, seed: int) -> list[dict[str, float]]:
    """Return seconds and test accuracy before training and after each epoch."""
    data = load_mnist_data(root, IMAGES + VALIDATION)
    images = data.train_inputs.view(-1, 1, 28, 28)
    train, held = (
        TensorDataset(*parts) for parts in zip(*(part.tensor_split([IMAGES]) for part in (images, data.train_labels)), strict=True)
    )
    test = data.test_inputs[:TEST].view(-1, 1, 28, 28), data.test_labels[:TEST]
    torch.manual_seed(seed)
    net, loader, loss_fn = build(), DataLoader(train, BATCH, shuffle=True), SF.ce_rate_loss()
    optimizer, guard, points, seconds = torch.optim.Adam(net.parameters(), lr=RATE), None, [], 0.0
    began = time.process_time()
    if guarded:
        report = convex_init_(net, loader, forward=over_time(STEPS), loss=loss_fn, progress=False, seed=seed)
        guard = report.protect(optimizer, DataLoader(held, 500))
    for epoch in range(EPOCHS + 1):
        if epoch:
            began = time.process_time()
            for inputs, labels in loader:
                loss = loss_fn(forward_pass(net, inputs), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        if guard is None:
            seconds += time.process_time() - began
            points.append({"seconds": seconds, "test": accuracy(net, *test)})
            continue
        with guard.evaluated():
            seconds += time.process_time() - began
            points.append({"seconds": seconds, "test": accuracy(net, *test)})
    return points


def main() -> None:
    """Run both and write the json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    cases: dict[str, Any] = {f"{name} | 0": partial(run, options.root, name == "guard", 0) for name in ("alone", "guard")}
    head = {"machine": machine("snntorch"), "images": IMAGES, "validation": VALIDATION, "test": TEST}
    print(run_all(RESULTS / "tutorial6.json", head, cases)["cases"])


if __name__ == "__main__":
    main()
