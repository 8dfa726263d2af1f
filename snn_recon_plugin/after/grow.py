"""More outputs of a network: the tensors of its readout and output neuron, with rows for new classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..networks.libraries import library_of
from ..networks.private.parameters import Values, store_of
from ..networks.structure.layers import ReadoutLayer


def model_unit(layer: ReadoutLayer) -> int:
    """Return the output whose neuron new outputs get: the one with the median leak, the first one if all are alike."""
    neuron, outputs = layer.neuron, layer.out_features
    name = None if neuron is None else library_of(neuron).leak_name(neuron)
    leak = None if name is None else getattr(neuron, name).detach().flatten()
    return 0 if leak is None or len(leak) != outputs else int(leak.argsort(stable=True)[(outputs - 1) // 2])


def grown_neuron(layer: ReadoutLayer, more: int, unit: int) -> Values:
    """Return what the output neuron keeps for each output, such as a leak, with the values of one unit for new outputs."""
    neuron, values = layer.neuron, {}
    for module in [] if neuron is None else neuron.modules():
        for name in {**module._parameters, **module._buffers}:
            value = store_of(module, name).get(name)
            if isinstance(value, Tensor) and value.dim() == 1 and len(value) == layer.out_features > 1:
                values[module, name] = torch.cat([value.detach(), value.detach()[unit].expand(more)])
    return values


def footprint(net: nn.Module) -> int:
    """Return the bytes of a network's parameters and saved buffers."""
    return sum(value.nbytes for value in net.state_dict().values() if isinstance(value, Tensor))
