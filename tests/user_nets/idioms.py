"""Every idiom of snnTorch, Norse and SpikingJelly as a classifier of 8 x 8 digits, with every readout that its users decide by.

A new idiom is one entry of ``IDIOMS``: the studies, the golden record, the docs' table and the tests all read it.
"""

from __future__ import annotations

from functools import partial

import snntorch as snn
from torch import nn

from ..versions import OLD_JELLY
from . import norse_nets, spikingjelly_nets
from .data import largest, last, mean, total
from .record import DIGITS, Reading, Sizes, UserNet
from .snntorch_nets import (
    BETA,
    AllSteps,
    ExplicitConv,
    InLightning,
    Nested,
    explicit_loop,
    sequential,
    sequential_conv,
    state_leaky,
)

# -- readings -----------------------------------------------------------------------------------------------------------
NONE_MEAN = Reading("membrane mean, reset none", "none", "membrane_mean", 1, mean)
NONE_LAST = Reading("last membrane, reset none", "none", "membrane_last", 1, last)
NONE = (
    NONE_MEAN,
    Reading("membrane sum, reset none", "none", "membrane_sum", 1, total),
    NONE_LAST,
    Reading("membrane maximum, reset none", "none", "membrane_max", 1, largest, NONE_LAST),
)
SUBTRACT = (
    Reading("spike count, reset subtract", "subtract", "spike_count", 0, total, NONE_MEAN),
    Reading("spike rate, reset subtract", "subtract", "spike_rate", 0, mean, NONE_MEAN),
    Reading("membrane mean, reset subtract", "subtract", "membrane_mean", 1, mean, NONE_MEAN),
)
ZERO = (Reading("spike count, reset zero", "zero", "spike_count", 0, total, NONE_MEAN),)
NO_RESET = Reading("membrane mean, no reset", "none", "membrane_mean", 1, mean)
SEQUENCES = (NO_RESET, Reading("spike count, no reset", "none", "spike_count", 0, total, NO_RESET))
CURRENTS = (Reading("mean current, no output neuron", "none", "linear_mean", None, mean),)
LI_MEAN = Reading("LI membrane, mean", "LI", "membrane_mean", 0, mean)
LI_LAST = Reading("LI membrane, last", "LI", "membrane_last", 0, last)
LI = (
    LI_MEAN,
    Reading("LI membrane, sum", "LI", "membrane_sum", 0, total),
    LI_LAST,
    Reading("LI membrane, maximum", "LI", "membrane_max", 0, largest, LI_LAST),
)
LIF = (Reading("LIF spike count", "LIF", "spike_count", 0, total, LI_MEAN),)
LEAKY = (NONE_MEAN, *SUBTRACT)
BOTH = (LI[0], LI[2], LI[3], *LIF)
DECODED_MEAN = Reading("integrator, mean-mem", "mean-mem", "membrane_mean", None, lambda scores: scores)
DECODED_LAST = Reading("integrator, last_mem", "last_mem", "membrane_last", None, lambda scores: scores)
RATE = Reading("firing rate", "LIF", "spike_rate", None, mean, DECODED_MEAN)
DECODED_MAX = Reading("integrator, max-mem", "max-mem", "membrane_max", None, lambda scores: scores, DECODED_LAST)
DECODED = (RATE, DECODED_MEAN, DECODED_LAST, DECODED_MAX)


# -- nets of snnTorch whose output neuron has no reset mechanism to be told -------------------------------------------------
def states(_: str, sizes: Sizes = DIGITS) -> nn.Module:
    """Tutorial 8: StateLeaky never resets."""
    first, second = state_leaky(sizes.inputs, sizes.hidden), state_leaky(sizes.hidden, sizes.classes)
    return AllSteps(fc1=first[0], lif1=first[1], fc2=second[0], lif2=second[1])


def linears(_: str, sizes: Sizes = DIGITS) -> nn.Module:
    """LinearLeaky: synapse and neuron in one module."""
    sequence = (sizes.inputs, sizes.hidden), (sizes.hidden, sizes.classes)
    return AllSteps(**{f"lif{number}": snn.LinearLeaky(BETA, *pair) for number, pair in enumerate(sequence, start=1)})


def parallel(_: str, sizes: Sizes = DIGITS) -> nn.Module:
    """LeakyParallel: an nn.RNN that gives spikes alone; the readout's currents are the scores."""
    return AllSteps(lif1=snn.LeakyParallel(sizes.inputs, sizes.hidden, beta=BETA), fc=nn.Linear(sizes.hidden, sizes.classes))


def recurrent(reset: str, sizes: Sizes = DIGITS) -> nn.Module:
    """RLeaky: the layer's own spikes come back through a Linear inside it."""
    return explicit_loop(reset, sizes, lambda sizes: snn.RLeaky(beta=BETA, linear_features=sizes.hidden))


def in_lightning(output: str, sizes: Sizes = DIGITS) -> nn.Module:
    return InLightning(explicit_loop(output, sizes))


# -- the catalogue --------------------------------------------------------------------------------------------------------
OVER = "forward=over_time(25)"  # without it the net runs over time by itself
IMAGES = (1, 8, 8)
WRITTEN = "Its recurrent weights are written too if a built layer does better."


def idiom(name, build, readings, readout, about, options=OVER, **more):
    return UserNet(name, build, options=options, readings=readings, readout=readout, about=about, **more)


conv = partial(idiom, shape=IMAGES, hidden=2)
SPIKINGJELLY = (
    idiom(
        "SpikingJelly, step mode s",
        spikingjelly_nets.single_step,
        (RATE,),
        "2",
        "`over_time` resets neurons and helpers as `functional.reset_net` does, and steps the net.",
    ),
    idiom("SpikingJelly, step mode m", spikingjelly_nets.multi_step, DECODED, "2", "All steps go in at once."),
    conv("SpikingJelly, convolutions", spikingjelly_nets.convolutions, (DECODED_MAX, RATE), "9", "Batch norm lies between."),
    idiom(
        "SpikingJelly, LinearRecurrentContainer",
        spikingjelly_nets.recurrent_container,
        (RATE, DECODED_MEAN),
        "2",
        "Its Linear is rebuilt, or keeps its weights up to a gain.",
    ),
)
IDIOMS = (
    idiom("snnTorch, loop in forward", explicit_loop, (*NONE, *SUBTRACT, *ZERO), "fc2", "The net runs over time by itself.", ""),
    idiom(
        "snnTorch, Sequential",
        sequential,
        LEAKY,
        "2",
        "Neurons with `init_hidden=True` keep their membranes; the loop is outside, so that the call names it.",
    ),
    conv(
        "snnTorch, convolutions in a Sequential", sequential_conv, LEAKY, "6", "Images go in as the net takes them, `[B, 1, 8, 8]`."
    ),
    conv(
        "snnTorch, convolutions, loop in forward",
        ExplicitConv,
        LEAKY,
        "fc",
        "Pooling, `view` and `flatten` between layers are no obstacle.",
        "",
    ),
    idiom(
        "snnTorch, nested",
        Nested,
        LEAKY,
        "body.2",
        "`over_time` resets every neuron of the net, also those that `snntorch.utils.reset` does not reach.",
    ),
    idiom("snnTorch, StateLeaky", states, SEQUENCES, "fc2", "`over_time` hands nets of multi-step layers all steps in one call."),
    idiom("snnTorch, LinearLeaky", linears, SEQUENCES, "lif2.linear", "The Linear inside the last one is read out."),
    idiom(
        "snnTorch, LeakyParallel",
        parallel,
        CURRENTS,
        "fc",
        "It gives spikes alone and can't be read out itself; an `nn.Linear` after it can.",
    ),
    idiom("snnTorch, RLeaky", recurrent, LEAKY, "fc2", WRITTEN, ""),
    idiom(
        "Norse, cells",
        norse_nets.dense_cells,
        (*LI, *LIF),
        "2",
        "`over_time` carries the state of a `SequentialState` from step to step.",
    ),
    idiom("Norse, multi-step layers", norse_nets.multi_step, (*LI, *LIF), "2", "All steps go in at once."),
    conv("Norse, lifted convolutions", norse_nets.lifted_conv, BOTH, "6", "`Lift` is looked through."),
    idiom("Norse, lifted Linears", norse_nets.lifted_linear, BOTH, "2.lifted_module", "So it is here."),
    idiom(
        "Norse, lifted net",
        norse_nets.LiftedNet,
        BOTH,
        "body.lifted_module.2",
        "The net expands its input over time by itself.",
        "",
    ),
    conv("Norse, convolutional cells", norse_nets.conv_cells, BOTH, "6", "As with other cells."),
    idiom(
        "Norse, LILinearCell", norse_nets.LinearCell, (LI[0], LI[2], LI[3]), "out", "The cell's `input_weights` are read out.", ""
    ),
    idiom("Norse, LIFRecurrent", norse_nets.recurrent_layer, BOTH, "1", WRITTEN),
    idiom("Norse, LSNNRecurrent", norse_nets.adaptive_layer, BOTH, "1", WRITTEN),
    idiom("Norse, recurrent cells", norse_nets.recurrent_cells, BOTH, "2", "As with other cells.", hidden=2),
    idiom(
        "Lightning, a net inside a module",
        in_lightning,
        LEAKY,
        "net.fc2",
        "A LightningModule is an `nn.Module` like any other.",
        "",
    ),
    *(() if OLD_JELLY else SPIKINGJELLY),  # it has no integrators
)
