"""Refits during a Lightning run: their schedule, data, judge, weights and protection."""

from __future__ import annotations

from .lightning import (
    Callback,
    check_alone,
    check_trainer,
    network_of,
    restore_checkpoint_weights,
    set_checkpoint_weights,
)
from .session import Session
from .settings import AUTO, HELD_OUT, VALIDATION, Settings

__all__ = [
    "AUTO",
    "HELD_OUT",
    "VALIDATION",
    "Callback",
    "Session",
    "Settings",
    "check_alone",
    "check_trainer",
    "network_of",
    "restore_checkpoint_weights",
    "set_checkpoint_weights",
]
