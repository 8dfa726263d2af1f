"""What runs before training: the one line, and initialisations that a user could take in its place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import ConvexInitializer

Start = Callable[[nn.Module, TensorDataset, int], object]
BATCH = 128
MEASURED = 500  # samples on which fluctuations are measured


def line(net: nn.Module, train: TensorDataset, seed: int, **options: Any) -> None:
    """Run the one line."""
    ConvexInitializer(seed=seed, progress=False, **options).initialize(net, DataLoader(train, BATCH, shuffle=True))


@torch.no_grad()
def fluctuation_driven(net: nn.Module, train: TensorDataset, seed: int) -> None:
    """Draw fluctuation-driven hidden weights of a snnTorch net, after Rossbroich, Gygax and Zenke (2022); our own writing.

    Weights are normal with mean zero, which leaves the membrane at rest on average, and a standard deviation that puts the
    threshold a standard deviation of the membrane's fluctuations above it.  The paper derives both from Poisson inputs of a known
    rate; here the fluctuations are measured, layer by layer from the input up, which covers static images too.  Recurrent weights
    and the readout stay.  Behind a batch norm its own factors are scaled, as the weights' size has no effect.  Of a residual
    block all branches are scaled alike; what an identity adds to the current stays.
    """
    inputs = train.tensors[0][:MEASURED]
    for neuron, synapses in layers_of(net, inputs[:2])[:-1]:
        norms = [part for part in synapses if isinstance(part, nn.BatchNorm2d)]
        for synapse in synapses:
            if synapse not in norms:
                nn.init.normal_(synapse.weight, 0.0, synapse.weight[0].numel() ** -0.5)
                if synapse.bias is not None:
                    nn.init.zeros_(synapse.bias)
        factor = float(neuron.threshold) / fluctuations(net, neuron, inputs)
        for part in norms or synapses:
            part.weight.mul_(factor)


def layers_of(net: nn.Module, inputs: Tensor) -> list[tuple[Any, list[Any]]]:
    """Return the neurons of a snnTorch net in the order in which they run, each with the synapses and batch norms before it."""
    found: dict[nn.Module, list[nn.Module]] = {}
    waiting: list[nn.Module] = []
    inner = {part for neuron in net.modules() if isinstance(neuron, snn.SpikingNeuron) for part in neuron.modules()}
    known = [part for part in net.modules() if isinstance(part, nn.Linear | nn.Conv2d | nn.BatchNorm2d) and part not in inner]

    def passed(module: nn.Module, arguments: Any) -> None:
        if isinstance(module, snn.SpikingNeuron):
            found.setdefault(module, list(waiting))
            waiting.clear()
        else:
            waiting.append(module)

    neurons = [part for part in net.modules() if isinstance(part, snn.SpikingNeuron)]
    handles = [part.register_forward_pre_hook(passed) for part in (*known, *neurons)]
    try:
        net(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return list(found.items())


@torch.no_grad()
def fluctuations(net: nn.Module, neuron: nn.Module, inputs: Tensor) -> float:
    """Return the root mean square of a neuron's membrane over samples, units and steps if it never reset."""
    powers: list[Tensor] = []
    membrane = torch.zeros(())

    def filtered(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        nonlocal membrane
        membrane = torch.as_tensor(module.beta) * membrane + arguments[0]
        powers.append(membrane.square().mean())

    handle = neuron.register_forward_pre_hook(filtered)
    try:
        net(inputs)
    finally:
        handle.remove()
    return math.sqrt(float(torch.stack(powers).mean()))
