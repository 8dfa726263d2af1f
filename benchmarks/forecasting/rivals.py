"""What the nets are compared with: two floors, an echo state network, and the sampling of hidden rows of S-SWIM.

Each is written here from its published idea.  Echo state network: Jaeger and Haas, Science 304 (2004).  S-SWIM: Gollwitzer and
Dietrich, arXiv 2510.01012, which samples rows of spiking layers from pairs of data points and spreads the time constants.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from .measure import Predictor, one_step_error, roll_out, valid_times
from .series import Split

__all__ = ["Autoregression", "EchoState", "Persistence", "fit_autoregression", "fit_echo_state", "sample_rows"]

RIDGES = (1e-8, 1e-6, 1e-4, 1e-2)  # over the number of rows
LEAKS, RADII = (0.3, 0.6, 1.0), (0.6, 0.9, 1.2)  # of the echo state network
INPUT_SCALE = 0.5
WASHOUT = 100  # steps before an echo state's fit
LAGS = 20  # values that the autoregression sees
SLOWEST, QUICKEST = 40.0, 2.0  # time constants of sampled rows, steps


class Persistence:
    """The next value is this one."""

    def begin(self) -> Any:
        return None

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return x, state


class Autoregression:
    """The next value is linear in the last ``LAGS`` ones."""

    def __init__(self, channels: int) -> None:
        self.weight = torch.zeros(channels, LAGS * channels + 1)

    def begin(self) -> Any:
        return None

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = x.new_zeros(len(x), LAGS, x.shape[1]) if state is None else state
        state = torch.cat([state[:, 1:], x[:, None]], 1)
        return _with_one(state.flatten(1)) @ self.weight.T, state


class EchoState:
    """Tanh neurons with fixed random weights and a linear readout."""

    def __init__(self, channels: int, width: int, leak: float, radius: float, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        recurrent = torch.randn(width, width, generator=draw)
        self.recurrent = recurrent * radius / float(torch.linalg.eigvals(recurrent).abs().max())
        self.entry = INPUT_SCALE * (2 * torch.rand(width, channels + 1, generator=draw) - 1)
        self.leak, self.weight = leak, torch.zeros(channels, width + 1)

    def begin(self) -> Any:
        return None

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = x.new_zeros(len(x), len(self.recurrent)) if state is None else state
        fresh = torch.tanh(_with_one(x) @ self.entry.T + state @ self.recurrent.T)
        state = (1 - self.leak) * state + self.leak * fresh
        return _with_one(state) @ self.weight.T, state


def fit_autoregression(data: Split) -> tuple[Predictor, dict[str, Any]]:
    """Fit a linear autoregression; its ridge is chosen on validation data."""
    found = Autoregression(data.train.shape[1])
    rows = torch.stack([_with_one(data.train[end - LAGS : end].flatten()[None])[0] for end in range(LAGS, len(data.train))])
    options = []
    for share, weight in ridge(rows, data.train[LAGS:]).items():
        found.weight = weight
        options.append((one_step_error(found, data.validation), share, weight))
    _, share, found.weight = min(options, key=lambda option: option[0])
    return found, {"ridge": share}


def fit_echo_state(data: Split, width: int, seed: int) -> tuple[Predictor, dict[str, Any]]:
    """Fit echo state networks over a grid of leaks, radii and ridges; the longest valid time on validation data decides."""
    best: tuple[float, EchoState, dict[str, Any]] | None = None
    for leak, radius in product(LEAKS, RADII):
        network = EchoState(data.train.shape[1], width, leak, radius, seed)
        state, rows = network.begin(), []
        for value in data.train[:-1]:
            _, state = network.step(value[None], state)
            rows.append(state[0])
        features = _with_one(torch.stack(rows)[WASHOUT:])
        for share, weight in ridge(features, data.train[WASHOUT + 1 :]).items():
            network.weight = weight
            valid = float(valid_times(*roll_out(network, data.validation, 400, 10)).float().mean())
            if best is None or valid > best[0]:
                kept = EchoState(data.train.shape[1], width, leak, radius, seed)
                kept.weight = weight
                best = valid, kept, {"leak": leak, "radius": radius, "ridge": share}
    assert best is not None
    return best[1], best[2]


def ridge(rows: Tensor, targets: Tensor) -> dict[float, Tensor]:
    """Return the ridge readout (C, P) of each share of ``RIDGES``; the last of the P features, the constant, has no penalty."""
    rows, targets = rows.double(), targets.double()
    gram, right = rows.T @ rows / len(rows), rows.T @ targets / len(rows)
    penalty = torch.eye(len(gram), dtype=torch.float64)
    penalty[-1, -1] = 0
    return {share: torch.linalg.solve(gram + share * penalty, right).T.float() for share in RIDGES}


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
