"""What is measured of a predictor: its error one step ahead, and for how long its own continuation of a series is right."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Predictor", "one_step_error", "roll_out", "valid_times"]

WARM_UP = 200  # steps of the true series before anything is measured
STARTS = 30  # points of the test part from which series are continued
TOLERATED = 0.4  # standard deviations; a continuation is valid until its error, over all channels, is larger


class Predictor(Protocol):
    """A net of nets.py, or a rival."""

    def begin(self) -> Any:
        """Return a fresh state."""

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the prediction (B, C) of the next value, and the state after it."""


@torch.no_grad()
def one_step_error(predictor: Predictor, series: Tensor) -> float:
    """Return the error of the prediction of the next value, (steps, C), in standard deviations of the series."""
    state, found = predictor.begin(), []
    for value in series[:-1]:
        prediction, state = predictor.step(value[None], state)
        found.append(prediction[0])
    left = (torch.stack(found) - series[1:])[WARM_UP:]
    return float((left.square().mean() / series.var(0).mean()).sqrt())


@torch.no_grad()
def roll_out(predictor: Predictor, series: Tensor, horizon: int, starts: int = STARTS) -> tuple[Tensor, Tensor]:
    """Continue a series from evenly spread points, predictions fed back; return predicted and true values (starts, horizon, C)."""
    first = torch.linspace(WARM_UP, len(series) - horizon, starts).long()
    truth = torch.stack([series[begin : begin + horizon] for begin in first.tolist()])
    state, value = predictor.begin(), None
    for back in range(WARM_UP, 0, -1):
        value, state = predictor.step(series[first - back], state)
    found = [value]
    for _ in range(horizon - 1):
        value, state = predictor.step(value, state)
        found.append(value)
    return torch.stack(found, 1), truth


def valid_times(predicted: Tensor, truth: Tensor) -> Tensor:
    """Return the steps of each continuation until its error is larger than tolerated, (starts,); the series has variance 1."""
    error = (predicted - truth).square().mean(2).sqrt()
    wrong = ~(error <= TOLERATED)
    return torch.where(wrong.any(1), wrong.int().argmax(1), truth.shape[1])
