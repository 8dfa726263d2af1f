"""Hidden weights: original ones, rescaled ones, or candidates (witnesses) that the convex program selects."""

from .convolutions import COMPARED_IMAGES, compare_drives, drive_layer
from .decisions import LayerDecision, LayerGain, LayerWitnesses
from .hidden_task import HiddenTask, change_layers, make_averaging_readout, make_temporary_readout, take_first_batches
from .leaks import refuse_without_leaks
from .norms import list_fresh_norms, measure_statistics
from .rebuild import rebuild_layer
from .rescale import choose_gain, scale_parameters
from .samplers import SAMPLERS, Sampler, WitnessOptions, get_sampler
from .site import Candidates, LayerSite

__all__ = [
    "COMPARED_IMAGES",
    "SAMPLERS",
    "Candidates",
    "HiddenTask",
    "LayerDecision",
    "LayerGain",
    "LayerSite",
    "LayerWitnesses",
    "Sampler",
    "WitnessOptions",
    "change_layers",
    "choose_gain",
    "compare_drives",
    "drive_layer",
    "get_sampler",
    "list_fresh_norms",
    "make_averaging_readout",
    "make_temporary_readout",
    "measure_statistics",
    "rebuild_layer",
    "refuse_without_leaks",
    "scale_parameters",
    "take_first_batches",
]
