"""Decisions on hidden layers, as the report shows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True)
class LayerGain:
    """Outcome for a hidden layer that keeps its weights up to a gain, or gets a whole-layer draw."""

    name: str  # of the synapse
    gain: float = 1.0  # factor of its weight and bias, or of those of the norm before its neuron
    offset: float = 0.0  # what its bias adds to the currents beside that, on average over units
    heldout_loss: dict[float, float] = field(default_factory=dict)  # of the temporary readout at each gain tried
    reason: str = ""  # why the layer's weights were kept, if they were, or the comparison with a draw
    draw: int = 0  # number of the whole-layer draw that replaced them, from 1; 0 for none
    offers_leaks: bool = False  # inputs change over time, and heterogeneous=True would let the leaks differ


@dataclass(frozen=True)
class LayerWitnesses:
    """Outcome for a hidden layer that was rebuilt.

    Args:
        name: the synapse's name.
        width: rows of the layer.
        selected: number of replaced rows: all, or the number of distinct candidates if that is smaller.
        simulated: number of candidates simulated.
        used: number of candidates that the group lasso gave a weight.
        objective: of the group lasso, at ``strength``.
        strength: factor of its penalty.
        dropped: numbers of dead, always-on and double candidates.
        leaks: leaks of the selected rows and how many have each; empty if they share the layer's own.
        note: remark on the leaks, for the report.
        kinds: number of rows of each kind; those of a recurrent layer lie in this order.
        reason: comparison with the layer's own weights and other constructions; empty if there was none.
        offers_leaks: True if inputs change over time, and heterogeneous=True would let the leaks differ.
    """

    name: str
    width: int
    selected: int
    simulated: int
    used: int
    objective: float
    strength: float
    dropped: dict[str, int] = field(default_factory=dict)
    leaks: dict[float, int] = field(default_factory=dict)
    note: str = ""
    kinds: dict[str, int] = field(default_factory=dict)
    reason: str = ""
    offers_leaks: bool = False


LayerDecision: TypeAlias = LayerWitnesses | LayerGain
