"""Scores by a user's function of the net's output: checked, and computed from simulated values without running the net."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import NetworkError
from .batches import describe, map_tensors, refilled
from .output_probe import Probe
from .readouts import same_values

__all__ = ["CheckedScores", "TraceScores", "build_trace_scores"]


@dataclass(frozen=True)
class CheckedScores:
    """A user's function from outputs to scores ``[B, C]``, whose result is checked.

    Args:
        function: the user's.
        outputs: number of the net's outputs, C.
    """

    function: Callable[[Any], Tensor]
    outputs: int

    def __call__(self, returned: Any) -> Tensor:
        """Return the scores of a net's output.

        Raises:
            NetworkError: if the function raises, or returns anything but finite scores ``[B, C]``.
        """
        try:
            scores = self.function(returned)
        except Exception as error:
            raise NetworkError(
                f"scores(output) raised {type(error).__name__}: {error}, for an output that is {describe(returned)}",
                "a function from what forward returns to scores",
                "pass scores=lambda output: ... for an output of this kind",
            ) from error
        if isinstance(scores, Tensor) and not bool(torch.isfinite(scores).all()):
            raise NetworkError(
                "scores(output) that are NaN or infinite, for an output of the net",
                "finite scores, also where no neuron spikes",
                "let scores(output) divide by nothing that may be 0 and take no logarithm of 0, or use torch.nan_to_num",
            )
        if isinstance(scores, Tensor) and scores.ndim == 2 and scores.shape[1] == self.outputs:
            return scores
        raise NetworkError(
            f"scores of shape {list(scores.shape)}" if isinstance(scores, Tensor) else f"scores of type {type(scores).__name__}",
            f"a tensor [batch, {self.outputs}]",
            "let scores(output) return one score for each sample and output",
        )


@dataclass(frozen=True)
class TraceScores:
    """A user's function applied to an output of the net in which spikes and membranes are replaced by simulated ones.

    Args:
        function: the user's, from the output to scores ``[B, C]``.
        output: an output of the net; all tensors in it but those to be replaced are NaN.
        places: the item and the time axis of ``"spike"`` and of ``"value"``; None for the whole output.
    """

    function: Callable[[Any], Tensor]
    output: Any
    places: Mapping[str, tuple[int | str | None, int]]

    def __call__(self, spikes: Tensor, membranes: Tensor) -> Tensor:
        """Return scores ``[B, C]`` for spikes and membranes ``[T, B, C]``."""
        output = self.output
        for family, (index, time_dim) in self.places.items():
            value = (spikes if family == "spike" else membranes).movedim(0, time_dim)
            output = _replaced(output, index, value)
        return self.function(output)


def build_trace_scores(
    probe: Probe, function: Callable[[Any], Tensor], places: Mapping[str, tuple[int | str | None, int]]
) -> TraceScores | None:
    """Build the function of simulated values, and check it on the probe.

    Args:
        probe: a pass under random readout currents.
        function: the user's.
        places: the items of the output that hold spikes and membranes over time, and their time axes.

    Returns:
        The function; None if the user's function reads anything else of the output.
    """
    unknown = map_tensors(lambda value: torch.full_like(value, torch.nan) if value.is_floating_point() else value, probe.returned)
    simulated = TraceScores(function, unknown, places)
    spikes = probe.values if probe.spikes is None else probe.spikes
    try:
        same = same_values(simulated(spikes, probe.values), function(probe.returned))
    except Exception:  # whatever a user's function may raise for an output that was put together
        return None
    return simulated if places and same else None


def _replaced(output: Any, index: int | str | None, value: Tensor) -> Any:
    """Return an output with one item replaced by a value of the item's own type: a tensor, or a list or tuple of steps."""
    if index is None:
        return _like(output, value)
    if isinstance(output, MutableMapping):
        return refilled(output, {index: _like(output[index], value)})  # of its own class, whose attributes the function may use
    if isinstance(output, Mapping):
        return {**output, index: _like(output[index], value)}
    items = [_like(item, value) if number == index else item for number, item in enumerate(output)]
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)


def _like(item: Any, value: Tensor) -> Any:
    return value if isinstance(item, Tensor) else type(item)(value.unbind(0))
