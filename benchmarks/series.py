"""Chaotic series made here, how they are cut, and what is measured of a predictor of their next value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

TRAIN, VALIDATION, TEST = 4_000, 1_000, 2_000  # steps
SETTLE = 1_000  # steps left out, until a trajectory is on its attractor
WINDOW, STRIDE = 50, 10  # steps; windows overlap, so that training sees each value at several distances from a fresh state
MEDIAN = 0.6745  # of the absolute value of a standard normal number
WARM_UP = 200  # steps of the true series before anything is measured
STARTS = 30  # points of the test part from which series are continued
TOLERATED = 0.4  # standard deviations; a continuation is valid until its error, over all channels, is larger
OUTLIERS, FAR = 0.05, 6.0  # share of the training steps whose value is wrong, by up to so many standard deviations


@dataclass(frozen=True)
class Series:
    """A series.

    Args:
        make: gives its values (steps, C) from a number of steps and a seed of the initial state.
        unit: steps in which valid times are given: 1, or those of a Lyapunov time.
        horizon: steps of a roll-out; a longer valid time counts as so many.
        outliers: share of wrong values in the training part.
    """

    make: Callable[[int, int], np.ndarray]
    unit: float
    horizon: int
    outliers: float = 0.0


@dataclass(frozen=True)
class Split:
    """Parts of a series, each (steps, C) with the training part's mean 0 and standard deviation 1, before outliers."""

    train: Tensor
    validation: Tensor
    test: Tensor

    @property
    def scale(self) -> Tensor:
        """Usual size of a change from one step to the next, (C,): the median, which outliers leave alone."""
        return self.train.diff(dim=0).abs().median(0).values / MEDIAN


def mackey_glass(steps: int, seed: int, delay: float = 17.0, fine: int = 10) -> np.ndarray:
    """Return the Mackey-Glass series dx/dt = 0.2 x(t - delay) / (1 + x(t - delay)^10) - 0.1 x, a value each unit of time.

    Runge-Kutta steps of 1 / ``fine``; the delayed value in the middle of a step is interpolated between its ends.
    """
    lag, h = round(delay * fine), 1 / fine
    draw = np.random.default_rng(seed)
    path = list(0.9 + 0.6 * draw.random() + 0.05 * draw.standard_normal(lag + 1))

    def slope(value: float, delayed: float) -> float:
        return float(0.2 * delayed / (1 + delayed**10) - 0.1 * value)

    for _ in range(steps * fine):
        now, first, last = path[-1], path[-1 - lag], path[-lag]
        middle = (first + last) / 2
        a = slope(now, first)
        b = slope(now + h / 2 * a, middle)
        c = slope(now + h / 2 * b, middle)
        d = slope(now + h * c, last)
        path.append(now + h / 6 * (a + 2 * b + 2 * c + d))
    return np.array(path[lag + fine :: fine])[:steps, None]


def lorenz(steps: int, seed: int, every: float = 0.02, fine: int = 4) -> np.ndarray:
    """Return the Lorenz system (sigma 10, rho 28, beta 8/3), (steps, 3), a value each ``every`` units of time."""
    h = every / fine

    def slope(p: np.ndarray) -> np.ndarray:
        x, y, z = p
        return np.array([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])

    point, path = np.array([1.0, 1.0, 20.0]) + np.random.default_rng(seed).standard_normal(3), []
    for _ in range(steps):
        for _ in range(fine):
            a = slope(point)
            b = slope(point + h / 2 * a)
            c = slope(point + h / 2 * b)
            d = slope(point + h * c)
            point = point + h / 6 * (a + 2 * b + 2 * c + d)
        path.append(point)
    return np.array(path)


def split(series: Series, seed: int) -> Split:
    """Make a series and cut it; the seed draws the initial state and the outliers."""
    values = torch.from_numpy(series.make(SETTLE + TRAIN + VALIDATION + TEST, seed)[SETTLE:]).float()
    values = (values - values[:TRAIN].mean(0)) / values[:TRAIN].std(0)
    clean, validation, test = values.split([TRAIN, VALIDATION, TEST])
    draw = torch.Generator().manual_seed(seed)
    wrong = torch.rand(clean.shape, generator=draw) < series.outliers
    train = clean + wrong * FAR * (2 * torch.rand(clean.shape, generator=draw) - 1)
    return Split(train, validation, test)


def windows(part: Tensor, scale: Tensor, length: int = WINDOW, stride: int = STRIDE) -> tuple[Tensor, Tensor]:
    """Cut (steps, C) into inputs (n, length, C), and as targets the change from each value to the next, over ``scale``."""
    cut = part.unfold(0, length + 1, stride).transpose(1, 2).contiguous()
    return cut[:, :-1], cut.diff(dim=1) / scale


LYAPUNOV = 0.9056  # largest exponent of the Lorenz system, 1 over its unit of time
SERIES: dict[str, Series] = {
    "Mackey-Glass": Series(mackey_glass, 1.0, 400),
    "Lorenz": Series(lorenz, 1 / (LYAPUNOV * 0.02), 400),
    "Mackey-Glass, outliers": Series(mackey_glass, 1.0, 400, OUTLIERS),
}


class Predictor(Protocol):
    """A net, or a rival."""

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
