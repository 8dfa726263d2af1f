"""The record of the catalogue: one net that users write, its line, its own test, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import snntorch.functional as SF
import torch
from torch import Tensor, nn

from snn_recon_plugin import Report, convex_init_, over_time
from snn_recon_plugin.networks.calls.forward import Forward, plain_forward

from .data import Loader, OwnTest, Samples, as_pixels, by_count

ALIKE = 0.005  # half a percentage point
TYPED = {"convex_init_": convex_init_, "over_time": over_time, "SF": SF, "nn": nn, "torch": torch}


@dataclass(frozen=True)
class Sizes:
    """Sizes of an idiom's nets; two convolutions leave the second number of channels of 2 x 2 pixels."""

    steps: int = 25
    inputs: int = 64
    hidden: int = 256
    classes: int = 10
    channels: tuple[int, int] = (12, 64)


DIGITS = Sizes()
SMALL = Sizes(steps=6, inputs=10, hidden=16, classes=3, channels=(4, 16))


@dataclass(frozen=True)
class Reading:
    """How a user of an idiom decides.

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

    def scores(self, output: Any) -> Tensor:
        """Return the scores ``[B, C]`` of what the net returned."""
        return self.decode(output[self.item] if isinstance(output, tuple) and self.item is not None else output)


def by_step(decode: Callable[[nn.Module, Any], Tensor]) -> dict[str, Any]:
    """Return the line with a step as messages propose it, for a script whose loop gets scores by ``decode(net, inputs)``."""
    step = "step=lambda net, batch: loss_fn(forward_pass(net, batch[0]), batch[1])"
    return {"options": step, "names": {"loss_fn": nn.CrossEntropyLoss(), "forward_pass": decode}}


def by_batch(train_batch: Callable[[nn.Module, Any], Tensor], options: str = "") -> dict[str, Any]:
    """Return the line with the function that trains on a batch, behind other options."""
    return {"options": f"{options}step=train_batch", "names": {"train_batch": train_batch}}


@dataclass(frozen=True)
class UserNet:
    """One net of a kind that users write: a script's net with its own test, or an idiom with the ways to decide by it.

    Args:
        name: for the tables.
        build: builds the net; an idiom's takes the output neuron, and ``sizes``.
        loader: gives batches of samples as the user's loader does.
        test: the user's own test, accuracy 0 to 1, which uses nothing of the package.
        options: of the user's line; the line is what runs.
        names: what the line refers to, beyond the package, torch and snntorch.functional.
        refused: words that the refusal must hold, for nets that have no convex readout; empty for nets that must work.
        either: whether the net may work too, where it is refused with these words.
        order: puts samples into an order that the loader needs.
        rebuilds: whether the line runs a second time with ``hidden="reconstruct"``.
        alike: largest difference of the report from the own test, 0 to 1; more than half a point only for nets that draw random
            numbers, of which two passes differ by themselves.
        fixed: of a refused net, the same after what its message says to do; a changed line is in the message word by word.
        regression: whether report and own test are losses, of which the relative difference counts.
        readings: of an idiom, the ways to decide by it.
        about: of an idiom, what is special about it, for the docs.
        shape: of an idiom, shape of one input.
        readout: of an idiom, name of the readout layer.
        hidden: of an idiom, number of hidden layers.
        sizes: of an idiom's nets.
    """

    name: str
    build: Callable[..., nn.Module]
    loader: Callable[[Samples], Loader] = as_pixels
    test: OwnTest = by_count
    options: str = ""
    names: dict[str, Any] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    either: bool = False
    order: Callable[[Samples], Samples] = lambda samples: samples
    rebuilds: bool = True
    alike: float = ALIKE
    regression: bool = False
    fixed: UserNet | None = None
    readings: tuple[Reading, ...] = ()
    about: str = ""
    shape: tuple[int, ...] = (DIGITS.inputs,)
    readout: str = ""
    hidden: int = 1
    sizes: Sizes = DIGITS

    @property
    def must(self) -> str:
        """What must happen."""
        return "work or be refused" if self.either else "be refused" if self.refused else "work"

    @property
    def extras(self) -> tuple[str, ...]:
        """What the study adds to the line: nothing, and the option that rebuilds hidden layers."""
        return ("", 'hidden="reconstruct"') if self.rebuilds and not self.refused else ("",)

    @property
    def typed(self) -> str:
        return self.line()

    def line(self, extra: str = "") -> str:
        """Return the line with options at its end; those that it has already stay as they are."""
        new = [option for option in extra.split(", ") if option and f"{option.partition('=')[0]}=" not in self.options]
        return f"convex_init_({', '.join(['net', 'loader', *filter(None, [self.options]), *new])})"

    def run(self, net: nn.Module, samples: Samples, extra: str = "") -> Report:
        """Run the line that the table shows, and no other."""
        return eval(self.line(extra), {**TYPED, **self.names, "net": net, "loader": self.loader(samples)})

    @property
    def forward(self) -> Forward:
        """How the line calls an idiom's net."""
        return over_time(self.sizes.steps) if "over_time" in self.options else plain_forward

    def at(self, sizes: Sizes) -> UserNet:
        """Return the idiom with nets of other sizes."""
        shape = self.shape if len(self.shape) > 1 else (sizes.inputs,)
        return replace(self, build=partial(self.build, sizes=sizes), shape=shape, sizes=sizes)

    def scores(self, net: nn.Module, reading: Reading, inputs: Tensor) -> Tensor:
        """Return an idiom's own scores, decoded as its user does."""
        with torch.no_grad():
            return reading.scores(self.forward(net, inputs))

    def linear_scores(self, net: nn.Module, reading: Reading, inputs: Tensor) -> Tensor:
        """Return the scores of the same parameters under an output neuron that never resets: the score of the program."""
        if reading.linear is None:
            return self.scores(net, reading, inputs)
        twin = self.build(reading.linear.output).train(net.training)
        norms = {name: value for name, value in net.named_buffers() if "running" in name}
        twin.load_state_dict({**twin.state_dict(), **dict(net.named_parameters()), **norms})
        return self.scores(twin, reading.linear, inputs)
