"""What keeps accuracy from falling in the first steps after a write.

Two things make it fall.  An optimizer that remembers the readout from before moves the new one by that memory; so it is
forgotten, and the first steps are short, since an adaptive optimizer without a memory moves every weight by the whole learning
rate.  And hidden patterns move under a readout that was tuned to them; so the hidden layers go on slowly.  How far a step is too
far depends on the weights and not on the optimizer: SGD at a rate that suits fresh weights moves written ones by a tenth of their
norm.  So no weight matrix moves further in a step than a small part of its norm, and half as far under a readout of spikes, whose
decisions are the less sure of a small change; half as far again where what such a readout was solved by is not the loss that is
trained with, whose minimum is then further away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["Handover", "forget", "reach_after"]

_RAMP = 20  # steps until the readout takes whole ones
_HIDDEN_RAMP = 50  # steps until hidden layers take what they may
_SPIKING = 0.5  # how far a matrix may move, as a share, where scores come from spiking or resetting neurons
_STAND_IN = 0.5  # of that, where another loss was solved in the place of the one that is trained with
_LATER = 10  # times as far as in the first steps a matrix may move later: a rate that is far too fast stays one
_FLOOR = 0.1  # a matrix that is nearly zero counts as one of this times the square root of its rows, or it could never grow


class Handover:
    """Shortened steps after a write, whatever the optimizer: a part of the way that it went is taken back.

    Args:
        steps: for how many steps ``rate`` and ``change`` hold; over a quarter as many again they are loosened.  None: for good;
            0: for none.
        rate: how much of its step a hidden parameter takes, grown to within the first 50 steps; all of it later.
        change: how far a weight matrix or kernel may move in a step, in its Frobenius norm; ten times as far later.  Infinite: as
            far as the optimizer takes it.
        done: steps already taken since the write, from a checkpoint; infinite where there was none.
        share: of ``change``, in these steps; see ``reach_after``.
    """

    def __init__(
        self, steps: int | None, rate: float, change: float = math.inf, done: float = math.inf, share: float = 1.0
    ) -> None:
        self.steps, self.rate, self.change = math.inf if steps is None else steps, rate, change
        self.done, self.share = done, share
        self._before: list[tuple[nn.Parameter, Tensor]] = []

    def begin(self, share: float = 1.0) -> None:
        """Parameters were written, ``share`` as above."""
        self.done, self.share, self._before = 0, share, []

    def before_step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Remembers where parameters are; call it ahead of the optimizer."""
        if self.steps and self.done < math.inf and not self._before:
            self._before = [(parameter, parameter.detach().clone()) for parameter in parameters if parameter.requires_grad]

    def after_step(self, stepped: bool, readout: Iterable[nn.Parameter]) -> None:
        """Takes back a part of the way that the optimizer went since.

        Args:
            stepped: whether it stepped at all; gradients may have been accumulated only.
            readout: the readout's parameters.
        """
        if not self._before or not stepped:
            return
        self.done += 1
        hidden, ramp = self.factor(self.done), min(1.0, self.done / max(1, min(_RAMP, self.steps)))
        change = self.reach(self.done)
        written = {id(parameter) for parameter in readout}
        with torch.no_grad():
            for parameter, before in self._before:
                taken = ramp if id(parameter) in written else hidden
                if parameter.dim() > 1 and math.isfinite(change):
                    parameter.copy_(torch.lerp(before, parameter, _within(parameter, before, taken, change)))
                elif taken < 1:
                    parameter.copy_(torch.lerp(before, parameter, taken))
        self._before = []

    def factor(self, step: float) -> float:
        """How much of step number ``step`` after a write hidden parameters take."""
        late = self._late(step)
        ramp = min(1.0, step / max(1, min(_HIDDEN_RAMP, self.steps)))
        return float(ramp * min(1.0, self.rate ** (1 - late)))

    def reach(self, step: float) -> float:
        """How far a matrix may move in step number ``step`` after a write, in its norm."""
        late = self._late(step)
        return float(self.change * self.share ** (1 - late) * _LATER**late)

    def _late(self, step: float) -> float:
        """How much of the loosening is over, from 0 to 1."""
        return float(min(1.0, max(0, step - self.steps) / max(1, self.steps / 4)))


def reach_after(surrogate: bool, stands_in: bool) -> float:
    """How far a matrix may move in the first steps after a write, as a share.

    Args:
        surrogate: whether scores come from spiking or resetting neurons.
        stands_in: whether another loss was solved in the place of the one that is trained with.
    """
    return _SPIKING * (_STAND_IN if stands_in else 1.0) if surrogate else 1.0


def _within(after: Tensor, before: Tensor, taken: float, change: float) -> Tensor:
    """What part of the way to take, at most ``taken``, for a matrix to move by no more than ``change`` of its norm."""
    norm = torch.linalg.vector_norm(before).clamp(min=_FLOOR * math.sqrt(len(before)))
    moved = torch.linalg.vector_norm(after - before)
    return torch.clamp(change * norm / moved, max=taken)  # not moved at all: infinite, and so ``taken``


def forget(optimizers: Sequence[torch.optim.Optimizer], parameters: Iterable[nn.Parameter]) -> None:
    """Clears what optimizers remember of parameters that were written, and their gradients.

    Args:
        optimizers: all of the run.
        parameters: which were written.
    """
    written = list(parameters)
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.LBFGS):  # keeps what it knows of all under the first of them
            held = [held for group in optimizer.param_groups for held in group["params"]]
            if any(one is other for one in held for other in written):
                optimizer.state.clear()
        for parameter in written:
            optimizer.state.pop(parameter, None)
    for parameter in written:
        parameter.grad = None
