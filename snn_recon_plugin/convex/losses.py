"""Losses of class probabilities, as in arXiv 2605.08022, section 3, with standard conjugates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import DataError, OptionError
from .checks import class_indices
from .curvature import Curvature
from .loss import Loss, OutputLoss, TorchLosses


class CrossEntropy(Loss):
    """Cross-entropy ``logsumexp(z) - t'z`` for C >= 2 classes; conjugate ``sum q log q`` with ``q = t + u`` in the simplex.

    All classes get the share ``smoothing`` of the target t equally, 0 to 1, as by torch's ``label_smoothing``.
    """

    name, substitute = "cross_entropy", "squared_hinge"
    max_curvature = 0.5
    has_temperature, softmax = True, True
    torch_losses: ClassVar[TorchLosses] = {nn.CrossEntropyLoss: functional.cross_entropy, nn.NLLLoss: functional.nll_loss}

    def __init__(self, smoothing: float = 0.0) -> None:
        if not 0 <= smoothing <= 1:
            raise OptionError(f"smoothing={smoothing!r}", "a share from 0 to 1", "pass smoothing=0.1")
        self.smoothing = smoothing
        if smoothing:
            self.name = f"cross_entropy(label_smoothing={smoothing:g})"

    @classmethod
    def of_torch(cls, loss: Any) -> CrossEntropy:
        smoothing = float(getattr(loss, "label_smoothing", 0.0))
        return cls(smoothing) if not smoothing or loss.weight is None else WeightedSmoothing(smoothing, loss.weight.tolist())

    def prepare(self, targets: Tensor, num_outputs: int) -> Tensor:
        """Return class indices (n,) of at least two classes."""
        if num_outputs < 2:
            fix = "pass loss='logistic' for labels 0 and 1, or loss=nn.MSELoss() for values"
            raise DataError(f"{self.name} with one output", "at least two outputs", fix)
        return class_indices(targets, num_outputs)

    def value(self, scores: Tensor, targets: Tensor) -> Tensor:
        labelled = scores.gather(1, targets[:, None])[:, 0]
        if self.smoothing:
            labelled = (1 - self.smoothing) * labelled + self.smoothing * scores.mean(1)
        return torch.logsumexp(scores, 1) - labelled

    def gradient(self, scores: Tensor, targets: Tensor) -> Tensor:
        return self._less_target(_softmax(scores), targets)

    def curvature(self, scores: Tensor, targets: Tensor) -> Curvature:
        probabilities = _softmax(scores)
        return Curvature(probabilities, probabilities)

    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        mass = -self._less_target(-dual, targets)
        outside = (mass < -1e-9).any(1) | ((mass.sum(1) - 1).abs() > 1e-6)
        return torch.where(outside, torch.inf, torch.special.xlogy(mass.clamp_min(0), mass.clamp_min(0)).sum(1))

    def cvxpy_sum(self, cvxpy: Any, scores: Any, targets: Tensor, weights: npt.NDArray[np.float64]) -> Any:
        hot = -self._less_target(torch.zeros(scores.shape, dtype=torch.float64, device="cpu"), targets.cpu()).numpy()
        return weights @ (cvxpy.log_sum_exp(scores, axis=1) - cvxpy.sum(cvxpy.multiply(hot, scores), axis=1))

    def _less_target(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Subtract t from rows (n, C), in place."""
        if self.smoothing:
            rows -= self.smoothing / rows.shape[1]
        rows[torch.arange(len(targets), device=targets.device), targets] -= 1 - self.smoothing
        return rows


class WeightedSmoothing(CrossEntropy):
    """Cross-entropy of smoothed targets with class weights w: torch weighs both parts of a target.

    The target of label y is ``(1 - smoothing) w_y`` on y, and ``smoothing w_c / C`` on every class c, over their sum.  That sum is
    the weight of the row.
    """

    def __init__(self, smoothing: float, weight: Sequence[float]) -> None:
        super().__init__(smoothing)
        self.weight = tuple(weight)

    def class_weights(self, weight: Tensor) -> Tensor:
        return (1 - self.smoothing) * weight + self.smoothing * weight.mean()

    def prepare(self, targets: Tensor, num_outputs: int) -> Tensor:
        if num_outputs != len(self.weight):
            found, fix = f"{len(self.weight)} class weights for {num_outputs} outputs", f"pass weight= of {num_outputs} numbers"
            raise OptionError(found, "one weight for each output of the readout", fix)
        return super().prepare(targets, num_outputs)

    def value(self, scores: Tensor, targets: Tensor) -> Tensor:
        return torch.logsumexp(scores, 1) + (self._less_target(torch.zeros_like(scores), targets) * scores).sum(1)

    def _less_target(self, rows: Tensor, targets: Tensor) -> Tensor:
        weight = rows.new_tensor(self.weight)
        parts = (1 - self.smoothing) * weight.diag() + self.smoothing / len(weight) * weight
        rows -= (parts / self.class_weights(weight)[:, None])[targets]
        return rows


def _softmax(scores: Tensor) -> Tensor:
    """Return the softmax over the classes, in a sixth of torch.softmax's time for such short rows."""
    powers = (scores - scores.amax(1, keepdim=True)).exp_()
    return powers.div_(powers.sum(1, keepdim=True))


class Logistic(OutputLoss):
    """Logistic loss ``log(1 + exp(-y z))`` summed over outputs, y = +-1: one output is binary, several are one against the rest.

    Its conjugate is ``q log q + (1 - q) log(1 - q)`` with ``q = -y u`` in [0, 1].
    """

    name = "logistic"
    max_curvature = 0.25
    has_temperature = True
    torch_losses: ClassVar[TorchLosses] = {
        nn.BCEWithLogitsLoss: functional.binary_cross_entropy_with_logits,
        nn.MultiLabelSoftMarginLoss: functional.multilabel_soft_margin_loss,
    }

    @classmethod
    def of_torch(cls, loss: Any) -> Logistic:
        given = {name: getattr(loss, name, None) for name in ("weight", "pos_weight")}
        if all(value is None for value in given.values()):
            return cls()
        weight, positive = (torch.ones(1) if value is None else value.detach().double() for value in given.values())
        for option, value in zip(given, (weight, positive), strict=True):
            if value.dim() > 1 or not bool(((value > 0) & torch.isfinite(value)).all()):
                found = f"{option}= in {type(loss).__name__}, of shape {tuple(value.shape)}, from {float(value.min()):g}"
                raise OptionError(found, "finite weights above 0, one for each output", f"pass {option}=torch.ones(outputs)")
        return WeightedLogistic((weight * positive).flatten().tolist(), weight.flatten().tolist())

    def by_output(self, scores: Tensor, targets: Tensor) -> Tensor:
        return functional.softplus(-targets.to(scores.dtype) * scores, threshold=50)

    def gradient(self, scores: Tensor, targets: Tensor) -> Tensor:
        signs = targets.to(scores.dtype)
        return -signs * torch.sigmoid(-signs * scores)

    def curvature(self, scores: Tensor, targets: Tensor) -> Curvature:
        return Curvature(torch.sigmoid(scores) * torch.sigmoid(-scores))

    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        return self._entropies(dual, targets, 1.0)

    def _entropies(self, dual: Tensor, targets: Tensor, sizes: float | Tensor) -> Tensor:
        """Return the sums over outputs of the conjugate times ``sizes``, (n,)."""
        mass = -targets.to(dual.dtype) * dual
        outside = ((mass < -1e-9) | (mass > 1 + 1e-9)).any(1)
        mass = mass.clamp(0, 1)
        entropy = torch.special.xlogy(mass, mass) + torch.special.xlogy(1 - mass, 1 - mass)
        return torch.where(outside, torch.inf, (sizes * entropy).sum(1))

    def cvxpy_sum(self, cvxpy: Any, scores: Any, targets: Tensor, weights: npt.NDArray[np.float64]) -> Any:
        return weights @ cvxpy.sum(cvxpy.logistic(-cvxpy.multiply(targets.cpu().numpy(), scores)), axis=1)


class WeightedLogistic(Logistic):
    """Logistic loss with a weight for each output and label, the size a of its targets ``a y``; conjugate ``a h(u / a)``.

    Args:
        positive: weights of label 1, one for each output or one for all, above 0.
        negative: weights of label 0.
    """

    def __init__(self, positive: Sequence[float], negative: Sequence[float]) -> None:
        self.positive, self.negative = tuple(positive), tuple(negative)
        self.max_curvature = 0.25 * max(*self.positive, *self.negative)
        self.name = "logistic(weighted)"

    def class_weights(self, weight: Tensor) -> None:
        return None

    def prepare(self, targets: Tensor, num_outputs: int) -> Tensor:
        """Return the targets as the weights of their labels, negative for label 0, (n, C)."""
        for weights in (self.positive, self.negative):
            if len(weights) not in (1, num_outputs):
                found, fix = f"{len(weights)} weights for {num_outputs} outputs", f"pass {num_outputs} weights"
                raise OptionError(found, "one weight for each output of the readout", fix)
        signs = super().prepare(targets, num_outputs)
        return torch.where(signs > 0, signs.new_tensor(self.positive), -signs.new_tensor(self.negative))

    def by_output(self, scores: Tensor, targets: Tensor) -> Tensor:
        return targets.abs().to(scores.dtype) * super().by_output(scores, targets.sign())

    def gradient(self, scores: Tensor, targets: Tensor) -> Tensor:
        return targets.abs().to(scores.dtype) * super().gradient(scores, targets.sign())

    def curvature(self, scores: Tensor, targets: Tensor) -> Curvature:
        return Curvature(targets.abs().to(scores.dtype) * torch.sigmoid(scores) * torch.sigmoid(-scores))

    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        sizes = targets.abs().to(dual.dtype)
        return self._entropies(dual / sizes, targets.sign(), sizes)

    def cvxpy_sum(self, cvxpy: Any, scores: Any, targets: Tensor, weights: npt.NDArray[np.float64]) -> Any:
        signed = targets.cpu().numpy()
        losses = cvxpy.multiply(np.abs(signed), cvxpy.logistic(-cvxpy.multiply(np.sign(signed), scores)))
        return weights @ cvxpy.sum(losses, axis=1)
