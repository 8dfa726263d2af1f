"""NeuroBench's metrics of a snnTorch net on scikit-learn's digits: as it comes, trained by surrogate gradients, solved in place.

    make bench-neuromorphic     in an environment that has NeuroBench; writes benchmarks/results/neuromorphic.json

Images are constant currents into 200 hidden neurons over 25 steps, so that the first layer multiplies and the readout adds spikes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import snntorch as snn
import torch
from neurobench.benchmarks import Benchmark
from neurobench.metrics.static import ConnectionSparsity, Footprint
from neurobench.metrics.workload import ActivationSparsity, ClassificationAccuracy, SynapticOperations
from neurobench.models import TorchModel
from snntorch import utils
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import RESULTS, machine, run_all
from snn_recon_plugin import convex_init_
from snn_recon_plugin.demo import Data, load_digits_data

STEPS, HIDDEN, EPOCHS, RATE = 25, 200, 30, 1e-3


class Net(nn.Module):
    """64-200-10, the mean of the readout's membrane as scores."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, HIDDEN)
        self.lif1 = snn.Leaky(beta=0.9, init_hidden=True)
        self.fc2 = nn.Linear(HIDDEN, 10)
        self.lif2 = snn.Leaky(beta=0.9, init_hidden=True, output=True, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        utils.reset(self)
        return torch.stack([self.lif2(self.fc2(self.lif1(self.fc1(x))))[1] for _ in range(STEPS)]).mean(0)


def metrics(net: Net, data: Data) -> dict[str, Any]:
    """Accuracy on the test images, how many activations are zero, and operations for an image."""
    model = TorchModel(net)
    model.add_activation_module(snn.SpikingNeuron)
    loader = DataLoader(TensorDataset(data.test_inputs, data.test_labels), 450)
    asked = [[Footprint, ConnectionSparsity], [ClassificationAccuracy, ActivationSparsity, SynapticOperations]]
    benchmark = Benchmark(model, loader, [], [lambda scores: scores.argmax(1)], asked)
    with torch.no_grad():
        found: dict[str, Any] = benchmark.run(quiet=True)
    return {name: plain(value) for name, value in found.items()}


def plain(value: Any) -> Any:
    """Numbers as json has them."""
    return {name: float(part) for name, part in value.items()} if isinstance(value, dict) else float(value)


def surrogate(net: Net, loader: DataLoader[Any]) -> None:
    """Training as in the library's tutorials."""
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    for _ in range(EPOCHS):
        for inputs, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs), labels).backward()
            optimizer.step()


METHODS: dict[str, Callable[[Net, DataLoader[Any], int], Any]] = {
    "as it comes": lambda net, loader, seed: None,
    f"surrogate gradients, {EPOCHS} epochs": lambda net, loader, seed: surrogate(net, loader),
    "convex readout": lambda net, loader, seed: convex_init_(net, loader, seed=seed),
    'convex readout, penalty="l1"': lambda net, loader, seed: convex_init_(net, loader, penalty="l1", seed=seed),
    'hidden="reconstruct"': lambda net, loader, seed: convex_init_(net, loader, hidden="reconstruct", seed=seed),
}


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    data, seed = load_digits_data(), 0
    head = {"machine": machine("snntorch", "neurobench"), "seed": seed}
    cases: dict[str, Callable[[], dict[str, Any]]] = {}
    for method, apply in METHODS.items():

        def case(apply: Callable[[Net, DataLoader[Any], int], Any] = apply) -> dict[str, Any]:
            torch.manual_seed(seed)
            net = Net()
            apply(net, DataLoader(TensorDataset(data.train_inputs, data.train_labels), 128, shuffle=True), seed)
            return metrics(net, data)

        cases[method] = case
    run_all(options.results / "neuromorphic.json", head, cases)


if __name__ == "__main__":
    main()
