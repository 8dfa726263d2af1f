"""What the nets of the forecasting study are compared with, and the sampling of hidden rows of S-SWIM.

Each is written here from its published idea.  Echo state network: Jaeger and Haas, Science 304 (2004).  S-SWIM: Gollwitzer and
Dietrich, arXiv 2510.01012, which samples rows of spiking layers from pairs of data points and spreads the time constants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from benchmarks.series import Split, one_step_error, roll_out, valid_times

RIDGES = (1e-8, 1e-6, 1e-4, 1e-2)  # over the number of rows
LEAKS, RADII = (0.3, 0.6, 1.0), (0.6, 0.9, 1.2)  # of the echo state network
INPUT_SCALE = 0.5
WASHOUT = 100  # steps before a fit
LAGS = 20  # values that the autoregression sees
SLOWEST, QUICKEST = 40.0, 2.0  # time constants of sampled rows, steps

Advance = Callable[[Tensor, Any], tuple[Tensor, Any]]  # from a value (B, C) and a state to features (B, P) and the state after


@dataclass
class Rival:
    """A prediction that is linear in features of the past."""

    advance: Advance
    weight: Tensor

    def begin(self) -> Any:
        return None

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        features, state = self.advance(x, state)
        return features @ self.weight.T, state


def last_values(x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """The last ``LAGS`` values and a constant."""
    state = x.new_zeros(len(x), LAGS, x.shape[1]) if state is None else state
    state = torch.cat([state[:, 1:], x[:, None]], 1)
    return _with_one(state.flatten(1)), state


def echo_state(channels: int, width: int, leak: float, radius: float, seed: int) -> Advance:
    """Tanh neurons with fixed random weights, and a constant."""
    draw = torch.Generator().manual_seed(seed)
    recurrent = torch.randn(width, width, generator=draw)
    recurrent = recurrent * radius / float(torch.linalg.eigvals(recurrent).abs().max())
    entry = INPUT_SCALE * (2 * torch.rand(width, channels + 1, generator=draw) - 1)

    def advance(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = x.new_zeros(len(x), width) if state is None else state
        state = (1 - leak) * state + leak * torch.tanh(_with_one(x) @ entry.T + state @ recurrent.T)
        return _with_one(state), state

    return advance


def fit_readout(advance: Advance, data: Split) -> list[tuple[float, Rival]]:
    """Return ridge readouts, one for each share of ``RIDGES``; the last feature, the constant, has no penalty."""
    state, rows = None, []
    for value in data.train[:-1]:
        features, state = advance(value[None], state)
        rows.append(features[0])
    features, targets = torch.stack(rows)[WASHOUT:].double(), data.train[WASHOUT + 1 :].double()
    gram, right = features.T @ features / len(features), features.T @ targets / len(features)
    penalty = torch.eye(len(gram), dtype=torch.float64)
    penalty[-1, -1] = 0
    return [(share, Rival(advance, torch.linalg.solve(gram + share * penalty, right).T.float())) for share in RIDGES]


def fit_autoregression(data: Split, width: int, seed: int) -> tuple[Rival, dict[str, float]]:
    """Fit a linear autoregression; validation data choose its ridge."""
    del width, seed
    share, found = min(fit_readout(last_values, data), key=lambda option: one_step_error(option[1], data.validation))
    return found, {"ridge": share}


def fit_echo_state(data: Split, width: int, seed: int) -> tuple[Rival, dict[str, float]]:
    """Fit echo state networks over a grid of leaks, radii and ridges; the longest valid time on validation data decides."""
    options = [
        (rival, {"leak": leak, "radius": radius, "ridge": share})
        for leak, radius in product(LEAKS, RADII)
        for share, rival in fit_readout(echo_state(data.train.shape[1], width, leak, radius, seed), data)
    ]
    return max(options, key=lambda option: float(valid_times(*roll_out(option[0], data.validation, 400, 10)).float().mean()))


def persist(data: Split, width: int, seed: int) -> tuple[Rival, dict[str, float]]:
    """The next value is this one."""
    del width, seed
    return Rival(lambda x, state: (x, state), torch.eye(data.train.shape[1])), {}


RIVALS: dict[str, Callable[[Split, int, int], tuple[Rival, dict[str, float]]]] = {
    "echo state": fit_echo_state,
    "autoregression": fit_autoregression,
    "persistence": persist,
}


@torch.no_grad()
def sample_rows(synapse: nn.Linear, neuron: snn.Leaky, inputs: Tensor, targets: Tensor, seed: int) -> None:
    """Write sampled rows and spread leaks into a hidden layer, in place; inputs (n, T, F) and targets (n, T, C) at every step.

    A pair of steps is drawn with a chance that grows with the difference of their targets over that of their values.  The neuron
    rests at zero for the first value, and for the second settles at twice its threshold: it starts to spike between the two.
    """
    draw = torch.Generator().manual_seed(seed)
    width = len(synapse.weight)
    values, wanted = inputs.flatten(0, 1), targets.flatten(0, 1)
    pairs = torch.randint(len(values), (20 * width, 2), generator=draw)
    apart = values[pairs[:, 1]] - values[pairs[:, 0]]
    distance = apart.norm(dim=1).clamp_min(0.05)
    steepness = (wanted[pairs[:, 1]] - wanted[pairs[:, 0]]).norm(dim=1) / distance
    chosen = torch.multinomial(steepness, width, generator=draw)
    low, high = torch.tensor([QUICKEST, SLOWEST]).log()
    leaks = torch.exp(-1 / torch.exp(low + (high - low) * torch.rand(width, generator=draw)))
    settled = (2 * float(neuron.threshold) * (1 - leaks))[:, None]
    weight = settled * apart[chosen] / distance[chosen, None].square()
    synapse.weight.copy_(weight)
    synapse.bias.copy_(-(weight * values[pairs[chosen, 0]]).sum(1))
    neuron.beta = leaks


def _with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
