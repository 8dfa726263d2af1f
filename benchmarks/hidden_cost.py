"""Cost and accuracy of a start by each choice of hidden layers, in CPU seconds and in epochs of training of the same net.

    python benchmarks/hidden_cost.py --root DIR                 writes benchmarks/results/hidden_cost.json
    PYTHONPATH=OTHER python benchmarks/hidden_cost.py --root DIR --code before      another checkout of the package

DIR holds MNIST as torchvision has it, and ``speech/ende.npz``.  CPU seconds of one thread.  One epoch (Adam, batch 128) is timed
right before the starts, in the same process.  No gradient step follows a start.
"""

from __future__ import annotations

import argparse
import time
import warnings
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import RESULTS, machine, run_all
from benchmarks.witness_tasks import TASKS, test_accuracy
from snn_recon_plugin import convex_init_

BATCH, RATE = 128, 5e-4
HIDDEN = ("keep", "rescale", "auto")
NAMES = (
    "MNIST, 200 hidden",
    "MNIST, 1000 hidden",
    "MNIST, heavy noise",
    "MNIST, a row a step, 10000",
    "MNIST, a row a step, two layers",
    "speech",
    "which of two comes first",
    "MNIST, rate coded",
    "digits",
    "digits, 270 samples",
    "MNIST, 1000 hidden, 3000 images",
    "MNIST, convolutional, 1000 images",
    "MNIST, convolutional",
)


def train_epoch(net: nn.Module, loader: DataLoader[Any]) -> float:
    """CPU seconds of one epoch."""
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    began = time.process_time()
    for inputs, labels in loader:
        optimizer.zero_grad()
        output = net(inputs)
        nn.functional.cross_entropy(output.mean(0) if output.dim() == 3 else output, labels).backward()
        optimizer.step()
    return time.process_time() - began


def run(code: str, name: str, hidden: str, root: str, seed: int) -> dict[str, Any]:
    """An epoch of a net, then a start of a net like it."""
    task = TASKS[name]
    train, labels, test, test_labels = task.load(root, seed)
    loader = DataLoader(TensorDataset(train, labels), BATCH, shuffle=True)
    torch.manual_seed(seed)
    epoch = train_epoch(task.build(), loader)
    torch.manual_seed(seed)
    net, began = task.build(), time.process_time()
    report = convex_init_(net, loader, hidden=hidden, seed=seed, progress=False)
    spent = time.process_time() - began
    layers = report.to_dict()["layers"]
    found = {"code": code, "task": name, "hidden": hidden, "seed": seed, "epoch": epoch, "seconds": spent}
    found |= {"test": test_accuracy(net, test, test_labels), "heldout": report.accuracy_after, "stages": report.seconds}
    found["layers"] = [layer["witnesses"] or {"gain": layer["gain"], "reason": layer["reason"]} for layer in layers]
    print(name, hidden, f"{spent:.2f} s, {spent / epoch:.2f} epochs, test {100 * found['test']:.2f} %", flush=True)
    return found


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    parser.add_argument("--code", default="now", help="name of the code that is measured (default: now)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(NAMES))
    parser.add_argument("--hidden", nargs="+", choices=HIDDEN, default=list(HIDDEN))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    cases = {
        f"{name}, {hidden}, seed {seed}, {options.code}": partial(run, options.code, name, hidden, options.root, seed)
        for seed in options.seeds
        for name in options.tasks
        for hidden in options.hidden
    }
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    run_all(RESULTS / "hidden_cost.json", {"machine": machine("snntorch")}, cases)


if __name__ == "__main__":
    main()
