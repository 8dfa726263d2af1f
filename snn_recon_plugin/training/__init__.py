"""What refits during training need beside the program: the net inside a module, its data, a budget, a protected hand-over."""

from __future__ import annotations

from .budget import START, Budget
from .evaluation import Evaluation
from .handover import Handover, forget, reach_after
from .judge import AUTO, HELD_OUT, VALIDATION, Judged
from .lightning import Callback, check_namespaces
from .processes import ProcessError
from .refit import Refits, Solve, metrics_of
from .target import check_alone, check_optimizers, check_trainer, network_of

__all__ = [
    "AUTO",
    "HELD_OUT",
    "START",
    "VALIDATION",
    "Budget",
    "Callback",
    "Evaluation",
    "Handover",
    "Judged",
    "ProcessError",
    "Refits",
    "Solve",
    "check_alone",
    "check_namespaces",
    "check_optimizers",
    "check_trainer",
    "forget",
    "metrics_of",
    "network_of",
    "reach_after",
]
