"""Temporary readouts of hidden layers: their rows of a sample, and their held-out loss by cross-validation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..convex import Features, Loss, Problem, solve
from ..networks import Readout

__all__ = ["CrossValidation", "TemporaryReadout", "make_cross_validation", "make_temporary_readout"]

_MAX_STEPS = 4  # steps of a sample that are fitted; neighbouring steps add little
_RIDGES = (1e-1, 1e-2, 1e-3)  # in units of the features' mean variance; finer steps change no decision
_MAX_PRODUCTS = 300  # bound on the work of a solve; on MNIST and on mixed labels 155 to 205 reach the tolerance
_FOLDS = 4
_MAX_FEATURES = 2000  # a convolution has more; a random choice of them ranks gains equally well


@dataclass(frozen=True)
class TemporaryReadout:
    """Rows of a sample in the program of a temporary readout: one, or one for each of a few steps with their own targets.

    Args:
        filters: (K, T), temporal filter of each row.
        gains: (K,), contribution of a unit of bias.
        steps: (K,), the step of each row; None for one target a sample, where K is 1.
    """

    filters: Tensor
    gains: Tensor
    steps: Tensor | None = None

    @property
    def rows_each(self) -> int:
        """Rows of a sample, K."""
        return len(self.filters)

    @property
    def num_steps(self) -> int:
        """Steps of the net, T."""
        return self.filters.shape[1]

    def find_rows(self, samples: Tensor) -> Tensor:
        """Return the indices of the rows of samples (k,), (k * K,)."""
        each = torch.arange(self.rows_each, device=samples.device)
        return (samples[:, None] * self.rows_each + each).flatten()

    def take_targets(self, targets: Tensor) -> Tensor:
        """Return the targets of all rows."""
        return targets if self.steps is None else targets[:, self.steps.to(targets.device)].flatten(0, 1)

    def take_weights(self, weights: Tensor | None) -> Tensor | None:
        """Return the weights of all rows, from weights (n,) or, with targets at every step, (n, T)."""
        return None if weights is None else self.take_targets(weights)

    def filter_spikes(self, spikes: Tensor) -> Tensor:
        """Return features (n * K, P) of spikes ``[T, n, P]``."""
        return torch.einsum("kt,tnp->nkp", self.filters.to(spikes), spikes).flatten(0, 1)

    def take_features(self, features: Tensor) -> Tensor:
        """Return features (n * K, P) of the net's own readout features, (n, P) or (n, T, P)."""
        if features.dim() == 2:
            return features
        return features.mean(1) if self.steps is None else features[:, self.steps.to(features.device)].flatten(0, 1)

    def bias_column(self, samples: int) -> float | Tensor | None:
        """Contribution of a unit of bias to the scores of some samples; None without any."""
        if self.steps is None:
            return float(self.gains[0]) or None
        return self.gains.repeat(samples) if bool((self.gains != 0).any()) else None


def make_temporary_readout(readout: Readout, stepwise: bool = False) -> TemporaryReadout:
    """Return the temporary readout that filters spikes as the net's readout does.

    Args:
        readout: the net's readout.
        stepwise: whether each step has its own target; a few steps are then fitted, evenly spread and with the last one.
    """
    if not stepwise:
        return TemporaryReadout(readout.filter[None], torch.tensor([readout.bias_gain], dtype=torch.float64))
    matrix = readout.matrix
    count = min(_MAX_STEPS, len(matrix))
    steps = torch.linspace(0, len(matrix), count + 1)[1:].round().long() - 1
    return TemporaryReadout(matrix[steps], readout.bias_gains[steps], steps)


@dataclass(frozen=True)
class CrossValidation:
    """Held-out loss of a temporary ridge readout; each sample is held out once.

    Args:
        readout: the temporary readout.
        targets: (n,) or, for targets at every step, (n, T).
        num_outputs: outputs of the readout.
        loss: the loss.
        folds: indices of the samples held out together.
    """

    readout: TemporaryReadout
    targets: Tensor
    num_outputs: int
    loss: Loss
    folds: tuple[Tensor, ...]

    def evaluate_spikes(self, spikes: Tensor) -> float:
        """Return the least held-out loss over a few ridge strengths, for spikes of a layer ``[T, n, *]``."""
        return self._heldout_loss(self.readout.filter_spikes(_take_some(spikes.flatten(2))))

    def evaluate_features(self, features: Tensor) -> float:
        """Return the same loss for features of the net's readout, ``[n, P]`` or ``[n, T, P]``."""
        return self._heldout_loss(self.readout.take_features(_take_some(features)))

    def _heldout_loss(self, features: Tensor) -> float:
        variance = float(features.double().var(0, correction=0).mean())
        if variance <= 1e-12 * float(features.double().square().mean()):  # constant over samples, up to rounding
            return torch.inf
        total = 0.0
        shares: tuple[float, ...] = _RIDGES
        for number, heldout in enumerate(self.folds):
            fitted = torch.cat([fold for other, fold in enumerate(self.folds) if other != number])
            program, validation = self._problem(features, fitted), self._problem(features, heldout)
            losses: dict[float, float] = {}
            start = None
            for share in shares:
                solution = solve(program.with_strength(share * variance), tol=1e-3, start=start, max_products=_MAX_PRODUCTS)
                start = (solution.weight, solution.bias)
                losses[share] = validation.mean_loss(validation.features.scores(*start))
                if losses[share] > min(losses.values()):
                    break
            best = min(losses, key=lambda share: losses[share])
            shares = (best,)  # the first fold chooses the ridge for all
            total += len(heldout) * losses[best]
        return total / sum(map(len, self.folds))

    def _problem(self, features: Tensor, samples: Tensor) -> Problem:
        samples = samples.to(features.device)
        design = Features(features[self.readout.find_rows(samples)], self.readout.bias_column(len(samples)))
        targets = self.readout.take_targets(self.targets[samples])
        return Problem(design, targets, loss=self.loss, penalty="ridge", num_outputs=self.num_outputs)


def make_cross_validation(
    readout: TemporaryReadout, targets: Tensor, num_outputs: int, loss: Loss, seed: int, samples: Tensor | None = None
) -> CrossValidation:
    """Split samples into folds at random.

    Args:
        readout: the temporary readout.
        targets: of all samples.
        num_outputs: outputs of the readout.
        loss: the loss.
        seed: of the split.
        samples: (k,), the samples to use; default all.
    """
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    if samples is not None:
        order = order[torch.isin(order, samples.cpu())]
    return CrossValidation(readout, targets, num_outputs, loss, order.tensor_split(min(_FOLDS, len(order))))


def _take_some(values: Tensor) -> Tensor:
    """Return at most ``_MAX_FEATURES`` features, the last axis, chosen at random."""
    if values.shape[-1] <= _MAX_FEATURES:
        return values
    chosen = torch.randperm(values.shape[-1], generator=torch.Generator().manual_seed(0))[:_MAX_FEATURES]
    return values[..., chosen.to(values.device)]
