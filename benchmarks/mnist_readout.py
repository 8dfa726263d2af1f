"""MNIST, first 10,000 training images, 784-1000-10 snnTorch net, 25 steps, membrane mean, no gradient step: what each choice gives.

Figures for docs/evidence/decisions.md (the default penalty, the tie of firing rates) and for the claim that a net silent at its
default init is revived by hidden="rescale".  Run: python benchmarks/mnist_readout.py --root DIR
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from common import machine
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from snn_recon_plugin import ConvexInitializer
from snn_recon_plugin.demo import Data, build_network, load_mnist_data, test_accuracy

RESULTS = Path(__file__).resolve().parent / "results" / "mnist_readout.json"
CASES: dict[str, tuple[float, dict[str, Any]]] = {
    "keep, ridge": (1.0, {"hidden": "keep", "penalty": "ridge"}),
    "keep, group_l1": (1.0, {"hidden": "keep", "penalty": "group_l1"}),
    "keep, l1": (1.0, {"hidden": "keep", "penalty": "l1"}),
    "rescale, ridge": (1.0, {"hidden": "rescale"}),
    "weights divided by 20, rescale": (20.0, {"hidden": "rescale"}),
}


def run_case(data: Data, divisor: float, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """One initialisation of a fresh net, and its test accuracy before and after."""
    torch.manual_seed(seed)
    net = build_network(data.train_inputs.shape[1], 1000, 10, 25)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.div_(divisor)
    before = test_accuracy(net, data)
    loader = DataLoader(TensorDataset(data.train_inputs, data.train_labels), 128)
    report = ConvexInitializer(seed=seed, fit_loss="same", **options).initialize(net, loader).to_dict()
    return {"test_before": before, "test_after": test_accuracy(net, data), "report": report}


def main() -> None:
    """Runs all cases and writes the json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = load_mnist_data(options.root, options.samples)
    results = {name: run_case(data, *case, options.seed) for name, case in tqdm(CASES.items())}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine("snntorch"), "seed": options.seed, "cases": results}, indent=1) + "\n")
    for name, result in results.items():
        report = result["report"]
        print(
            f"{name:<32} test {100 * result['test_before']:5.1f} % -> {100 * result['test_after']:.2f} %   "
            f"gap {report['certificate']['relative_gap']:.1e}   {report['active_neurons']} neurons   "
            f"solve {report['seconds']['solve']:.1f} s of {sum(report['seconds'].values()):.1f} s"
        )


if __name__ == "__main__":
    main()
