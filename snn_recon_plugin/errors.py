"""Errors that the package raises on purpose, and its warning.

One base class, :class:`ReconstructionError`, and a few narrow ones below it.  Each message has three parts: what was *found*, what
was *needed*, and what to *type*.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

__all__ = [
    "AmbiguousReadoutError",
    "CaptureError",
    "DataError",
    "NetworkError",
    "OptionError",
    "ProcessError",
    "ReadoutNotFoundError",
    "ReadoutWarning",
    "ReconstructionError",
    "RemovedError",
    "RemovedNameError",
    "SilentLayerError",
    "SolverError",
    "UnsupportedModuleError",
    "WriteError",
    "warn_user",
]


class ReconstructionError(Exception):
    """Base of every error of this package; when one is raised, the user's network is bit for bit as before.

    Args:
        found: the problem, e.g. ``"strength=-1"``.
        needed: the requirement, e.g. ``"a positive number or 'auto'"``.
        fix: what to type, e.g. ``"pass strength='auto'"``.

    Example:
        >>> print(ReconstructionError("strength=-1", "a positive number or 'auto'", "pass strength='auto'"))
        Found: strength=-1
        Needed: a positive number or 'auto'
        To fix: pass strength='auto'
    """

    def __init__(self, found: str, needed: str, fix: str) -> None:
        # All three go to BaseException so that the error pickles, as it must between processes.
        super().__init__(found, needed, fix)
        self.found = found
        self.needed = needed
        self.fix = fix

    def __str__(self) -> str:
        return f"Found: {self.found}\nNeeded: {self.needed}\nTo fix: {self.fix}"


class OptionError(ReconstructionError, ValueError):
    """Argument with a value from which no program can be built."""


class RemovedError(OptionError, AttributeError):
    """Attribute that an earlier version had."""


class DataError(ReconstructionError, ValueError):
    """Loader, batches or labels that can't be used: empty, not finite, of the wrong type, out of range."""


class NetworkError(ReconstructionError):
    """Network whose layers, time loop or outputs can't be read."""


class ReadoutNotFoundError(NetworkError):
    """Network without a linear readout layer."""


class AmbiguousReadoutError(NetworkError):
    """Several modules that fit where one is needed; the message lists them, and names the argument that picks one."""


class UnsupportedModuleError(NetworkError):
    """Module at a place where this package can't write or simulate it."""


class SilentLayerError(NetworkError):
    """Hidden layer that carries no information: it never spikes, or it always does."""


class CaptureError(NetworkError):
    """Forward pass that did not reach the readout, or reached it a varying number of times."""


class SolverError(ReconstructionError):
    """Convex program that could not be solved: not finite, or the chosen backend is missing or failed."""


class ProcessError(SolverError):
    """Another process that has ended, that does not answer, or that failed unexpectedly."""


class WriteError(ReconstructionError):
    """Parameter that could not be written, or a written network that does not do what the program promised."""


class RemovedNameError(ReconstructionError, ImportError):
    """Name that an earlier version of the package had; an ImportError, so that ``from ... import`` shows what to type."""


class ReadoutWarning(UserWarning):
    """Warning of a default that may not be what the user trains or tests with; the message names the option to change it.

    Example:
        >>> import warnings
        >>> from snn_recon_plugin import ReadoutWarning
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", ReadoutWarning)  # nothing is written where one would be given
    """


# What to type where a script does something around its network that a batch alone does not show.
PASS_STEP = (
    "pass step=train_batch, the function of your script that trains on a batch, or "
    "step=lambda net, batch: loss_fn(forward_pass(net, batch[0]), batch[1])"
)
# Removed names, as "option=value", "function.option" or "report.attribute", and what to type instead.
REMOVED: dict[str, str] = {
    "solver=highs": "pass solver='auto'",
    "rank": "train each net for a minute with fast_steps, finish it with refit_, and compare validation accuracies",
    "Ranking": "train each net for a minute with fast_steps, finish it with refit_, and compare validation accuracies",
    "ReadoutClassifier": "solve(Problem(Features(matrix), labels, penalty='ridge')) of snn_recon_plugin.convex",
    "ReadoutRegressor": "solve(Problem(Features(matrix), values, loss='squared', penalty='ridge')) of snn_recon_plugin.convex",
    "StreamingReadout": "solve all samples again, by convex_init_(net, loader, hidden='keep')",
    "solver=augmented_lagrangian": "pass solver='clarabel'",
    "solver=fista": "pass solver='auto'",
    "extend_.fit_loss": "leave it out: the squared hinge is better",
    "extend_.old": "leave it out: all outputs are solved together, which is better for all classes",
    "ReconstructionCallback.average": (
        "leave it out: Lightning's WeightAveraging averages weights; best_weights=False keeps no best weights"
    ),
    "ReconstructionCallback.hard_samples": "leave it out",
    "protect.average": "leave it out",
    "report.hardness": "compute 1 - p(label) from the scores of the network",
    "report.sampler": "train with DataLoader(dataset, shuffle=True)",
}


def missing_attribute(owner: str, name: str) -> AttributeError:
    """Return the error for an attribute that an object lacks; a removed one is answered with what to type."""
    if f"{owner}.{name}" not in REMOVED:
        return AttributeError(f"{owner} has no attribute {name!r}")
    return RemovedError(f"{owner}.{name}", "an attribute of this version", REMOVED[f"{owner}.{name}"])


def closest(value: object, valid: Iterable[str]) -> str | None:
    """Return the valid name that is spelled most like a value, None if none is."""
    return next(iter(get_close_matches(str(value), list(valid), n=1)), None)


@contextmanager
def installed(package: str, use: str) -> Iterator[None]:
    """Name what to install if an import in the block fails."""
    try:
        yield
    except ImportError as error:
        raise OptionError(f"{package} is not installed ({error})", f"{package} for {use}", f"pip install {package}") from error


def warn_user(text: str) -> None:
    """Warn with a :class:`ReadoutWarning` at the line outside this package that led here."""
    package = str(Path(__file__).parent)
    level = 1
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, ReadoutWarning, stacklevel=level)
