"""The structure of a network, as an inspection finds it, and a store of it for later inspections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .batches import cut, tensors_in
from .layers import NetworkMap
from .readout import Readout


@dataclass(frozen=True)
class Structure:
    """Layers and readout of a network.

    It holds no inputs: a store of structures would keep a batch in memory for as long as training takes.
    """

    net_map: NetworkMap
    readout: Readout
    whole: bool  # found on a whole batch, since the network takes no fewer samples, or since their axis is unclear


class Inspections:
    """Structures of one network, by the shapes of a few samples: finding one takes several passes."""

    def __init__(self) -> None:
        self._found: dict[Any, Structure] = {}

    def find(self, inputs: Any, samples: int, inspect: Callable[[], Structure]) -> Structure:
        """Return the structure for a batch of so many samples; inspect the network if no batch of these shapes came before."""
        shapes = tuple(value.shape for value in tensors_in(cut(inputs, samples)[0])) or getattr(inputs, "shape", ())  # of an array
        if shapes not in self._found:
            self._found[shapes] = inspect()
        return self._found[shapes]
