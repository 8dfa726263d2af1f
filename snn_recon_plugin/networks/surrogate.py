"""Former name of :mod:`.output_neuron`."""

from __future__ import annotations

from .output_neuron import mark_running as running

__all__ = ["running"]
