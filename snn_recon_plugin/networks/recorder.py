"""Former name of :mod:`.activity`."""

from __future__ import annotations

from .activity import ActivityRecorder as Recorder

__all__ = ["Recorder"]
