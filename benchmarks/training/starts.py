"""What runs before training: the one line, and initialisations that a user could take in its place."""

from __future__ import annotations

from collections.abc import Callable

import snntorch as snn
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.hidden_networks import fluctuation_driven_
from benchmarks.rivals import sample_rows
from benchmarks.temporal.training import BATCH
from snn_recon_plugin import ConvexInitializer

__all__ = ["Start", "fluctuation_driven", "line", "s_swim"]

Start = Callable[[nn.Module, TensorDataset, int], object]

_MEASURED = 500  # samples on which fluctuations are measured
_PAIRED = 2_000  # samples whose steps are paired


def line(net: nn.Module, train: TensorDataset, seed: int) -> None:
    """Run the one line."""
    ConvexInitializer(seed=seed, progress=False).initialize(net, DataLoader(train, BATCH, shuffle=True))


def fluctuation_driven(net: nn.Module, train: TensorDataset, seed: int) -> None:
    """Draw fluctuation-driven hidden weights (Rossbroich, Gygax and Zenke, 2022); the readout stays."""
    fluctuation_driven_(net, train.tensors[0][:_MEASURED])


def s_swim(net: nn.Module, train: TensorDataset, seed: int) -> None:
    """Sample the rows of the only hidden layer as S-SWIM (arXiv 2510.01012), and solve the readout by this package."""
    inputs, labels = (part[:_PAIRED] for part in train.tensors)
    inputs = inputs.flatten(1)[:, None] if inputs.dim() == 2 else inputs
    targets = functional.one_hot(labels).float()[:, None].expand(-1, inputs.shape[1], -1)
    neurons = [module for module in net.modules() if isinstance(module, snn.Leaky)]
    synapses = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if len(neurons) != 2 or len(synapses) != 2:
        raise SystemExit("S-SWIM's rows are written here for a single hidden layer of snnTorch's Leaky")
    sample_rows(synapses[0], neurons[0], inputs, targets, seed)
    ConvexInitializer(hidden="keep", seed=seed, progress=False).initialize(net, DataLoader(train, BATCH, shuffle=True))
