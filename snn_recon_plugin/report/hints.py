"""Hints: options and changes of the data that the caller has not tried, and that often help on nets and data like these.

To add one: an entry of ``HINTS``, and what it reads in ``Facts``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor, nn

from ..hidden.hidden_task import LayerDecision
from ..networks.calls.batches import first_samples
from ..networks.calls.record import StoredBatch, Taps, record
from ..networks.structure.layers import HiddenLayer
from ..options import Options
from ..stages.task import Task

# Pixels in 0 to 1 and standardised features have at most 1, all nets of the tests 0.6.  An epoch of training from digits in 0 to 16
# (8) loses two points of a start, in 0 to 255 (123) most of it (docs/evidence/training.md).
LARGE_INPUT = 5.0  # root mean square
# Fresh weights turn inputs of 5 into 3 thresholds.  Trained weights, or a normalisation behind the layer, leave about 1.
LARGE_CURRENT = 2.5  # root mean square, in thresholds


@dataclass(frozen=True)
class InputScale:
    """Size of what enters the first hidden layer of the network as it was, on a few samples."""

    layer: str
    inputs: float  # root mean square of the inputs
    current: float  # root mean square of what enters the neurons, in thresholds; NaN if unknown


@dataclass(frozen=True)
class Facts:
    """All that the hints read."""

    options: Options
    scale: InputScale | None = None
    changing: Sequence[str] = ()  # hidden layers whose inputs change over time, and whose neurons could each have a leak
    samples: int = 0  # fitted and held out
    available: int = 0  # in the loader


@dataclass(frozen=True)
class Hint:
    """One hint.

    Args:
        name: "unscaled_inputs", "heterogeneous" or "max_samples".
        text: what was found.
        fix: what to type.

    Example:
        >>> print(Hint("max_samples", "1,000 of 60,000 samples were used", "pass a larger max_samples"))
        1,000 of 60,000 samples were used: pass a larger max_samples
    """

    name: str
    text: str
    fix: str

    def __str__(self) -> str:
        """Return the hint and what to type."""
        return f"{self.text}: {self.fix}"


@dataclass(frozen=True)
class _Rule:
    """A hint, and when it applies."""

    name: str
    applies: Callable[[Facts], bool]
    text: Callable[[Facts], str]
    fix: str


def _is_unscaled(scale: InputScale | None) -> bool:
    return scale is not None and scale.inputs > LARGE_INPUT and not scale.current <= LARGE_CURRENT


def _describe_scale(scale: InputScale | None) -> str:
    assert scale is not None
    return f"inputs of {scale.layer!r} are not scaled (root mean square {scale.inputs:.3g}), so training may lose what was solved"


HINTS = (
    _Rule(
        "unscaled_inputs",
        lambda facts: _is_unscaled(facts.scale),
        lambda facts: _describe_scale(facts.scale),
        "divide pixels by 255, or standardise features, (x - mean) / std, in the loader and in your own test",
    ),
    _Rule(
        "heterogeneous",
        lambda facts: facts.options.heterogeneous is None and bool(facts.changing),
        lambda facts: f"inputs of {', '.join(map(repr, facts.changing))} change over time, and all units have one leak",
        "heterogeneous=True gives each a leak and is often more accurate; beta becomes a vector",
    ),
    _Rule(
        "max_samples",
        lambda facts: 0 < facts.samples < facts.available,
        lambda facts: f"{facts.samples:,} of {facts.available:,} samples were used",
        "a larger max_samples is usually more accurate",
    ),
)


def find_hints(facts: Facts) -> tuple[Hint, ...]:
    """Return the hints that apply."""
    return tuple(Hint(rule.name, rule.text(facts), rule.fix) for rule in HINTS if rule.applies(facts))


def find_changing(decisions: Sequence[LayerDecision]) -> list[str]:
    """Return the hidden layers whose inputs change over time, and in which ``heterogeneous=True`` would change the leaks."""
    return [decision.name for decision in decisions if decision.offers_leaks]


def measure_scale(net: nn.Module, batch: StoredBatch, task: Task, options: Options) -> InputScale | None:
    """Run a private net on a few samples, and measure what enters its first hidden layer; None without one."""
    if not task.net_map.hidden:
        return None
    layer, inputs, currents = task.net_map.hidden[0], list[float](), list[float]()

    def keep(squares: list[float]) -> Callable[[Tensor], None]:
        return lambda value: squares.append(float(value.double().square().mean()))

    few, _ = first_samples(batch.inputs, batch.size, run=lambda some: options.call(net, some))
    taps = {layer.neuron: keep(currents), layer.synapse: keep(inputs)}  # in this order, since the two may be one module
    record(net, StoredBatch(few, batch.rows, batch.number), options.call, Taps(inputs=taps))
    return InputScale(layer.name, _root(inputs), _root(currents) / _threshold(layer))


def _threshold(layer: HiddenLayer) -> float:
    """Return the highest threshold of a layer's neurons; NaN if it is unknown, or if the neuron holds the weights itself."""
    limits = layer.library.threshold(layer.neuron)
    return math.nan if limits is None or limits[1] <= 0 or layer.synapse is layer.neuron else limits[1]


def _root(squares: Sequence[float]) -> float:
    """Return the root of the mean of each call's mean square; NaN without a call."""
    return math.sqrt(fmean(squares)) if squares else math.nan
