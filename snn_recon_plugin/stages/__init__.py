"""Stages of an initialisation, each a function from frozen inputs to a frozen result."""

from __future__ import annotations

from .initialize import NetworkCheck, check_network, initialize_network, prepare_network
from .loader import Unpack, refuse_iterator, refuse_repeats
from .options import START, Context, Options, one_of, share, truth, whole
from .stream import Stream
from .task import Task, inspect_task

__all__ = [
    "START",
    "Context",
    "NetworkCheck",
    "Options",
    "Stream",
    "Task",
    "Unpack",
    "check_network",
    "initialize_network",
    "inspect_task",
    "one_of",
    "prepare_network",
    "refuse_iterator",
    "refuse_repeats",
    "share",
    "truth",
    "whole",
]
