"""Run: what every stage of one initialisation gets, fixed for the call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from ..distributed import SINGLE_PROCESS, SingleProcess
from ..networks.structure.inspect import Inspections
from ..options import Options
from .progress import Progress
from .stream import Stream


@dataclass(frozen=True)
class Context:
    """Difference of a refit, or of a measurement, from the first initialisation."""

    warm_start: bool = False  # start the solver from the readout's trained weights
    trains_on: bool = True  # training goes on from what is written, so the readout may be a fraction of the solved one
    refines: bool = True  # a maximum over time may be refined beyond the program's solution
    verified_samples: int = 2048  # at most, on which the written network is run again
    processes: SingleProcess = SINGLE_PROCESS  # that share the samples
    previous: Mapping[str, float] = field(default_factory=dict)  # best strength of the last solve, by its loss: paths begin near it
    held_first: int = 0  # first samples of the loader, validation data: held out, and not fitted in the end either
    inspections: Inspections | None = None  # made of this network before; None: it is inspected anew
    shared: tuple[object, ...] = ()  # objects that the network and its private copies refer to, such as a trainer


START = Context()


@dataclass(frozen=True)
class Run:
    """Private network, data and options of one initialisation."""

    net: nn.Module  # the private copy, which stages change as they like
    stream: Stream
    options: Options
    context: Context
    progress: Progress

    @property
    def processes(self) -> SingleProcess:
        """Processes that share the samples."""
        return self.context.processes
