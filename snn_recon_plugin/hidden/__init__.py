"""Hidden weights: original ones, rescaled ones, or candidates (witnesses) that the convex program selects."""

from .decisions import LayerDecision, LayerGain, LayerWitnesses
from .hidden_task import HiddenTask, change_layers, make_averaging_readout, make_temporary_readout, take_first_batches
from .leaks import refuse_without_leaks
from .norms import add_norms, list_fresh_norms, measure_statistics
from .plan import Plan, plan_layers
from .rebuild import rebuild_layer
from .rescale import choose_gain, scale_parameters, set_rate
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
    "Plan",
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
    "plan_layers",
    "rebuild_layer",
    "refuse_without_leaks",
    "scale_parameters",
    "set_rate",
    "take_first_batches",
]
