"""What one process can't do none keeps: errors are raised in all of them."""

from __future__ import annotations

from typing import Any

from ..errors import ReconstructionError, SolverError

__all__ = ["ProcessError", "agree"]


class ProcessError(SolverError):
    """Another process failed, by more than a solve that was refused, and is gone."""


def agree(trainer: Any, error: Exception | None) -> None:
    """Raises an error that this process has, or any other."""
    agreed = trainer.strategy.reduce_boolean_decision(error is None, all=True)
    if agreed:
        return
    refused = trainer.strategy.reduce_boolean_decision(error is None or isinstance(error, ReconstructionError), all=True)
    elsewhere = ("a solve that failed in another process", "one that succeeds in all", "see that process")
    if not refused and (error is None or isinstance(error, ReconstructionError)):
        raise ProcessError(*elsewhere) from error
    raise SolverError(*elsewhere) if error is None else error
