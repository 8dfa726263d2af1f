"""Where temporary readouts look at a sample: at its one score, or at a few of its steps where each has a target of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snn_recon_plugin.convex.rows import Rows
from snn_recon_plugin.networks import Readout

__all__ = ["Looks", "looks_of"]

_MOST = 4  # steps of a sample: neighbouring ones tell a temporary readout little that is new


@dataclass(frozen=True)
class Looks:
    """The rows that a sample is in a temporary readout's program, all looks of a sample in a row.

    Args:
        filters: (K, T), what spikes count for, a row for each look.
        gains: (K,), what one unit of bias adds.
        steps: (K,), at which steps; None where a sample has one target, and K is 1.
    """

    filters: Tensor
    gains: Tensor
    steps: Tensor | None = None

    @property
    def count(self) -> int:
        """Looks at a sample, K."""
        return len(self.filters)

    @property
    def num_steps(self) -> int:
        """Steps of the net, T."""
        return self.filters.shape[1]

    def rows(self, samples: Tensor) -> Tensor:
        """Indices of the rows of some samples, (k,) to (k * K,)."""
        each = torch.arange(self.count, device=samples.device)
        return (samples[:, None] * self.count + each).flatten()

    def targets(self, targets: Tensor) -> Tensor:
        """Of all rows."""
        return targets if self.steps is None else targets[:, self.steps.to(targets.device)].flatten(0, 1)

    def weights(self, weights: Tensor | None) -> Tensor | None:
        """Of all rows, of weights (n,) or, where steps have targets, (n, T)."""
        return None if weights is None else self.targets(weights)

    def of_spikes(self, spikes: Tensor) -> Tensor:
        """Features (n * K, P) of spikes ``[T, n, P]``."""
        return torch.einsum("kt,tnp->nkp", self.filters.to(spikes), spikes).flatten(0, 1)

    def of_features(self, features: Tensor) -> Tensor:
        """Features (n * K, P) of those of the readout itself, (n, P) or (n, T, P)."""
        if features.dim() == 2:
            return features
        return features.mean(1) if self.steps is None else features[:, self.steps.to(features.device)].flatten(0, 1)

    def column(self, samples: int) -> float | Tensor | None:
        """What one unit of bias adds to the scores of so many samples; None where it adds nothing."""
        if self.steps is None:
            return float(self.gains[0]) or None
        return self.gains.repeat(samples) if bool((self.gains != 0).any()) else None


def looks_of(readout: Readout, rows: Rows) -> Looks:
    """Where to look, for a readout and the rows that a sample is in the final program."""
    if not rows.stepwise:
        return Looks(readout.filter[None], torch.tensor([readout.bias_gain], dtype=torch.float64))
    count = min(_MOST, rows.each)
    steps = torch.linspace(0, rows.each, count + 1)[1:].round().long() - 1  # evenly spread, the last one among them
    return Looks(readout.matrix[steps], readout.bias_gains[steps], steps)
