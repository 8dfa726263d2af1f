"""The structure of a network, as an inspection finds it, and a store of it for later inspections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .batches import cut, tensors_in
from .layers import NetworkMap
from .readout import Readout


@dataclass(frozen=True)
class Structure:
    """Layers and readout of a network, and the few samples on which they were found."""

    net_map: NetworkMap
    readout: Readout
    inputs: Any


class Inspections:
    """Structures of one network, by the shapes of a few samples: finding one takes several passes."""

    def __init__(self) -> None:
        self._found: dict[tuple[torch.Size, ...], Structure] = {}

    def find(self, inputs: Any, samples: int, inspect: Callable[[], Structure]) -> Structure:
        """Return the structure for a batch of so many samples; inspect the network if no batch of these shapes came before."""
        shapes = tuple(value.shape for value in tensors_in(cut(inputs, samples)[0]))
        if shapes not in self._found:
            self._found[shapes] = inspect()
        return self._found[shapes]
