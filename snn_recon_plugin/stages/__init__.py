"""Stages of an initialisation, each a function from frozen inputs to a frozen result."""

from __future__ import annotations

from .fit import is_lower
from .initialize import NetworkCheck, check_network, initialize_network, prepare_network
from .loader import Unpack, refuse_iterator, refuse_repeats
from .option_checks import check_bool, check_fraction, check_names, check_whole
from .options import ALWAYS, IF_BETTER, Options
from .run import START, Context, Run
from .stream import Stream
from .task import Task, inspect_task

__all__ = [
    "ALWAYS",
    "IF_BETTER",
    "START",
    "Context",
    "NetworkCheck",
    "Options",
    "Run",
    "Stream",
    "Task",
    "Unpack",
    "check_bool",
    "check_fraction",
    "check_names",
    "check_network",
    "check_whole",
    "initialize_network",
    "inspect_task",
    "is_lower",
    "prepare_network",
    "refuse_iterator",
    "refuse_repeats",
]
