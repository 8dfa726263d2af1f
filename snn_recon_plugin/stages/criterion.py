"""Training losses of torch and snnTorch, translated into losses of the convex program.

A loss of snnTorch takes values over time.  It states two things: the loss of a row of scores, and how scores come from the values
(their sum, their maximum, or one row a step).  Losses are recognised by their class; snnTorch is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from ..convex import LOSSES, Loss, Squared, make_loss
from ..convex.checks import plain_number
from ..convex.losses import TORCH_LOSSES
from ..errors import DataError, OptionError, warn_user

# Cross-entropies of snnTorch: decoding over time, and the values decoded.
_CROSS_ENTROPIES = {
    "ce_rate_loss": ("per_step", "spikes"),
    "ce_count_loss": ("sum", "spikes"),
    "ce_max_membrane_loss": ("max", "membranes"),
    "ce_temporal_loss": ("first", "spikes"),
}
_KNOWN = (
    f"nn.{', '.join(module.__name__ for module in TORCH_LOSSES.values())}, or "
    "snntorch.functional's ce_rate_loss, ce_count_loss, ce_max_membrane_loss, ce_temporal_loss, mse_count_loss or mse_membrane_loss"
)
_HUBER = "pass loss=nn.HuberLoss(), which is an absolute error but for small ones"
_INSTEAD = {  # of losses that no program has
    "L1Loss": _HUBER,
    "l1_loss": _HUBER,
    "BCELoss": "pass loss=nn.BCEWithLogitsLoss(), and return scores from before the sigmoid",
    "MultiLabelMarginLoss": "pass loss=nn.BCEWithLogitsLoss(), with a 0 or 1 for each output",
    "mse_temporal_loss": "pass loss=SF.ce_temporal_loss(), for the class that spikes first",
}
_USUAL = "cross_entropy"
_ATTRIBUTES = ("loss_fn", "criterion", "loss")  # by which modules name their training loss
_STEPS = 1000  # at which target counts of two losses are compared: at few steps different rates round to the same counts


@dataclass(frozen=True)
class Labels:
    """Targets of samples in the user's form, and how much each counts."""

    targets: Tensor  # (n, *); a step without a label has the first one of its sample
    weights: Tensor | None  # (n,) by class, or (n, T) of steps, 0 for one without a label; None if all are 1
    labelled: Tensor | None  # (n, T), True for steps with a label; None if all have one

    def __len__(self) -> int:
        return len(self.targets)

    def with_steps(self) -> Labels:
        """Return the same labels with a weight, and a mark, for each step."""
        if self.labelled is not None:
            return self
        ones = torch.ones_like(self.targets, dtype=torch.float64)
        return Labels(self.targets, ones if self.weights is None else self.weights, ones.bool())

    def part(self, samples: Tensor) -> Labels:
        """Return the labels of some samples."""
        parts = (self.targets, self.weights, self.labelled)
        return Labels(*(None if part is None else part[samples.to(part.device)] for part in parts))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Criterion:
    """Training loss, in terms of the convex program."""

    name: str
    loss_for_steps: Callable[[int], Loss]  # the convex loss of a row of scores, for a number of time steps
    decoding: str | None = None  # of values over time: "sum", "max", "first" or "per_step"; None if the loss takes scores
    class_weights: Tensor | None = None  # [C]
    takes: str | None = None  # "spikes" or "membranes" if the network returns both; None if the loss does not decide it
    ignored: int | None = None  # label of samples that the loss leaves out, torch's ignore_index
    num_classes: int | None = None  # of a population code; None for one class an output

    @property
    def content(self) -> tuple[object, ...]:
        """Plain values that are the same for equal losses."""
        weights = None if self.class_weights is None else self.class_weights.tolist()
        return self.name, vars(self.loss_for_steps(_STEPS)), self.decoding, weights, self.ignored, self.num_classes

    def label(self, targets: Tensor) -> Labels:
        """Return the labels in targets, each with its weight; refuse class indices without a weight."""
        if self.ignored is None or targets.is_floating_point() or targets.dim() != 2:
            return Labels(targets, self._weights_by_class(targets), None)
        labelled = targets != self.ignored
        if bool(labelled.all()):
            return Labels(targets, self._weights_by_class(targets), None)
        targets = torch.where(labelled, targets, targets.gather(1, labelled.long().argmax(1, keepdim=True)))
        weights = self._weights_by_class(targets)
        return Labels(targets, labelled.double() if weights is None else labelled * weights, labelled)

    def _weights_by_class(self, targets: Tensor) -> Tensor | None:
        if self.class_weights is None:
            return None
        if targets.is_floating_point() or targets.dim() > 2 or int(targets.max()) >= len(self.class_weights):
            raise OptionError(
                f"{len(self.class_weights)} class weights in {self.name} for targets of shape {tuple(targets.shape)}",
                "one weight for each class, and class indices as targets",
                "pass a loss without weight=, or with one weight for each output of the readout",
            )
        if int(targets.min()) < 0:
            found, needed = f"labels from {int(targets.min())}", f"class indices from 0 to {len(self.class_weights) - 1}"
            raise DataError(found, needed, f"leave such samples out of the loader, or label them with ignore_index={self.ignored}")
        return self.class_weights.to(targets.device)[targets.long()].double()


@dataclass(frozen=True)
class OwnLoss:
    """Loss that a module holds as an attribute, or that a training step calls."""

    loss: object
    place: str  # class and attribute, or "step", for messages and the report
    per_step: bool = False  # a step calls it once a time step
    levels: tuple[float, float] | None = None  # of a squared loss: targets of the wrong classes and of the right one


def own_loss(*modules: nn.Module) -> OwnLoss | str:
    """Return the modules' first loss by the usual names; "cross_entropy" without one, or with a warning for one unknown."""
    for module, name in product(modules, _ATTRIBUTES):
        loss = {**vars(module), **module._modules}.get(name)  # properties and methods may do anything
        if callable(loss):
            found = OwnLoss(loss, f"{type(module).__name__}.{name}")
            try:
                criterion_of(found)
            except OptionError as error:
                warn_user(f"{found.place} is not used, and cross-entropy is solved. {error.found}: {error.fix}.")
                break
            return found
    return _USUAL


class _OnOff(Squared):
    """Squared loss with a target for the right class and one for all others."""

    def __init__(self, on: float, off: float) -> None:
        self.on, self.off = float(on), float(off)

    def prepare(self, targets: Tensor, num_outputs: int) -> Tensor:
        """Return class indices (n,) as (n, C) of on and off, and floating targets unchanged."""
        prepared = super().prepare(targets, num_outputs)
        if targets.is_floating_point():
            return prepared
        if self.on == self.off:
            raise OptionError(
                f"a loss whose target is {self.on:g} for the right class and for all others; snnTorch rounds target counts down",
                "targets that separate the classes: int(num_steps * correct_rate) above int(num_steps * incorrect_rate)",
                "pass e.g. loss=SF.mse_count_loss(correct_rate=1.0, incorrect_rate=0.0), or run more steps",
            )
        return self.off + (self.on - self.off) * prepared


def _clipped(on: float, off: float) -> Loss:
    """Return snnTorch's squared loss: with ``on > off`` the one-hot label times ``on``, clipped at ``off``."""
    return _OnOff(on, max(0.0, float(off)) if on > off else off)


def criterion_of(loss: object) -> Criterion:
    """Translate a name or loss of torch or snntorch.functional; factors are left out, and None is the cross-entropy."""
    if loss is None:
        loss = _USUAL
    if isinstance(loss, OwnLoss):
        criterion = criterion_of(loss.loss)
        criterion = replace(criterion, name=f"{criterion.name} ({loss.place})")
        if loss.levels is not None and loss.levels != (0.0, 1.0):
            off, on = loss.levels
            criterion = replace(criterion, loss_for_steps=lambda steps: _OnOff(on, off))
        return replace(criterion, decoding="per_step") if loss.per_step else criterion
    if isinstance(loss, str):
        convex = make_loss(loss)
        return Criterion(convex.name, lambda steps: convex)
    if isinstance(loss, Loss):
        raise OptionError(f"loss={loss!r}", "a name", f"pass loss={loss.name!r}, or use snn_recon_plugin.convex directly")
    if callable(loss) and isinstance(loss, Hashable) and not isinstance(loss, type) and loss in TORCH_LOSSES:
        loss = TORCH_LOSSES[loss]()
    if type(loss).__module__.startswith("torch.nn.modules"):
        return _of_torch(loss)
    if type(loss).__module__.startswith("snntorch.functional"):
        return _of_snntorch(loss)
    raise _unknown(loss)


def _of_torch(loss: Any) -> Criterion:
    kind = next((kind for kind in LOSSES.values() if isinstance(loss, tuple(kind.torch_losses))), None)
    if kind is None:
        raise _unknown(loss)
    name, convex, ignored = type(loss).__name__, kind.of_torch(loss), getattr(loss, "ignore_index", None)
    shown = name if kind.equals_torch else f"{name}, as {convex.name}"
    weights = None if getattr(loss, "weight", None) is None else convex.class_weights(loss.weight.detach().double())
    return Criterion(shown, lambda steps: convex, None, _weights(weights, name), ignored=ignored)


def _of_snntorch(loss: Any) -> Criterion:
    """Translate a loss of snntorch.functional; its weights differ from torch's by a factor, which moves no minimiser."""
    name, weight = type(loss).__name__, getattr(loss, "weight", None)
    classes = _population(loss) if getattr(loss, "population_code", False) else None
    if name in _CROSS_ENTROPIES:
        decoding, takes = _CROSS_ENTROPIES[name]
        weights = _weights(weight, name)
        return Criterion(name, lambda steps: make_loss("cross_entropy"), decoding, weights, takes, num_classes=classes)
    if name in ("mse_count_loss", "mse_membrane_loss") and weight is not None:
        raise OptionError(f"weight= in {name}", "a squared loss that weighs all samples alike", f"pass {name}() without a weight")
    if name == "mse_count_loss":

        def counts(steps: int) -> Loss:  # snnTorch rounds target counts down to whole numbers
            return _clipped(int(steps * loss.correct_rate), int(steps * loss.incorrect_rate))

        return Criterion(name, counts, "sum", takes="spikes", num_classes=classes)
    if name == "mse_membrane_loss" and not loss.time_var_targets:
        return Criterion(name, lambda steps: _clipped(loss.on_target, loss.off_target), "per_step", takes="membranes")
    raise _unknown(loss)


def _population(loss: Any) -> int:
    name, classes = type(loss).__name__, plain_number(loss.num_classes)
    if name == "ce_rate_loss":
        raise OptionError(
            "population_code=True in ce_rate_loss, which in snnTorch takes labels for outputs and never sums over a class",
            "a loss that sums the spikes of a class's outputs",
            f"train with loss=SF.ce_count_loss(population_code=True, num_classes={int(classes) or 10}), and pass it",
        )
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
        found, needed = f"population_code=True with num_classes={classes!r} in {name}", "the number of classes, at least 2"
        raise OptionError(found, needed, f"pass loss=SF.{name}(population_code=True, num_classes=10)")
    return int(classes)


def _weights(weight: Tensor | None, name: str) -> Tensor | None:
    """Return the class weights of a loss in double precision, or refuse them."""
    if weight is None:
        return None
    weights = torch.as_tensor(weight).detach().double()
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()) or not bool((weights > 0).any()):
        shown = [round(value, 3) for value in weights.flatten().tolist()[:8]]
        found = f"class weights of {name} that are negative, NaN or infinite, or all 0: {shown}"
        fix = f"pass loss={'SF' if name in _CROSS_ENTROPIES else 'nn'}.{name}(weight=...) with valid weights, or without weights"
        raise OptionError(found, "finite class weights of at least 0, not all 0", fix)
    return weights


def _unknown(loss: object) -> OptionError:
    plain = loss is None or isinstance(loss, str | int | float)
    what = repr(loss) if plain else getattr(loss, "__name__", type(loss).__name__)
    fix = _INSTEAD.get(what, "pass loss='cross_entropy'")
    if isinstance(loss, type) and what not in _INSTEAD and what in _KNOWN:
        fix = f"add brackets: pass loss={'SF' if loss.__module__.startswith('snntorch') else 'nn'}.{what}()"
    return OptionError(f"loss={what}", f"one of {sorted(LOSSES)}, {_KNOWN}", fix)
