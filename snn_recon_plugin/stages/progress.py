"""Wall-clock seconds of the stages, and the progress bar of each."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

_LOG = logging.getLogger("snn_recon_plugin")


class Progress:
    """Timer and progress bar of the stages of an initialisation; ``show=None`` shows the bars in a terminal only.

    The logger "snn_recon_plugin" gets a line at the end of each stage, at level DEBUG.
    """

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
