"""The structure of a network, as an inspection finds it, and a store of it for later inspections."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..calls.batches import first_samples, tensors_in
from ..readout.readout import Readout
from .layers import NetworkMap


@dataclass(frozen=True)
class Structure:
    """Layers and readout of a network.

    It holds no inputs: a store of structures would keep a batch in memory for as long as training takes.
    """

    net_map: NetworkMap
    readout: Readout
    whole: bool  # found on a whole batch, since the network takes no fewer samples, or since their axis is unclear

    @property
    def lasts(self) -> bool:
        """False if training changes what was measured, the scale of a norm behind the readout."""
        return self.readout.scale is None


class Inspections:
    """Structures of a network and its copies, by the shapes of a few samples: finding one takes several passes.

    Args:
        origin: the network.
    """

    def __init__(self, origin: nn.Module) -> None:
        self._origin = origin
        self._found: dict[Any, Structure] = {}

    def find(self, net: nn.Module, inputs: Any, samples: int, inspect: Callable[[], Structure]) -> Structure:
        """Return the structure of a copy for a batch of so many samples; inspect it if no batch of these shapes came before."""
        few, _ = first_samples(inputs, samples)
        shapes = tuple(value.shape for value in tensors_in(few)) or getattr(inputs, "shape", ())  # of an array
        if shapes in self._found:
            return _moved(self._found[shapes], self._origin, net)
        structure = inspect()
        if structure.lasts:
            self._found[shapes] = _moved(structure, net, self._origin)  # of the origin, since copies are dropped
        return structure


def _moved(structure: Structure, old: nn.Module, new: nn.Module) -> Structure:
    """Return a structure with the modules of another copy of the network."""
    if old is new:
        return structure
    return copy.deepcopy(structure, {id(one): other for one, other in zip(old.modules(), new.modules(), strict=True)})
