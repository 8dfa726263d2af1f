"""Plan of a convolutional net's hidden layers: rebuilt from the input up, as many as an amount of work allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ..networks import Taps, record
from .hidden_task import HiddenTask
from .samplers import WitnessOptions
from .select import MAX_STEPS
from .site import weight_of

# Work is counted in multiply-adds of a convolution.  Set by hand, so that most nets of benchmarks/studies/deep.py, on one machine,
# take about the epochs that are planned.
_NEURON = 100.0  # of one neuron for a step
_SOLVE = 5.0  # of a multiply-add of the small programs that select and compare
_BACKWARD = 3.0  # a training step, in forward passes
_COMPARED, _SOLVES, _PRODUCTS = 4, 7, 150  # rows simulated and programs solved to compare a layer, and the products of each
_PASSES = 2.0  # of the net for each layer
_OVERHEAD = 1.4  # of all this, in seconds
_POSITIONS = 9  # of a convolution, pooled


@dataclass(frozen=True)
class Plan:
    """Layers to rebuild, and what that costs.

    Args:
        layers: how many, from the input up.
        epochs: estimate for each of all hidden layers, in epochs of training.
    """

    layers: int
    epochs: tuple[float, ...]


def plan_layers(task: HiddenTask, options: WitnessOptions, total: int | None, budget: float) -> Plan:
    """Return how many layers to rebuild so that they cost at most ``budget`` epochs of training on ``total`` samples.

    The first one is rebuilt in any case.  Without a ``total``, all are.
    """
    work = _count_layers(task)
    rows, used = len(task.targets), len(task.used_samples)
    forward = sum(work)
    costs = []
    for layer, each in zip(task.net_map.hidden, work, strict=True):
        width = len(weight_of(layer.synapse))
        candidates = options.count_candidates(width)
        simulated = each * (used * candidates / width + _COMPARED * rows)
        features = _POSITIONS * task.num_outputs * (MAX_STEPS * candidates + _SOLVES * _PRODUCTS * width)
        costs.append(simulated + 2 * _SOLVE * used * features + _PASSES * rows * forward)
    epochs = tuple(_OVERHEAD * cost / (_BACKWARD * (total or rows) * forward) for cost in costs)
    if total is None or math.isinf(budget):
        return Plan(len(costs), epochs)
    affordable = sum(sum(epochs[: number + 1]) <= budget for number in range(len(epochs)))
    return Plan(max(1, affordable), epochs)


def _count_layers(task: HiddenTask) -> list[float]:
    """Return the work of each layer for a sample and all steps."""
    counts = [0.0] * len(task.net_map.hidden)

    def add(number: int, output: object) -> None:
        assert isinstance(output, Tensor)
        counts[number] += output.numel()

    layers, first = task.net_map.hidden, task.batches[0]
    record(task.net, first, task.forward, Taps(outputs={layer.synapse: partial(add, n) for n, layer in enumerate(layers)}))
    weights = [getattr(layer.synapse, "weight", None) for layer in layers]
    sizes = [weight[0].numel() if isinstance(weight, Tensor) else 1 for weight in weights]
    return [count / first.size * (size + _NEURON) for count, size in zip(counts, sizes, strict=True)]
