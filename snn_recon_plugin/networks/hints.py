"""Hints for outputs that no readout explains: what the net seems to return, and the ``forward=`` to type for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .probes import Probe
from .readouts import output_items, same_values


def suggest_scores(probe: Probe, decoded: Mapping[str, Tensor]) -> str:
    """Return what to type for the output of a probe's pass; empty if nothing known explains it.

    ``decoded`` holds the scores ``[B, C]`` of each readout kind.
    """
    several = probe.values.shape[2] > 1  # the softmax of a single class is always 1
    for path, value in _places(probe.returned):
        if several and any(same_values(value, scores.softmax(1)) for scores in decoded.values()):
            return f"return the scores in place of {path}, which is their softmax: cross-entropy takes scores"
        if _differs_in_steps(probe, value):
            return (
                "sequences that are each read at another step are not supported: group sequences of one length in a batch and "
                "return the last step, or return the mean over time"
            )
    if isinstance(probe.returned, Tensor | tuple | list | Mapping):
        return ""
    known: Sequence[Tensor] = [*decoded.values(), probe.values]
    for path, value in _places(probe.returned):
        for scores in known:
            if same_values(value, scores):
                return f"pass forward=lambda net, inputs: {path}"
    return next((f"pass forward=lambda net, inputs: {path}, or another attribute" for path, _ in _places(probe.returned)), "")


def _differs_in_steps(probe: Probe, value: Tensor) -> bool:
    """Return whether scores ``[B, C]`` are the values of single steps, another one for some samples."""
    if value.shape != probe.values.shape[1:]:
        return False
    each = [[same_values(mine, step) for step in steps] for mine, steps in zip(value, probe.values.unbind(1), strict=True)]
    return all(map(any, each)) and not any(all(column) for column in zip(*each, strict=True))


def _places(returned: Any) -> Iterable[tuple[str, Tensor]]:
    """Yield how a user spells each tensor of an output, attributes of an object included, and the tensor."""
    for index, value in output_items(returned):
        yield "net(inputs)" if index is None else f"net(inputs)[{index!r}]", value
    if not isinstance(returned, Tensor | tuple | list | Mapping):
        for name, value in getattr(returned, "__dict__", {}).items():
            if isinstance(value, torch.Tensor):
                yield f"net(inputs).{name}", value
