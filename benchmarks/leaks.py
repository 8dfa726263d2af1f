"""One leak for all neurons against one each: test accuracy of rebuilt nets where inputs change over time, no gradient step.

    python benchmarks/leaks.py --root DIR --speech DIR      writes benchmarks/results/leaks.json, ten minutes

Spoken digits in two languages (70 channels, 60 steps, 20 classes; ``ende.npz`` in the second folder), MNIST a row a step,
and MNIST shown at every step, where time carries nothing.  The net is one layer of 256 snn.Leaky, beta 0.9, and a readout by the
mean membrane.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import start_cost
from benchmarks.witness_tasks import Net
from snn_recon_plugin import convex_init_
from snn_recon_plugin.demo import load_mnist_data

TRAIN, STEPS = 10000, 25
WORDS = {False: "one leak", True: "a leak each"}  # by the value of heterogeneous
Split = tuple[Tensor, Tensor, Tensor, Tensor]


def speech(root: str, speech: str) -> Split:
    """Spoken digits, spikes counted in 60 steps of 15 ms."""
    del root
    stored = np.load(Path(speech) / "ende.npz")
    counts = np.zeros((len(stored["y"]), 60, 70), "float32")
    sample = np.repeat(np.arange(len(counts)), np.diff(stored["ptr"]))
    np.add.at(counts, (sample, np.minimum(stored["times"] // 15, 59), stored["units"]), 1)
    inputs, labels, test = torch.tensor(counts), torch.tensor(stored["y"].astype("int64")), torch.tensor(stored["test"])
    return inputs[~test], labels[~test], inputs[test], labels[test]


def rows(root: str, speech: str) -> Split:
    """MNIST, a row of 28 pixels a step."""
    del speech
    data = load_mnist_data(root, TRAIN)
    return data.train_inputs.view(-1, 28, 28), data.train_labels, data.test_inputs.view(-1, 28, 28), data.test_labels


def still(root: str, speech: str) -> Split:
    """MNIST, the whole image at each of 25 steps."""
    train, labels, test, test_labels = rows(root, speech)
    train, test = (part.flatten(1)[:, None].expand(-1, STEPS, -1) for part in (train, test))
    return train[:3000], labels[:3000], test[:2000], test_labels[:2000]


DATA: dict[str, Callable[[str, str], Split]] = {"spoken digits": speech, "MNIST, a row a step": rows, "MNIST, still": still}


@cache
def load(name: str, root: str, speech: str) -> Split:
    """Training and test inputs (n, T, D) and their classes."""
    return DATA[name](root, speech)


def run(name: str, leaks: bool, root: str, speech: str, seed: int) -> dict[str, Any]:
    """Test accuracy of one net, and the leaks that were selected."""
    train, labels, test, test_labels = load(name, root, speech)
    torch.manual_seed(seed)
    net = Net(train.shape[2], int(labels.max()) + 1)
    loader = DataLoader(TensorDataset(train, labels), 250, shuffle=True)
    began = time.process_time()
    report = convex_init_(net, loader, hidden="reconstruct", heterogeneous=leaks, seed=seed, progress=False)
    seconds = time.process_time() - began
    with torch.no_grad():
        right = torch.cat([net(some).mean(0).argmax(1) for some in test.split(500)]) == test_labels
    found = report.layers[0].witnesses
    return {
        "data": name,
        "heterogeneous": leaks,
        "test": float(right.float().mean()),
        "heldout": report.accuracy_after,
        "cpu_seconds": seconds,
        "leaks": {} if found is None else {f"{leak:.4f}": count for leak, count in found.leaks.items()},
    }


def main() -> None:
    """Reads the command line."""
    parser = start_cost.make_parser(__doc__)
    parser.add_argument("--speech", required=True, help="folder of ende.npz")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    cases = {
        f"{name}, {WORDS[leaks]}, seed {seed}": partial(run, name, leaks, options.root, options.speech, seed)
        for seed, name, leaks in product(range(options.seeds), DATA, WORDS)
    }
    content = start_cost.measure("leaks", {"train": TRAIN, "seeds": options.seeds}, cases)
    for name, leaks in product(DATA, WORDS):
        found = [case for case in content["cases"].values() if (case["data"], case["heterogeneous"]) == (name, leaks)]
        test, seconds = (sum(case[key] for case in found) / len(found) for key in ("test", "cpu_seconds"))
        print(f"{name:20} {WORDS[leaks]:12} {100 * test:.1f} %, {seconds:.0f} s")


if __name__ == "__main__":
    main()
