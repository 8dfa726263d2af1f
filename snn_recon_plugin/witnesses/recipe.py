"""How hidden layers are to be rebuilt, and what was done to one."""

from __future__ import annotations

from dataclasses import dataclass, field

from .samplers import Sampler, mixed, sampler_of
from .site import Site

__all__ = ["LayerWitnesses", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """How hidden layers are rebuilt.

    Args:
        witnesses: a sampler's name or the sampler itself.  "pairs" means pairs for the first layer; above it, where spikes come
            in, a mixture of relays and pairs, see ``mixed``.
        n_candidates: how many are simulated for a layer: a float is a multiple of its width, an int their number.
        rounds: of column generation; 1 draws all candidates at once.
        seed: of the draws.
        unit_parameters: whether candidates take the parameters of a unit along, where units have some of their own.
    """

    witnesses: str | Sampler = "pairs"
    n_candidates: float | int = 3.0
    rounds: int = 1
    seed: int = 0
    unit_parameters: bool = False

    def count(self, width: int) -> int:
        """How many candidates a layer of ``width`` gets."""
        wanted = round(self.n_candidates * width) if isinstance(self.n_candidates, float) else self.n_candidates
        return max(wanted, width)

    def sampler(self, site: Site) -> Sampler:
        """The sampler of a layer."""
        return mixed if self.witnesses == "pairs" and site.fed_by_spikes else sampler_of(self.witnesses)


@dataclass(frozen=True)
class LayerWitnesses:
    """What was done to one hidden layer.

    Args:
        name: the synapse's name.
        width: rows of the layer.
        selected: how many of them were replaced: all, unless there are fewer different candidates; the last ones then stay.
        simulated: candidates that were simulated.
        used: how many of them the group lasso gave a weight.
        violating: of fresh candidates drawn after the last solve, how many would improve the temporary readout on all
            candidates: what is known of the hidden layer goes as far as this, and no further.  0 of 0 where all were drawn at once.
        priced: how many those were.
        dropped: how many were dead, always on, or doubles of others.
        objective: of the group lasso that selected, at ``strength``.
        strength: of it.
    """

    name: str
    width: int
    selected: int
    simulated: int
    used: int
    violating: int
    priced: int
    objective: float
    strength: float
    dropped: dict[str, int] = field(default_factory=dict)
