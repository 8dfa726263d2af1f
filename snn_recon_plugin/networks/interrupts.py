"""Cleanup that neither an interrupt nor an error cuts short."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

__all__ = ["insist", "run_all"]


def run_all(steps: Iterable[Callable[[], object]]) -> list[BaseException]:
    """Run every step in order, also after one that raises, and return what they raised, interrupts first."""
    raised: list[BaseException] = []
    for step in steps:
        try:
            step()
        except BaseException as error:  # noqa: PERF203 -- the next step must run all the same
            raised.append(error)
    return sorted(raised, key=lambda error: isinstance(error, Exception))


def insist(step: Callable[[], object]) -> None:
    """Run a step to its end; an interrupt that comes meanwhile is raised afterwards.

    Ctrl-C waits.  After an error, or an interrupt that gets through all the same, as from a debugger, the step runs a second
    time, so it must be one that may be repeated.  An error of the second time is raised.
    """
    interrupts = _Interrupts()
    try:
        interrupts.delay()
        step()
        interrupts.release()
    except BaseException as error:
        interrupts.delay()
        step()
        interrupts.release()
        if not isinstance(error, Exception):
            raise


class _Interrupts:
    """Delays Ctrl-C; only the main thread of a program gets one.

    Both methods may be called repeatedly: the first handler is the one that comes back.
    """

    def __init__(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        self._handler: Any = signal.getsignal(signal.SIGINT) if main else None
        self._delayed: tuple[int, FrameType | None] | None = None

    def delay(self) -> None:
        """Only note interrupts from now on."""
        if callable(self._handler):
            signal.signal(signal.SIGINT, self._note)

    def release(self) -> None:
        """Handle interrupts as before, beginning with one that was delayed: a KeyboardInterrupt, or the program's own handler."""
        if callable(self._handler):
            signal.signal(signal.SIGINT, self._handler)
            delayed, self._delayed = self._delayed, None
            if delayed is not None:
                self._handler(*delayed)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._delayed = (number, frame)
