"""Every error the package raises on purpose, and its warning.

One base class, :class:`ReconstructionError`, and a few narrow ones below it.  Each is built from three sentences, so
that no message can leave one out: what was *found*, what was *needed*, and what to *type*.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

__all__ = [
    "AmbiguousReadoutError",
    "CaptureError",
    "DataError",
    "NetworkError",
    "OptionError",
    "ReadoutNotFoundError",
    "ReadoutWarning",
    "ReconstructionError",
    "SilentLayerError",
    "SolverError",
    "UnsupportedModuleError",
    "WriteError",
    "warn_user",
]


class ReconstructionError(Exception):
    """Base of every error of this package; the user's network is bit for bit as before when one is raised.

    Args:
        found: what was found, e.g. ``"strength=-1"``.
        needed: what was needed, e.g. ``"a positive number or 'auto'"``.
        fix: what to type or do, e.g. ``"pass strength='auto'"``.

    Example:
        >>> print(ReconstructionError("strength=-1", "a positive number or 'auto'", "pass strength='auto'"))
        Found: strength=-1
        Needed: a positive number or 'auto'
        To fix: pass strength='auto'
    """

    def __init__(self, found: str, needed: str, fix: str) -> None:
        # All three go to BaseException so that the error pickles, as it must when a process group spawns its ranks.
        super().__init__(found, needed, fix)
        self.found = found
        self.needed = needed
        self.fix = fix

    def __str__(self) -> str:
        return f"Found: {self.found}\nNeeded: {self.needed}\nTo fix: {self.fix}"


class OptionError(ReconstructionError, ValueError):
    """An argument has a value that no program can be built from."""


class DataError(ReconstructionError, ValueError):
    """The loader, its batches or the labels can't be used: empty, not finite, of the wrong type, out of range."""


class NetworkError(ReconstructionError):
    """The network can't be read: its layers, its time loop or its outputs."""


class ReadoutNotFoundError(NetworkError):
    """No linear readout layer was found in the network."""


class AmbiguousReadoutError(NetworkError):
    """Several modules fit where one is needed; the message lists them and names the argument that picks one."""


class UnsupportedModuleError(NetworkError):
    """A module stands where this package can't write or can't simulate it."""


class SilentLayerError(NetworkError):
    """A hidden layer carries no information: it never spikes, or it always does."""


class CaptureError(NetworkError):
    """A forward pass did not reach the readout, or reached it a varying number of times."""


class SolverError(ReconstructionError):
    """A convex program could not be solved: not finite, or the chosen backend is missing or gave up."""


class WriteError(ReconstructionError):
    """A parameter could not be written, or the written network does not do what the program promised."""


class ReadoutWarning(UserWarning):
    """What decides may be another value than the user's own test reads; the message names the option that takes that one.

    Example:
        >>> import warnings
        >>> from snn_recon_plugin import ReadoutWarning
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", ReadoutWarning)  # nothing is written where one would be given
    """


def warn_user(text: str) -> None:
    """Warn with a :class:`ReadoutWarning` at the line outside this package that led here.

    Args:
        text: what was found, and what to type.
    """
    package, level, frame = str(Path(__file__).parent), 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, ReadoutWarning, stacklevel=level)
