"""The cost of a training epoch, in the products that bound a solve."""

from __future__ import annotations

from torch import Tensor

from .convex.shards import Alone
from .convex.work import PRICE, rows_of_all
from .networks import HiddenLayer
from .outcome import Found

__all__ = ["epoch_products"]

_PASSES = 3  # forward, and backward to inputs and to weights
_LEAST = 2e10  # multiply-adds that every solve may take: half a second on one core


def epoch_products(found: Found, shards: Alone) -> float:
    """Products with all features that cost as much as an epoch of training on the captured samples.

    The same for the same network and data, whatever the machine.  Only matrix products count: layers between them, spikes and
    the optimizer make an epoch longer than this.

    Args:
        found: with the captured features.
        shards: of the samples.
    """
    readout, captured = found.net_map.readout, found.captured
    step = float(readout.out_features * readout.in_features)
    step += sum(_multiply_adds(layer, captured.layers[layer.name].neurons) for layer in found.net_map.hidden)
    product = readout.in_features * max(readout.out_features, PRICE)  # of one row
    rows = rows_of_all(len(captured.targets) * found.rows.each, captured.features.device, shards)
    return max(_PASSES * found.net_map.num_steps * step / (found.rows.each * product), _LEAST / (rows * product))


def _multiply_adds(layer: HiddenLayer, neurons: int) -> float:
    """Multiply-adds of one sample's step in a hidden layer, recurrent weights included."""
    weights = {id(value): value for module in (layer.synapse, layer.neuron) for value in module.parameters() if value.dim() > 1}
    return float(sum(neurons * _row(value) for value in weights.values()))


def _row(weight: Tensor) -> int:
    return weight[0].numel()
