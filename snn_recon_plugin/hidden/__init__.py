"""Hidden weights: original ones, rescaled ones, or candidates (witnesses) that the convex program selects."""

from .decisions import LayerDecision, LayerGain, LayerWitnesses
from .hidden_task import HiddenTask, change_layers, make_averaging_readout, make_temporary_readout
from .leaks import refuse_without_leaks
from .norms import add_norms, list_fresh_norms, measure_statistics
from .rebuild import rebuild_layer
from .rescale import choose_gain, scale_parameters
from .samplers import SAMPLERS, Sampler, WitnessOptions, get_sampler
from .site import CONVOLUTIONS, Candidates, LayerSite

__all__ = [
    "CONVOLUTIONS",
    "SAMPLERS",
    "Candidates",
    "HiddenTask",
    "LayerDecision",
    "LayerGain",
    "LayerSite",
    "LayerWitnesses",
    "Sampler",
    "WitnessOptions",
    "add_norms",
    "change_layers",
    "choose_gain",
    "get_sampler",
    "list_fresh_norms",
    "make_averaging_readout",
    "make_temporary_readout",
    "measure_statistics",
    "rebuild_layer",
    "refuse_without_leaks",
    "scale_parameters",
]
