"""Cleanup that an interrupt or an error does not cut short."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

__all__ = ["insist", "run_all"]


def run_all(steps: Iterable[Callable[[], object]]) -> list[BaseException]:
    """Run every step, also after one that raises.

    Args:
        steps: the steps, in order.

    Returns:
        What they raised; interrupts first.
    """
    raised: list[BaseException] = []
    for step in steps:
        try:
            step()
        except BaseException as error:  # noqa: PERF203 -- the next step must run all the same
            raised.append(error)
    return sorted(raised, key=lambda error: isinstance(error, Exception))


def insist(step: Callable[[], object]) -> None:
    """Run a step to its end, though an interrupt comes meanwhile, which is raised afterwards.

    Ctrl-C is held back.  After an interrupt that gets through all the same, as from a debugger, and after an error, the step runs
    a second time; what that raises is raised.

    Args:
        step: a step that may be repeated, such as one that puts things back.
    """
    interrupts = _Interrupts()
    try:
        interrupts.hold()
        step()
        interrupts.release()
    except BaseException as error:
        interrupts.hold()
        step()
        interrupts.release()
        if not isinstance(error, Exception):
            raise


class _Interrupts:
    """Ctrl-C, held back while the net is put back as it was; only the main thread of a program gets one.

    Both methods may be called again and again: the handler that was there at first is the one that comes back.
    """

    def __init__(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        self._handler: Any = signal.getsignal(signal.SIGINT) if main else None
        self._held: tuple[int, FrameType | None] | None = None

    def hold(self) -> None:
        """Note interrupts from now on and do nothing else about them."""
        if callable(self._handler):
            signal.signal(signal.SIGINT, self._note)

    def release(self) -> None:
        """Handle interrupts as before, and handle now one that was held back.

        Raises:
            KeyboardInterrupt: if there was one, unless the program handles interrupts in another way.
        """
        if callable(self._handler):
            signal.signal(signal.SIGINT, self._handler)
            held, self._held = self._held, None
            if held is not None:
                self._handler(*held)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._held = (number, frame)
