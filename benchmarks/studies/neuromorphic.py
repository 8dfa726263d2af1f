"""NeuroBench's metrics of a snnTorch net on scikit-learn's digits: as it comes, trained by surrogate gradients, solved in place.

Images are constant currents into 200 hidden neurons over 25 steps, so that the first layer multiplies and the readout adds spikes.
``make bench-neuromorphic`` runs it in an environment that has NeuroBench.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.nets import Stepped, train_epochs
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from snn_recon_plugin import convex_init_
from snn_recon_plugin.demo import Data, load_digits_data

STEPS, HIDDEN, EPOCHS, RATE, SEED = 25, 200, 30, 1e-3, 0


def make() -> nn.Module:
    """64-200-10, the mean of the readout's membrane as scores."""
    return Stepped([nn.Linear(64, HIDDEN), snn.Leaky(beta=0.9, init_hidden=True)], HIDDEN, beta=0.9, steps=STEPS)


def metrics(net: nn.Module, data: Data) -> dict[str, Any]:
    """Accuracy on the test images, how many activations are zero, and operations for an image."""
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.static import ConnectionSparsity, Footprint
    from neurobench.metrics.workload import ActivationSparsity, ClassificationAccuracy, SynapticOperations
    from neurobench.models import TorchModel

    model = TorchModel(net)
    model.add_activation_module(snn.SpikingNeuron)
    loader = DataLoader(TensorDataset(data.test_inputs, data.test_labels), 450)
    asked = [[Footprint, ConnectionSparsity], [ClassificationAccuracy, ActivationSparsity, SynapticOperations]]
    with torch.no_grad():
        found: dict[str, Any] = Benchmark(model, loader, [], [lambda membranes: membranes.mean(0).argmax(1)], asked).run(quiet=True)
    operations = found.pop("SynapticOperations")
    return {name: float(value) for name, value in {**found, **operations}.items()}


METHODS: dict[str, Callable[[nn.Module, DataLoader[Any]], Any]] = {
    "as it comes": lambda net, loader: None,
    f"surrogate gradients, {EPOCHS} epochs": partial(train_epochs, epochs=EPOCHS, rate=RATE),
    "convex readout": partial(convex_init_, seed=SEED),
    'convex readout, penalty="l1"': partial(convex_init_, penalty="l1", seed=SEED),
    'hidden="reconstruct"': partial(convex_init_, hidden="reconstruct", seed=SEED),
}


def measure(method: str) -> dict[str, Any]:
    """Apply a method to a fresh net, and count."""
    torch.manual_seed(SEED)
    net, data = make(), load_digits_data()
    METHODS[method](net, DataLoader(TensorDataset(data.train_inputs, data.train_labels), 128, shuffle=True))
    return metrics(net, data)


def cells(bench: Bench) -> Cells:
    """A net for each method."""
    return {method: partial(measure, method) for method in METHODS}


def pages(store: Store) -> dict[str, dict[str, str]]:
    """NeuroBench's metrics, a row a method."""
    rows = []
    for name in METHODS:
        cell = store[name]
        shares = (f"{100 * cell[key]:.1f} %" for key in ("ClassificationAccuracy", "ActivationSparsity", "ConnectionSparsity"))
        rows.append((name, *shares, *(f"{cell[key]:,.0f}" for key in ("Effective_MACs", "Effective_ACs", "Dense"))))
    heads = ("test accuracy", "activations that are zero", "connections that are zero", "multiplications", "additions", "dense")
    text = f"{markdown_table(('net', *heads), rows)}\n\nSeed {SEED}; {machines_line(store.cells())}"
    return {"evidence/networks.md": {"neuromorphic": text}}


STUDY = Study(
    title="NeuroBench's metrics before and after",
    minutes=1,
    cells=cells,
    pages=pages,
    fields=(
        *("Footprint", "ConnectionSparsity", "ClassificationAccuracy", "ActivationSparsity"),
        *("Effective_MACs", "Effective_ACs", "Dense"),
    ),
    packages=("snntorch", "neurobench"),
)
