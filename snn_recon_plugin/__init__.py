"""Convex initialisation and reconstruction of spiking neural networks for snnTorch, Norse and SpikingJelly.

    report = convex_init_(net, loader)

solves the convex program of an existing network's readout on your data, writes the answer into the network in place, and
says how good it is.  Method: arXiv 2605.08022.
"""

from typing import TYPE_CHECKING, Any

from .after.extend import Extension, extend_
from .after.quantize import QuantizedReadout, quantize_readout_
from .after.statistics import Statistics, statistics_of
from .convex import Certificate
from .diagnose import diagnose
from .diagnosis import Diagnosis
from .errors import REMOVED, ReadoutWarning, ReconstructionError, RemovedNameError
from .hidden_init import HiddenStart, hidden_init_
from .initializer import ConvexInitializer, convex_init_, refit_
from .networks.calls.forward import over_time
from .report.content import Report
from .scan.fast_steps import FastSteps, fast_steps

if TYPE_CHECKING:
    from .callback import ReconstructionCallback

__version__ = "0.4.0"

__all__ = [
    "Certificate",
    "ConvexInitializer",
    "Diagnosis",
    "Extension",
    "FastSteps",
    "HiddenStart",
    "QuantizedReadout",
    "ReadoutWarning",
    "ReconstructionCallback",
    "ReconstructionError",
    "Report",
    "Statistics",
    "__version__",
    "convex_init_",
    "diagnose",
    "extend_",
    "fast_steps",
    "hidden_init_",
    "over_time",
    "quantize_readout_",
    "refit_",
    "statistics_of",
]


def __getattr__(name: str) -> Any:
    """Import the callback when it is first used, as Lightning takes seconds; answer removed names with what to type."""
    if name == "ReconstructionCallback":
        from .callback import ReconstructionCallback

        return ReconstructionCallback
    if name in REMOVED:
        raise RemovedNameError(f"{name} of snn_recon_plugin", "a name of this version", REMOVED[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
