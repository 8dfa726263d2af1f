"""What a user's function from the net's output to scores gives for other readout currents, without running the net.

The function may do anything with the output, but what it looks at are spikes and membranes of the output neuron over time.  Those
items of an output once seen are replaced by what the neuron does alone; whether the function looks at anything else is tried out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .decode import agree
from .output_probe import Probe
from .structures import map_tensors, refilled

__all__ = ["Imitation", "imitate"]


@dataclass(frozen=True)
class Imitation:
    """An output with places for spikes and membranes.

    Args:
        function: the user's, from the output to scores ``[B, C]``.
        output: an output of the net; all tensors in it but those to be replaced are NaN.
        places: the item, None for all of the output, and its time axis, of "spike" and of "value".
    """

    function: Callable[[Any], Tensor]
    output: Any
    places: Mapping[str, tuple[int | str | None, int]]

    def __call__(self, spikes: Tensor, membranes: Tensor) -> Tensor:
        """Scores ``[B, C]`` for spikes and membranes ``[T, B, C]``."""
        output = self.output
        for family, (index, time_dim) in self.places.items():
            value = (spikes if family == "spike" else membranes).movedim(0, time_dim)
            output = _replaced(output, index, value)
        return self.function(output)


def imitate(
    probe: Probe, function: Callable[[Any], Tensor], places: Mapping[str, tuple[int | str | None, int]]
) -> Imitation | None:
    """Build an imitation, and try it out on the probe.

    Args:
        probe: a pass under random readout currents.
        function: the user's.
        places: where spikes and membranes over time stand in the output.

    Returns:
        The imitation; None where the function looks at something else as well.
    """
    unknown = map_tensors(lambda value: torch.full_like(value, torch.nan) if value.is_floating_point() else value, probe.returned)
    imitation = Imitation(function, unknown, places)
    spikes = probe.values if probe.spikes is None else probe.spikes
    try:
        same = agree(imitation(spikes, probe.values), function(probe.returned))
    except Exception:  # whatever a user's function may raise for an output that was put together
        return None
    return imitation if places and same else None


def _replaced(output: Any, index: int | str | None, value: Tensor) -> Any:
    """An output with one item replaced, of the item's own type: a tensor, or a list or tuple of steps."""
    if index is None:
        return _like(output, value)
    if isinstance(output, MutableMapping):
        return refilled(output, {index: _like(output[index], value)})  # of its own class, whose attributes the function may use
    if isinstance(output, Mapping):
        return {**output, index: _like(output[index], value)}
    items = [_like(item, value) if number == index else item for number, item in enumerate(output)]
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)


def _like(item: Any, value: Tensor) -> Any:
    return value if isinstance(item, Tensor) else type(item)(value.unbind(0))
