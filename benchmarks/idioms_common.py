"""The form of an idiom: sizes of its nets, and the readouts that its users decide by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from snn_recon_plugin import over_time
from snn_recon_plugin.networks import Forward, plain_forward


@dataclass(frozen=True)
class Sizes:
    """Sizes of a net.

    Args:
        steps: time steps.
        inputs: values of an input of a dense net; images are 8 x 8.
        hidden: neurons of a dense hidden layer.
        classes: outputs.
        channels: of two convolutions, which leave the second number of channels of 2 x 2 pixels.
    """

    steps: int = 25
    inputs: int = 64
    hidden: int = 256
    classes: int = 10
    channels: tuple[int, int] = (12, 64)


DIGITS = Sizes()
SMALL = Sizes(steps=6, inputs=10, hidden=16, classes=3, channels=(4, 16))

OVER = over_time(DIGITS.steps)
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

    @property
    def exactness(self) -> str:
        """How the written readout relates to the program's."""
        return "exact" if self.linear is None else "majorised" if self.kind == "membrane_max" else "surrogate"


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
        readout: name of the readout layer.
        hidden: number of hidden layers.
    """

    title: str
    build: Callable[..., nn.Module]
    readings: tuple[Reading, ...]
    call: str
    about: str
    forward: Forward = plain_forward
    shape: tuple[int, ...] = (DIGITS.inputs,)
    readout: str = ""
    hidden: int = 1

    def at(self, sizes: Sizes) -> Idiom:
        """Return the idiom with nets of other sizes."""
        forward = over_time(sizes.steps) if self.forward is OVER else self.forward
        shape = self.shape if len(self.shape) > 1 else (sizes.inputs,)
        return replace(self, build=partial(self.build, sizes=sizes), forward=forward, shape=shape)

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
