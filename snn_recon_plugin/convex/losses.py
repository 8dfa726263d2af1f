"""Losses of margins, class probabilities and values, with standard conjugates (arXiv 2605.08022, section 3), and their table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import DataError, OptionError
from .checks import check_name, class_indices, one_hot, positive_number
from .loss import Curvature, Loss, OutputLoss, TorchLosses, zero_of_slope

# Of a margin ``m = y z`` with y = +-1, for each output: squared hinge and hinge.


class SquaredHinge(OutputLoss):
    """Squared hinge ``1/2 max(0, 1 - m)^2``; conjugate ``1/2 u^2 + u y`` where ``u y <= 0``."""

    name, bends = "squared_hinge", "partly"
    max_curvature = 1.0
    torch_losses: ClassVar[TorchLosses] = {nn.MultiMarginLoss: nn.functional.multi_margin_loss}
    equals_torch = False  # that loss compares the scores of a row

    def by_output(self, scores: Tensor, targets: Tensor) -> Tensor:
        return _lack(scores, targets).clamp_min(0).square() / 2

    def gradient(self, scores: Tensor, targets: Tensor) -> Tensor:
        slope = _lack(scores, targets).clamp_min_(0)  # in place, as arrays may be gigabytes
        return slope.mul_(targets.to(scores.dtype)).neg_()

    def curvature(self, scores: Tensor, targets: Tensor) -> Curvature:
        """Return one below the margin, else 0 (one member of the generalised second derivative)."""
        return Curvature((_lack(scores, targets) > 0).to(scores.dtype))

    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        signed = dual * targets.to(dual.dtype)
        return torch.where((signed > 1e-9).any(1), torch.inf, (0.5 * dual.square() + signed).sum(1))

    def cvxpy_sum(self, cvxpy: Any, scores: Any, targets: Tensor, weights: npt.NDArray[np.float64]) -> Any:
        lack = cvxpy.pos(1 - cvxpy.multiply(targets.cpu().numpy(), scores))
        return 0.5 * cvxpy.sum_squares(cvxpy.multiply(weights[:, None] ** 0.5, lack))


class Hinge(OutputLoss):
    """Hinge ``max(0, 1 - m)``; conjugate ``u y`` on ``-1 <= u y <= 0``.  It has a kink, so CVXPY solves its programs."""

    name = "hinge"
    max_curvature, smooth = math.inf, False

    def by_output(self, scores: Tensor, targets: Tensor) -> Tensor:
        return _lack(scores, targets).clamp_min(0)

    def gradient(self, scores: Tensor, targets: Tensor) -> Tensor:
        return -targets.to(scores.dtype) * (_lack(scores, targets) > 0)

    def curvature(self, scores: Tensor, targets: Tensor) -> Curvature:
        return Curvature(torch.zeros_like(scores))

    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        signed = dual * targets.to(dual.dtype)
        outside = ((signed > 1e-9) | (signed < -1 - 1e-9)).any(1)
        return torch.where(outside, torch.inf, signed.sum(1))

    def feasible(self, dual: Tensor, targets: Tensor) -> Tensor:
        signs = targets.to(dual.dtype)
        return signs * (dual * signs).clamp(-1, 0)

    def cvxpy_sum(self, cvxpy: Any, scores: Any, targets: Tensor, weights: npt.NDArray[np.float64]) -> Any:
        return weights @ cvxpy.sum(cvxpy.pos(1 - cvxpy.multiply(targets.cpu().numpy(), scores)), axis=1)


def _lack(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the distances of the margins below 1, (n, C)."""
    return (targets.to(scores.dtype) * scores).neg_().add_(1)


class CrossEntropy(Loss):
    """Cross-entropy ``logsumexp(z) - t'z`` for C >= 2 classes; conjugate ``sum q log q`` with ``q = t + u`` in the simplex.

    All classes get the share ``smoothing`` of the target t equally, 0 to 1, as by torch's ``label_smoothing``.  With class weights
    the target of label y is ``(1 - smoothing) w_y`` on y, and ``smoothing w_c / C`` on every class c, over their sum, its weight.
    """

    name, substitute = "cross_entropy", "squared_hinge"
    max_curvature = 0.5
    has_temperature, softmax = True, True
    torch_losses: ClassVar[TorchLosses] = {nn.CrossEntropyLoss: functional.cross_entropy, nn.NLLLoss: functional.nll_loss}

    def __init__(self, smoothing: float = 0.0, weight: Sequence[float] = ()) -> None:
        if not 0 <= smoothing <= 1:
            raise OptionError(f"smoothing={smoothing!r}", "a share from 0 to 1", "pass smoothing=0.1")
        self.smoothing, self.weight = smoothing, tuple(weight)
        if smoothing:
            self.name = f"cross_entropy(label_smoothing={smoothing:g})"

    @classmethod
    def of_torch(cls, loss: Any) -> CrossEntropy:
        smoothing = float(getattr(loss, "label_smoothing", 0.0))
        return cls(smoothing, () if not smoothing or loss.weight is None else loss.weight.tolist())

    def class_weights(self, weight: Tensor) -> Tensor:
        return (1 - self.smoothing) * weight + self.smoothing * weight.mean() if self.weight else weight

    def prepare(self, targets: Tensor, num_outputs: int) -> Tensor:
        """Return class indices (n,) of at least two classes."""
        if num_outputs < 2:
            fix = "pass loss='logistic' for labels 0 and 1, or loss=nn.MSELoss() for values"
            raise DataError(f"{self.name} with one output", "at least two outputs", fix)
        if self.weight and num_outputs != len(self.weight):
            found, fix = f"{len(self.weight)} class weights for {num_outputs} outputs", f"pass weight= of {num_outputs} numbers"
            raise OptionError(found, "one weight for each output of the readout", fix)
        return class_indices(targets, num_outputs)

    def value(self, scores: Tensor, targets: Tensor) -> Tensor:
        labelled = scores.gather(1, targets[:, None])[:, 0]
        if self.weight:
            labelled = -(self._less_target(torch.zeros_like(scores), targets) * scores).sum(1)
        elif self.smoothing:
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
        if self.weight:
            weight = rows.new_tensor(self.weight)
            parts = (1 - self.smoothing) * weight.diag() + self.smoothing / len(weight) * weight
            rows -= (parts / self.class_weights(weight)[:, None])[targets]
            return rows
        if self.smoothing:
            rows -= self.smoothing / rows.shape[1]
        rows[torch.arange(len(targets), device=targets.device), targets] -= 1 - self.smoothing
        return rows


def _softmax(scores: Tensor) -> Tensor:
    """Return the softmax over the classes, in a sixth of torch.softmax's time for such short rows."""
    powers = (scores - scores.amax(1, keepdim=True)).exp_()
    return powers.div_(powers.sum(1, keepdim=True))


class Logistic(OutputLoss):
    """Logistic loss ``a log(1 + exp(-y z))`` summed over outputs, y = +-1: one output is binary, several are one against the rest.

    The size a of a target ``a y`` is the weight above 0 of its label, 1 or 0, for each output or for all; 1 by default.
    The conjugate is ``a (q log q + (1 - q) log(1 - q))`` with ``q = -y u / a`` in [0, 1].
    """

    name = "logistic"
    max_curvature = 0.25
    has_temperature = True
    weighted = False  # True if a weight is not 1: without it, products with the weights are left out
    torch_losses: ClassVar[TorchLosses] = {
        nn.BCEWithLogitsLoss: functional.binary_cross_entropy_with_logits,
        nn.MultiLabelSoftMarginLoss: functional.multilabel_soft_margin_loss,
    }

    def __init__(self, positive: Sequence[float] = (1.0,), negative: Sequence[float] = (1.0,)) -> None:
        self.positive, self.negative = tuple(positive), tuple(negative)
        if {*self.positive, *self.negative} != {1.0}:
            self.weighted, self.name = True, "logistic(weighted)"
            self.max_curvature = 0.25 * max(*self.positive, *self.negative)

    @classmethod
    def of_torch(cls, loss: Any) -> Logistic:
        given = {name: getattr(loss, name, None) for name in ("weight", "pos_weight")}
        weight, positive = (torch.ones(1) if value is None else value.detach().double() for value in given.values())
        for option, value in zip(given, (weight, positive), strict=True):
            if value.dim() > 1 or not bool(((value > 0) & torch.isfinite(value)).all()):
                found = f"{option}= in {type(loss).__name__}, of shape {tuple(value.shape)}, from {float(value.min()):g}"
                raise OptionError(found, "finite weights above 0, one for each output", f"pass {option}=torch.ones(outputs)")
        return cls((weight * positive).flatten().tolist(), weight.flatten().tolist())

    def class_weights(self, weight: Tensor) -> None:
        return None

    def prepare(self, targets: Tensor, num_outputs: int) -> Tensor:
        """Return the targets as the weights of their labels, negative for label 0, (n, C)."""
        for weights in (self.positive, self.negative):
            if len(weights) not in (1, num_outputs):
                found, fix = f"{len(weights)} weights for {num_outputs} outputs", f"pass {num_outputs} weights"
                raise OptionError(found, "one weight for each output of the readout", fix)
        signs = super().prepare(targets, num_outputs)
        if not self.weighted:
            return signs
        return torch.where(signs > 0, signs.new_tensor(self.positive), -signs.new_tensor(self.negative))

    def by_output(self, scores: Tensor, targets: Tensor) -> Tensor:
        return self._weigh(functional.softplus(-targets.sign().to(scores.dtype) * scores, threshold=50), targets)

    def gradient(self, scores: Tensor, targets: Tensor) -> Tensor:
        targets = targets.to(scores.dtype)
        return -targets * torch.sigmoid(-targets.sign() * scores)

    def curvature(self, scores: Tensor, targets: Tensor) -> Curvature:
        return Curvature(self._weigh(torch.sigmoid(scores), targets) * torch.sigmoid(-scores))

    def _weigh(self, values: Tensor, targets: Tensor) -> Tensor:
        return values * targets.abs().to(values.dtype) if self.weighted else values

    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        mass = -dual / targets.to(dual.dtype)
        outside = ((mass < -1e-9) | (mass > 1 + 1e-9)).any(1)
        mass = mass.clamp(0, 1)
        entropy = torch.special.xlogy(mass, mass) + torch.special.xlogy(1 - mass, 1 - mass)
        return torch.where(outside, torch.inf, self._weigh(entropy, targets).sum(1))

    def cvxpy_sum(self, cvxpy: Any, scores: Any, targets: Tensor, weights: npt.NDArray[np.float64]) -> Any:
        signed = targets.cpu().numpy()
        losses = cvxpy.multiply(np.abs(signed), cvxpy.logistic(-cvxpy.multiply(np.sign(signed), scores)))
        return weights @ cvxpy.sum(losses, axis=1)


class Squared(OutputLoss):
    """Squared loss ``1/2 ||z - y||^2``; conjugate ``1/2 ||u||^2 + u'y``.

    Class labels become one-hot targets; with one output, labels 0 and 1 are the targets 0.0 and 1.0.
    """

    name = "squared"
    max_curvature = 1.0
    binary, fits_values, bends = False, True, "everywhere"
    torch_losses: ClassVar[TorchLosses] = {nn.MSELoss: functional.mse_loss}

    def prepare(self, targets: Tensor, num_outputs: int) -> Tensor:
        """Return floating targets (n, C), or class indices (n,), as float64 of shape (n, C)."""
        if targets.is_floating_point():
            columns = targets[:, None] if targets.dim() == 1 else targets
            if columns.dim() != 2 or columns.shape[1] != num_outputs:
                found, needed = f"regression targets of shape {tuple(targets.shape)}", f"shape (samples, {num_outputs})"
                raise DataError(found, f"{needed}, a value for each output", "reshape them, or build a readout of as many outputs")
            if not bool(torch.isfinite(columns).all()):
                raise DataError("targets with NaN or infinite values", "finite targets", "clean the targets")
            return columns.double()
        return one_hot(targets, num_outputs)

    def by_output(self, scores: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (scores - targets.to(scores.dtype)).square()

    def gradient(self, scores: Tensor, targets: Tensor) -> Tensor:
        return scores - targets.to(scores.dtype)

    def curvature(self, scores: Tensor, targets: Tensor) -> Curvature:
        return Curvature(torch.ones_like(scores))

    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        return (0.5 * dual.square() + dual * targets.to(dual.dtype)).sum(1)

    def cvxpy_sum(self, cvxpy: Any, scores: Any, targets: Tensor, weights: npt.NDArray[np.float64]) -> Any:
        return 0.5 * cvxpy.sum_squares(cvxpy.multiply(weights[:, None] ** 0.5, scores - targets.cpu().numpy()))

    def predictions(self, scores: Tensor) -> Tensor:
        """Return the class of the largest score; for one output, class 1 above the middle of its targets 0 and 1."""
        return super().predictions(scores) if scores.shape[1] > 1 else (scores[:, 0] > 0.5).long()


class Huber(Squared):
    """Squared loss up to a residual ``r = z - y`` of ``width`` (torch's delta), linear beyond: targets that are far off weigh less.

    Conjugate ``1/2 ||u||^2 + u'y`` where no entry of u exceeds the width.
    """

    name, bends = "huber", "partly"
    torch_losses: ClassVar[TorchLosses] = {nn.HuberLoss: functional.huber_loss, nn.SmoothL1Loss: functional.smooth_l1_loss}

    def __init__(self, width: float = 1.0) -> None:
        self.width = positive_number("width", width, "pass width=1.0")
        if width != 1.0:
            self.name = f"huber(delta={width:g})"

    @classmethod
    def of_torch(cls, loss: Any) -> Huber:
        option = "delta" if isinstance(loss, nn.HuberLoss) else "beta"  # SmoothL1Loss is the Huber loss over its beta
        width = float(getattr(loss, option))
        if not width > 0:
            found = f"{option}={width:g} in {type(loss).__name__}, an absolute error with a kink"
            raise OptionError(found, "a value above 0", "pass loss=nn.HuberLoss()")
        return cls(width)

    def by_output(self, scores: Tensor, targets: Tensor) -> Tensor:
        return functional.huber_loss(scores, targets.to(scores.dtype), reduction="none", delta=self.width)

    def gradient(self, scores: Tensor, targets: Tensor) -> Tensor:
        return super().gradient(scores, targets).clamp(-self.width, self.width)

    def curvature(self, scores: Tensor, targets: Tensor) -> Curvature:
        return Curvature(((scores - targets.to(scores.dtype)).abs() <= self.width).to(scores.dtype))

    def conjugate(self, dual: Tensor, targets: Tensor) -> Tensor:
        outside = (dual.abs() > self.width * (1 + 1e-9)).any(1)
        return torch.where(outside, torch.inf, super().conjugate(dual, targets))

    def cvxpy_sum(self, cvxpy: Any, scores: Any, targets: Tensor, weights: npt.NDArray[np.float64]) -> Any:
        """Return the weighted sum; CVXPY's Huber function is twice this one."""
        return 0.5 * weights @ cvxpy.sum(cvxpy.huber(scores - targets.cpu().numpy(), self.width), axis=1)

    def exact_bias(self, column: Tensor, weights: Tensor, scores: Tensor, targets: Tensor) -> Tensor:
        """Sort the bends of the slope, which starts at ``-width sum_i weights_i |c_i|``; rows raise it within the width."""
        rows = (weights * column != 0).nonzero()[:, 0]
        column, weights = column[rows, None], weights[rows, None]
        centre, half = (targets[rows] - scores[rows]) / column, self.width / column.abs()
        rate = (weights * column.square()).expand_as(centre)
        return zero_of_slope(torch.stack([centre - half, centre + half]), rate, -self.width * (weights * column.abs()).sum(0))


LOSSES: dict[str, type[Loss]] = {kind.name: kind for kind in (CrossEntropy, Logistic, Hinge, SquaredHinge, Squared, Huber)}
# Losses of torch that one of these stands for, by their functions.
TORCH_LOSSES = {function: module for kind in LOSSES.values() for module, function in kind.torch_losses.items()}
# Short names, as people type them, and the losses that they stand for.
_SHORT = {"ce": "cross_entropy", "nll": "cross_entropy", "bce": "logistic", "mse": "squared", "smooth_l1": "huber"}


def make_loss(loss: str | Loss) -> Loss:
    """Return a loss by name, or the given Loss; raise an OptionError that lists the valid names for an unknown one."""
    if isinstance(loss, Loss):
        return loss
    check_name("loss", _SHORT.get(loss, loss), sorted(LOSSES), "cross_entropy")
    return LOSSES[_SHORT.get(loss, loss)]()
