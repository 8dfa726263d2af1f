"""Protection of what was solved: shorter optimizer steps after a write, and optimizers without stale memory.

Two things lower accuracy in the first steps after a write.  An optimizer that remembers the old readout moves the new one by that
memory.  And hidden layers move under a readout that was tuned to them.  An adaptive optimizer without memory moves each weight by
the whole learning rate, so steps start short.  SGD at a rate that suits fresh weights moves solved ones by a tenth of their norm.
So each step of a weight matrix is limited to a share of its norm, whatever the optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ..errors import OptionError

__all__ = ["StepLimiter", "check_optimizers", "clear_optimizer_state", "step_scale"]

_RAMP = 20  # steps until the readout takes whole steps
_HIDDEN_RAMP = 50  # steps until hidden layers take their share of a step
_SPIKING = 0.5  # scale of the limit where scores come from spiking or resetting neurons: small changes flip their decisions
_SUBSTITUTED = 0.5  # further scale where another loss was solved: the training loss has its minimum further away
_LATER = 10  # scale of the limit after the protected steps: it still stops a rate that is far too high
_FLOOR = 0.1  # least norm of a matrix, times the root of its rows, or a matrix of zeros could never grow


class StepLimiter:
    """Limiter of optimizer steps after a write, which moves parameters part of the way back.

    Args:
        steps: number of protected steps; limits are lifted over a quarter as many more.  None: protect for good.  0: never.
        rate: share of its step that a hidden parameter takes, reached within the first 50 steps.
        change: largest step of a matrix or kernel, as a share of its Frobenius norm; ten times as large afterwards.
        done: steps since the write, from a checkpoint; infinite if nothing was written.
        scale: factor of ``change`` during the protected steps, from ``step_scale``.
    """

    def __init__(
        self, steps: int | None, rate: float, change: float = math.inf, done: float = math.inf, scale: float = 1.0
    ) -> None:
        self.steps = math.inf if steps is None else steps
        self.rate = rate
        self.change = change
        self.done, self.scale = done, scale
        self._before: list[tuple[nn.Parameter, Tensor]] = []
        self._number = -1  # of optimizer steps before the batch

    def begin(self, scale: float = 1.0) -> None:
        """Start the protection, right after a write."""
        self.done = 0
        self.scale = scale
        self._before = []

    def before_batch(self, number: int, parameters: Iterable[nn.Parameter]) -> None:
        """Remember the number of optimizer steps, and all parameters that are trained."""
        self._number = number
        if self.steps and self.done < math.inf and not self._before:
            self._before = [(parameter, parameter.detach().clone()) for parameter in parameters if parameter.requires_grad]

    def after_batch(self, number: int, readout: Iterable[nn.Parameter]) -> bool:
        """Shorten the step; return False if there was none, since gradients are only accumulated."""
        if number <= self._number:
            return False
        if self._before:
            self._shorten(readout)
        return True

    def _shorten(self, readout: Iterable[nn.Parameter]) -> None:
        self.done += 1
        hidden, ramp = self.hidden_share(self.done), min(1.0, self.done / max(1, min(_RAMP, self.steps)))
        limit = self.limit(self.done)
        solved = {id(parameter) for parameter in readout}
        with torch.no_grad():
            for parameter, before in self._before:
                share = ramp if id(parameter) in solved else hidden
                if parameter.dim() > 1 and math.isfinite(limit):
                    parameter.copy_(torch.lerp(before, parameter, _share_within(parameter, before, share, limit)))
                elif share < 1:
                    parameter.copy_(torch.lerp(before, parameter, share))
        self._before = []

    def hidden_share(self, step: float) -> float:
        """Return the share of step number ``step`` after a write that hidden parameters take."""
        late = self._lateness(step)
        ramp = min(1.0, step / max(1, min(_HIDDEN_RAMP, self.steps)))
        return float(ramp * min(1.0, self.rate ** (1 - late)))

    def limit(self, step: float) -> float:
        """Return the largest move of a matrix in step number ``step`` after a write, as a share of its norm."""
        late = self._lateness(step)
        return float(self.change * self.scale ** (1 - late) * _LATER**late)

    def _lateness(self, step: float) -> float:
        """Return 0 during the protected steps, growing to 1 when the limits are lifted."""
        return float(min(1.0, max(0, step - self.steps) / max(1, self.steps / 4)))


def step_scale(surrogate: bool, substituted: bool) -> float:
    """Return the factor of the step limit after a write, by spiking or resetting output neurons and a substituted loss."""
    return _SPIKING * (_SUBSTITUTED if substituted else 1.0) if surrogate else 1.0


def _share_within(after: Tensor, before: Tensor, share: float, limit: float) -> Tensor:
    """Return the share of a step, at most ``share``, that moves a matrix by no more than ``limit`` times its norm."""
    norm = torch.linalg.vector_norm(before).clamp(min=_FLOOR * math.sqrt(len(before)))
    moved = torch.linalg.vector_norm(after - before)
    return torch.clamp(limit * norm / moved, max=share)  # without a move infinite, and so ``share``


def clear_optimizer_state(optimizers: Sequence[torch.optim.Optimizer], parameters: Iterable[nn.Parameter]) -> None:
    """Clear what optimizers remember of written parameters, and the gradients of these."""
    written = list(parameters)
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.LBFGS):  # keeps the state of all parameters under the first one
            held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            if any(one is other for one in held for other in written):
                optimizer.state.clear()
        for parameter in written:
            optimizer.state.pop(parameter, None)
    for parameter in written:
        parameter.grad = None


def check_optimizers(optimizers: Sequence[torch.optim.Optimizer], written: Sequence[nn.Parameter]) -> None:
    """Refuse optimizers that hold not all trained parameters that refits write."""
    held = {id(parameter) for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]}
    missing = [parameter for parameter in written if id(parameter) not in held and parameter.requires_grad]
    if optimizers and missing:
        shapes = ", ".join(str(list(parameter.shape)) for parameter in missing)
        raise OptionError(
            f"optimizers that do not hold the readout's parameters of shape {shapes}",
            "optimizers over the parameters of the network that is refitted",
            "make them in configure_optimizers from self.parameters(), after the network is built",
        )
