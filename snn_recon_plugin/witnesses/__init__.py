"""Hidden weights: the layers' own, rescaled, or candidates (witnesses) that the convex program selects."""

from .looks import looks_of
from .patterns import PatternWeights, weights_from_patterns
from .recipe import LayerWitnesses, Recipe
from .reconstruct import reconstruct_layers
from .rescale import LayerGain, choose_gains
from .samplers import SAMPLERS, Sampler, sampler_of
from .site import Candidates, Site
from .trials import scaled_values

__all__ = [
    "SAMPLERS",
    "Candidates",
    "LayerGain",
    "LayerWitnesses",
    "PatternWeights",
    "Recipe",
    "Sampler",
    "Site",
    "choose_gains",
    "looks_of",
    "reconstruct_layers",
    "sampler_of",
    "scaled_values",
    "weights_from_patterns",
]
