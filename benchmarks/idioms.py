"""Every idiom of snnTorch and Norse as a classifier of 8 x 8 digits.

A new idiom is one entry of ``IDIOMS``: the studies, the golden record, the docs' table and the tests all read it.
"""

from __future__ import annotations

import idioms_norse as norse_nets
import idioms_snntorch as snn_nets
from torch import nn

from benchmarks.idioms_common import (
    BOTH,
    CURRENTS,
    DIGITS,
    IMAGES,
    LEAKY,
    LI,
    LIF,
    NONE,
    OVER,
    SEQUENCES,
    SUBTRACT,
    ZERO,
    Idiom,
    Sizes,
)

PLAIN, OUTSIDE = "convex_init_(net, loader)", "convex_init_(net, loader, forward=over_time(25))"
RECURRENT = "Its recurrent weights are written too if a built or random layer does better."


def _lightning(output: str, sizes: Sizes = DIGITS) -> nn.Module:
    return norse_nets.InLightning(snn_nets.ExplicitLoop(output, sizes))


IDIOMS = (
    Idiom(
        "snnTorch, loop in forward",
        snn_nets.ExplicitLoop,
        (*NONE, *SUBTRACT, *ZERO),
        PLAIN,
        "The net runs over time by itself.",
        readout="fc2",
    ),
    Idiom(
        "snnTorch, Sequential",
        snn_nets.sequential,
        LEAKY,
        OUTSIDE,
        "Neurons with `init_hidden=True` keep their membranes; the loop is outside, so that the call names it.",
        OVER,
        readout="2",
    ),
    Idiom(
        "snnTorch, convolutions in a Sequential",
        snn_nets.sequential_conv,
        LEAKY,
        OUTSIDE,
        "Images go in as the net takes them, `[B, 1, 8, 8]`.",
        OVER,
        IMAGES,
        readout="6",
        hidden=2,
    ),
    Idiom(
        "snnTorch, convolutions, loop in forward",
        snn_nets.ExplicitConv,
        LEAKY,
        PLAIN,
        "Pooling, `view` and `flatten` between layers are no obstacle.",
        shape=IMAGES,
        readout="fc",
        hidden=2,
    ),
    Idiom(
        "snnTorch, nested",
        snn_nets.Nested,
        LEAKY,
        OUTSIDE,
        "`over_time` resets every neuron of the net, also those that `snntorch.utils.reset` does not reach.",
        OVER,
        readout="body.2",
    ),
    Idiom(
        "snnTorch, StateLeaky",
        snn_nets.States,
        SEQUENCES,
        OUTSIDE,
        "`over_time` hands nets of multi-step layers all steps in one call.",
        OVER,
        readout="fc2",
    ),
    Idiom(
        "snnTorch, LinearLeaky",
        snn_nets.Linears,
        SEQUENCES,
        OUTSIDE,
        "The Linear inside the last one is read out.",
        OVER,
        readout="lif2.linear",
    ),
    Idiom(
        "snnTorch, LeakyParallel",
        snn_nets.Parallel,
        CURRENTS,
        OUTSIDE,
        "It gives spikes alone and can't be read out itself; an `nn.Linear` after it can.",
        OVER,
        readout="fc",
    ),
    Idiom("snnTorch, RLeaky", snn_nets.Recurrent, LEAKY, PLAIN, RECURRENT, readout="fc2"),
    Idiom(
        "Norse, cells",
        norse_nets.cells,
        (*LI, *LIF),
        OUTSIDE,
        "`over_time` carries the state of a `SequentialState` from step to step.",
        OVER,
        readout="2",
    ),
    Idiom("Norse, multi-step layers", norse_nets.multi_step, (*LI, *LIF), OUTSIDE, "All steps go in at once.", OVER, readout="2"),
    Idiom(
        "Norse, lifted convolutions",
        norse_nets.lifted_conv,
        BOTH,
        OUTSIDE,
        "`Lift` is looked through.",
        OVER,
        IMAGES,
        readout="6",
        hidden=2,
    ),
    Idiom("Norse, lifted Linears", norse_nets.lifted_linear, BOTH, OUTSIDE, "So it is here.", OVER, readout="2.lifted_module"),
    Idiom(
        "Norse, lifted net",
        norse_nets.LiftedNet,
        BOTH,
        PLAIN,
        "The net expands its input over time by itself.",
        readout="body.lifted_module.2",
    ),
    Idiom(
        "Norse, convolutional cells",
        norse_nets.conv_cells,
        BOTH,
        OUTSIDE,
        "As with other cells.",
        OVER,
        IMAGES,
        readout="6",
        hidden=2,
    ),
    Idiom(
        "Norse, LILinearCell",
        norse_nets.LinearCell,
        (LI[0], LI[2], LI[3]),
        PLAIN,
        "The cell's `input_weights` are read out.",
        readout="out",
    ),
    Idiom("Norse, LIFRecurrent", norse_nets.recurrent, BOTH, OUTSIDE, RECURRENT, OVER, readout="1"),
    Idiom("Norse, LSNNRecurrent", norse_nets.adaptive, BOTH, OUTSIDE, RECURRENT, OVER, readout="1"),
    Idiom("Norse, recurrent cells", norse_nets.recurrent_cells, BOTH, OUTSIDE, "As with other cells.", OVER, readout="2", hidden=2),
    Idiom(
        "Lightning, a net inside a module",
        _lightning,
        LEAKY,
        PLAIN,
        "A LightningModule is an `nn.Module` like any other.",
        readout="net.fc2",
    ),
)
