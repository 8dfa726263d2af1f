"""Hidden weights: a layer's own, rescaled, or candidates (witnesses) that the convex program selects."""

from .hidden_task import HiddenTask, LayerDecision, LayerGain, LayerWitnesses, ParameterValues, WitnessOptions
from .patterns import PatternWeights, weights_from_patterns
from .rebuild import reconstruct_layers
from .rescale import choose_gains
from .samplers import SAMPLERS, Sampler, get_sampler
from .scaled_layer import scale_parameters
from .site import Candidates, LayerSite
from .temporary_readout import make_temporary_readout

__all__ = [
    "SAMPLERS",
    "Candidates",
    "HiddenTask",
    "LayerDecision",
    "LayerGain",
    "LayerSite",
    "LayerWitnesses",
    "ParameterValues",
    "PatternWeights",
    "Sampler",
    "WitnessOptions",
    "choose_gains",
    "get_sampler",
    "make_temporary_readout",
    "reconstruct_layers",
    "scale_parameters",
    "weights_from_patterns",
]
