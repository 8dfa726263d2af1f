"""Hidden weights: original ones, rescaled ones, or candidates (witnesses) that the convex program selects."""

from .decisions import LayerDecision, LayerGain, LayerWitnesses
from .hidden_task import HiddenTask, make_averaging_readout, make_temporary_readout
from .rebuild import reconstruct_layers
from .rescale import choose_gains, scale_parameters
from .samplers import SAMPLERS, Sampler, WitnessOptions, get_sampler
from .site import Candidates, LayerSite

__all__ = [
    "SAMPLERS",
    "Candidates",
    "HiddenTask",
    "LayerDecision",
    "LayerGain",
    "LayerSite",
    "LayerWitnesses",
    "Sampler",
    "WitnessOptions",
    "choose_gains",
    "get_sampler",
    "make_averaging_readout",
    "make_temporary_readout",
    "reconstruct_layers",
    "scale_parameters",
]
