"""Hints: options and changes of the data that the caller has not tried, and that often help on nets and data like these.

To add one: a condition in ``find_hints``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import NamedTuple

from torch import Tensor, nn

from ..networks.calls.batches import first_samples
from ..networks.calls.record import StoredBatch, Taps, record, run_forward
from ..options import Options
from ..stages.task import Task

# Pixels in 0 to 1 and standardised features have at most 1, all nets of the tests 0.6.  An epoch of training from digits in 0 to 16
# (8) loses two points of a start, in 0 to 255 (123) most of it (docs/evidence/training.md).
LARGE_INPUT = 5.0  # root mean square
# Fresh weights turn inputs of 5 into 3 thresholds.  Trained weights, or a normalisation behind the layer, leave about 1.
LARGE_CURRENT = 2.5  # root mean square, in thresholds


_SCALE_FIX = "divide pixels by 255, or standardise features, (x - mean) / std, in the loader and in your own test"
_LEAK_FIX = "heterogeneous=True gives each a leak and is often more accurate; beta becomes a vector"
_MORE_FIX = "a larger max_samples is usually more accurate"


class InputScale(NamedTuple):
    """Size of what enters the first hidden layer of the network as it was, on a few samples."""

    layer: str
    inputs: float  # root mean square of the inputs
    current: float  # root mean square of what enters the neurons, in thresholds; NaN if unknown


@dataclass(frozen=True)
class Hint:
    """One hint.

    Example:
        >>> print(Hint("max_samples", "1,000 of 60,000 samples were used", "pass a larger max_samples"))
        1,000 of 60,000 samples were used: pass a larger max_samples
    """

    name: str
    """"unscaled_inputs", "heterogeneous" or "max_samples"."""
    text: str
    """What was found."""
    fix: str
    """What to type."""

    def __str__(self) -> str:
        return f"{self.text}: {self.fix}"


def find_hints(
    options: Options, scale: InputScale | None, changing: Sequence[str] = (), samples: int = 0, available: int = 0
) -> tuple[Hint, ...]:
    """Return the hints that apply.

    ``changing`` are hidden layers whose inputs change over time, and whose neurons could each have a leak.  ``samples`` of the
    ``available`` ones in the loader were used.
    """
    hints = []
    if scale is not None and scale.inputs > LARGE_INPUT and not scale.current <= LARGE_CURRENT:
        size = f"root mean square {scale.inputs:.3g}"
        text = f"inputs of {scale.layer!r} are not scaled ({size}), so training may lose what was solved"
        hints.append(Hint("unscaled_inputs", text, _SCALE_FIX))
    if options.heterogeneous is None and changing:
        text = f"inputs of {', '.join(map(repr, changing))} change over time, and all units have one leak"
        hints.append(Hint("heterogeneous", text, _LEAK_FIX))
    if 0 < samples < available:
        hints.append(Hint("max_samples", f"{samples:,} of {available:,} samples were used", _MORE_FIX))
    return tuple(hints)


def measure_scale(net: nn.Module, batch: StoredBatch, task: Task, options: Options) -> InputScale | None:
    """Run a private net on a few samples, and measure what enters its first hidden layer; None without one."""
    if not task.net_map.hidden:
        return None
    layer, inputs, currents = task.net_map.hidden[0], list[float](), list[float]()

    def keep(squares: list[float]) -> Callable[[Tensor], None]:
        return lambda value: squares.append(float(value.double().square().mean()))

    few, _ = first_samples(batch.inputs, batch.size, run=lambda some: run_forward(net, some, options.call))
    taps = {layer.neuron: keep(currents), layer.synapse: keep(inputs)}  # in this order, since the two may be one module
    record(net, replace(batch, inputs=few), options.call, Taps(inputs=taps))
    limits = layer.library.threshold(layer.neuron)
    unknown = limits is None or limits[1] <= 0 or layer.synapse is layer.neuron  # what enters a neuron with weights is no current
    return InputScale(layer.name, _root(inputs), math.nan if unknown or limits is None else _root(currents) / limits[1])


def _root(squares: Sequence[float]) -> float:
    return math.sqrt(fmean(squares)) if squares else math.nan
