"""Every idiom of snnTorch and Norse as a classifier of 8 x 8 digits, and the readouts that its users decide by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import idioms_norse as norse_nets
import idioms_snntorch as snn_nets
import torch
from torch import Tensor, nn

from snn_recon_plugin import over_time
from snn_recon_plugin.networks import Forward, plain_forward

OVER = over_time(25)
IMAGES = (1, 8, 8)


@dataclass(frozen=True)
class Reading:
    """How a user decides.

    Args:
        title: for the table.
        output: what the net's builder is told: the reset mechanism in snnTorch, the class in Norse.
        kind: the readout's name as an option.
        item: which part of the net's output it is decoded from; None for all of it.
        decode: the user's decoder, from ``[T, B, C]`` to ``[B, C]``.
        linear: the reading whose score the program solves for in this one's place; None where it is this one.
    """

    title: str
    output: str
    kind: str
    item: int | None
    decode: Callable[[Tensor], Tensor]
    linear: Reading | None = None


@dataclass(frozen=True)
class Idiom:
    """One way to put a net together.

    Args:
        title: for the table.
        build: makes the net, told the output neuron.
        readings: the ways to decide by it.
        call: the call as a user types it, for the docs.
        about: what is special about it, for the docs.
        forward: how the net is called.
        shape: of one input.
    """

    title: str
    build: Callable[[str], nn.Module]
    readings: tuple[Reading, ...]
    call: str
    about: str
    forward: Forward = plain_forward
    shape: tuple[int, ...] = (64,)

    def scores(self, net: nn.Module, reading: Reading, inputs: Tensor) -> Tensor:
        """The net's own scores, decoded as its user does."""
        with torch.no_grad():
            output: Any = self.forward(net, inputs)
        if isinstance(output, tuple) and reading.item is not None:
            output = output[reading.item]
        return reading.decode(output)

    def linear_scores(self, net: nn.Module, reading: Reading, inputs: Tensor) -> Tensor:
        """What a net with the same parameters and an output neuron that never resets gives: the score of the program."""
        if reading.linear is None:
            return self.scores(net, reading, inputs)
        twin = self.build(reading.linear.output)
        twin.load_state_dict({**twin.state_dict(), **dict(net.named_parameters())})
        return self.scores(twin, reading.linear, inputs)


def mean(values: Tensor) -> Tensor:
    return values.mean(0)


def total(values: Tensor) -> Tensor:
    return values.sum(0)


def last(values: Tensor) -> Tensor:
    return values[-1]


def largest(values: Tensor) -> Tensor:
    return values.amax(0)


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

PLAIN, OUTSIDE = "convex_init_(net, loader)", "convex_init_(net, loader, forward=over_time(25))"


def _lightning(output: str) -> nn.Module:
    return norse_nets.InLightning(snn_nets.ExplicitLoop(output))


IDIOMS = (
    Idiom(
        "snnTorch, loop in forward", snn_nets.ExplicitLoop, (*NONE, *SUBTRACT, *ZERO), PLAIN, "The net runs over time by itself."
    ),
    Idiom(
        "snnTorch, Sequential",
        snn_nets.sequential,
        LEAKY,
        OUTSIDE,
        "Neurons with `init_hidden=True` keep their membranes; the loop is outside, so that the call names it.",
        OVER,
    ),
    Idiom(
        "snnTorch, convolutions in a Sequential",
        snn_nets.sequential_conv,
        LEAKY,
        OUTSIDE,
        "Images go in as the net takes them, `[B, 1, 8, 8]`.",
        OVER,
        IMAGES,
    ),
    Idiom(
        "snnTorch, convolutions, loop in forward",
        snn_nets.ExplicitConv,
        LEAKY,
        PLAIN,
        "Pooling, `view` and `flatten` between layers are no obstacle.",
        shape=IMAGES,
    ),
    Idiom(
        "snnTorch, nested",
        snn_nets.Nested,
        LEAKY,
        OUTSIDE,
        "`over_time` resets every neuron of the net, also those that `snntorch.utils.reset` does not reach.",
        OVER,
    ),
    Idiom(
        "snnTorch, StateLeaky",
        snn_nets.States,
        SEQUENCES,
        OUTSIDE,
        "`over_time` hands nets of multi-step layers all steps in one call.",
        OVER,
    ),
    Idiom("snnTorch, LinearLeaky", snn_nets.Linears, SEQUENCES, OUTSIDE, "The Linear inside the last one is read out.", OVER),
    Idiom(
        "snnTorch, LeakyParallel",
        snn_nets.Parallel,
        CURRENTS,
        OUTSIDE,
        "It gives spikes alone and can't be read out itself; an `nn.Linear` after it can.",
        OVER,
    ),
    Idiom("snnTorch, RLeaky", snn_nets.Recurrent, LEAKY, PLAIN, "Its recurrent Linear stays as it is."),
    Idiom(
        "Norse, cells",
        norse_nets.cells,
        (*LI, *LIF),
        OUTSIDE,
        "`over_time` carries the state of a `SequentialState` from step to step.",
        OVER,
    ),
    Idiom("Norse, multi-step layers", norse_nets.multi_step, (*LI, *LIF), OUTSIDE, "All steps go in at once.", OVER),
    Idiom("Norse, lifted convolutions", norse_nets.lifted_conv, BOTH, OUTSIDE, "`Lift` is looked through.", OVER, IMAGES),
    Idiom("Norse, lifted Linears", norse_nets.lifted_linear, BOTH, OUTSIDE, "So it is here.", OVER),
    Idiom("Norse, lifted net", norse_nets.LiftedNet, BOTH, PLAIN, "The net expands its input over time by itself."),
    Idiom("Norse, convolutional cells", norse_nets.conv_cells, BOTH, OUTSIDE, "As with other cells.", OVER, IMAGES),
    Idiom("Norse, LILinearCell", norse_nets.LinearCell, (LI[0], LI[2], LI[3]), PLAIN, "The cell's `input_weights` are read out."),
    Idiom("Norse, LIFRecurrent", norse_nets.recurrent, BOTH, OUTSIDE, "Only its input weights are scaled.", OVER),
    Idiom("Norse, LSNNRecurrent", norse_nets.adaptive, BOTH, OUTSIDE, "Only its input weights are scaled.", OVER),
    Idiom("Norse, recurrent cells", norse_nets.recurrent_cells, BOTH, OUTSIDE, "As with other cells.", OVER),
    Idiom("Lightning, a net inside a module", _lightning, LEAKY, PLAIN, "A LightningModule is an `nn.Module` like any other."),
)
