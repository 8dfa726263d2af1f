"""What a hidden layer is worth: the held-out loss of a temporary readout on its spikes."""

from __future__ import annotations

import torch
from torch import Tensor

from snn_recon_plugin.convex import Design, Loss, Problem, solve

from .looks import Looks

__all__ = ["Judge"]

_RIDGES = (1e-1, 1e-2, 1e-3)  # of the features' mean variance: enough to see what a layer is worth
_PRODUCTS = 300  # bound on the work of a solve; on MNIST and on mixed labels 155 to 205 reach the tolerance
_FOLDS = 4
_MAX_FEATURES = 2000  # a convolution has more; a seeded choice of them judges the gain as well


class Judge:
    """Held-out loss of a temporary ridge readout, by cross-validation: each sample is held out once.

    Args:
        targets: the samples' targets.
        num_outputs: outputs of the readout.
        looks: where the readout looks at a sample.
        loss: the loss.
        seed: of the parts that are held out one after the other.
        among: (k,) which samples count; None means all.
    """

    def __init__(self, targets: Tensor, num_outputs: int, looks: Looks, loss: Loss, seed: int, among: Tensor | None = None) -> None:
        self.targets, self.num_outputs, self.loss = targets, num_outputs, loss
        self.looks = looks
        order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
        if among is not None:
            order = order[torch.isin(order, among.cpu())]
        self.parts = order.tensor_split(min(_FOLDS, len(order)))

    def of_spikes(self, spikes: Tensor) -> float:
        """Least held-out loss over a few ridge strengths for what a layer emits, ``[T, n, *]``."""
        return self._heldout_loss(self.looks.of_spikes(_some(spikes.flatten(2))))

    def of_features(self, features: Tensor) -> float:
        """The same for features of the readout, ``[n, P]`` or ``[n, T, P]``."""
        return self._heldout_loss(self.looks.of_features(_some(features)))

    def _heldout_loss(self, features: Tensor) -> float:
        variance = float(features.double().var(0, correction=0).mean())
        if variance <= 1e-12 * float(features.double().square().mean()):  # the same for all samples, up to rounding
            return torch.inf
        total = 0.0
        shares: tuple[float, ...] = _RIDGES
        for number, held in enumerate(self.parts):
            fitted = torch.cat([part for other, part in enumerate(self.parts) if other != number])
            base, compared = self._problem(features, fitted), self._problem(features, held)
            losses: dict[float, float] = {}
            start = None
            for share in shares:
                solution = solve(base.with_strength(share * variance), tol=1e-3, start=start, max_products=_PRODUCTS)
                start = (solution.weight, solution.bias)
                losses[share] = compared.mean_loss(compared.design.scores(*start))
                if losses[share] > min(losses.values()):
                    break
            best = min(losses, key=lambda share: losses[share])
            shares = (best,)  # the first part chooses the ridge for all
            total += len(held) * losses[best]
        return total / sum(map(len, self.parts))

    def _problem(self, features: Tensor, samples: Tensor) -> Problem:
        samples = samples.to(features.device)
        design = Design(features[self.looks.rows(samples)], self.looks.column(len(samples)))
        targets = self.looks.targets(self.targets[samples])
        return Problem(design, targets, loss=self.loss, penalty="ridge", num_outputs=self.num_outputs)


def _some(values: Tensor) -> Tensor:
    """Some of the features, the last axis, where there are very many."""
    if values.shape[-1] <= _MAX_FEATURES:
        return values
    chosen = torch.randperm(values.shape[-1], generator=torch.Generator().manual_seed(0))[:_MAX_FEATURES]
    return values[..., chosen.to(values.device)]
