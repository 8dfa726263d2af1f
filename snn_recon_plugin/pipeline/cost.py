"""Cost of a training epoch, in the unit that bounds a solve."""

from __future__ import annotations

from ..convex.budget import PRICE, rows_of_all
from ..convex.distributed import Alone
from ..networks import HiddenLayer
from .capture import ProgramData
from .task import Task

__all__ = ["epoch_products"]

_PASSES = 3  # forward, and backward to inputs and to weights
_MIN_WORK = 2e10  # multiply-adds that every solve may take: half a second on one core


def epoch_products(task: Task, data: ProgramData, shards: Alone) -> float:
    """Return the number of products with all features that cost as much as an epoch of training on the samples.

    It depends on network and data, not on the machine.  Only matrix products count: spikes, other layers and the optimizer make an
    epoch longer than this.

    Args:
        task: the program's task.
        data: captured samples.
        shards: processes that share the samples.
    """
    readout = task.net_map.readout
    captured = data.captured
    each = task.rows.each
    step = float(readout.out_features * readout.in_features)
    step += sum(_multiply_adds(layer, captured.layers[layer.name].neurons) for layer in task.net_map.hidden)
    product = readout.in_features * max(readout.out_features, PRICE)  # of one row
    rows = rows_of_all(len(captured.targets) * each, captured.features.device, shards)
    return max(_PASSES * task.net_map.num_steps * step / (each * product), _MIN_WORK / (rows * product))


def _multiply_adds(layer: HiddenLayer, neurons: int) -> float:
    """Return the multiply-adds of one sample's step in a hidden layer, recurrent weights included."""
    weights = {id(value): value for module in (layer.synapse, layer.neuron) for value in module.parameters() if value.dim() > 1}
    return float(sum(neurons * value[0].numel() for value in weights.values()))
