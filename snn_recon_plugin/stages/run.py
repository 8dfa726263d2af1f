"""A run: the private network, its data, the options and the kind of solve; and the clock of its stages."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from ..distributed import SINGLE_PROCESS, SingleProcess
from ..options import Options
from .stream import Stream

_LOG = logging.getLogger("snn_recon_plugin")


@dataclass(frozen=True)
class SolveMode:
    """Kind of a solve."""

    trained: bool = False  # the network was trained: solves start from its readout, and its user was warned before
    trains_on: bool = False  # training goes on from what is written, so the readout may be a fraction of the solved one
    verified_samples: int = 1024  # at most, on which the written network is run again


START = SolveMode(trains_on=True)
REFIT = SolveMode(trained=True)
MEASURE = SolveMode(trained=True)
DIAGNOSE = SolveMode()


class StageTimer:
    """Timer and progress bar of the stages, each also a line at level DEBUG; ``show=None`` shows bars in a terminal only."""

    def __init__(self, show: bool | None) -> None:
        self.seconds: dict[str, float] = {}  # wall-clock of each stage so far
        self._disable = None if show is None else not show
        self._bar: Any = None

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "it") -> Iterator[None]:
        """Time a block under ``name``; ``advance_to`` and ``note`` inside it move its bar."""
        began = time.perf_counter()
        self._bar = tqdm(total=total, desc=name, unit=unit, leave=False, disable=self._disable)
        try:
            yield
        finally:
            self._bar.close()
            self._bar = None
            spent = time.perf_counter() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            _LOG.debug("%s: %.1f s", name, spent)

    def advance_to(self, done: int) -> None:
        """Move the bar to ``done``."""
        self._bar.update(done - self._bar.n)

    def note(self, text: str) -> None:
        """Move the bar by one and show ``text`` behind it."""
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(1)


@dataclass(frozen=True)
class Initialisation:
    """Private network, data and options of one initialisation."""

    net: nn.Module  # the private copy, which stages change as they like
    stream: Stream
    options: Options
    mode: SolveMode
    timer: StageTimer
    processes: SingleProcess = SINGLE_PROCESS  # that share the samples
    validation: Stream | None = None  # samples that choose and judge in place of held-out ones
    fit_val: bool = True  # the last fit is on the validation samples too
    was_trained: bool = False  # an optimizer has changed the user's network

    @property
    def judged_on(self) -> str:
        """Name of the samples that judge, for texts."""
        return "held-out samples" if self.validation is None else "validation samples"
