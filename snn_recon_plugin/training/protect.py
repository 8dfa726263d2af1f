"""Protection of what was solved: training is free, but steps that lose nearly all of it are repeated shorter.

A learning rate that suits fresh weights may be far too fast for solved ones: SGD at 0.05 brings a solved net down to chance within
a few steps, and with silent neurons there is no way back.  So the loss on a few training samples is measured 1, 2, 4, 8, ... steps
after a write, and must stay below the loss of zero scores.  A start that is little better than these is not watched: it has
little to lose, and training may have to leave it behind (docs/evidence/decisions.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..networks.private.workbench import overwrite
from .measure import Judgement

WATCHED_STEPS = 256  # steps in which the loss is measured; if all is well, steps are as long as before after them
_LARGEST_WATCHED = 0.7  # loss of a start that is not watched, as a share of that of zero scores
_LIMIT = 0.9  # loss at which steps are taken back, in the same unit
_SHORTER = 0.25  # factor of the length of steps once some were taken back


@dataclass(frozen=True)
class Snapshot:
    """Values of a network's parameters at one moment, and of its saved buffers, without which they are another network."""

    net: nn.Module
    parameters: dict[nn.Parameter, Tensor]
    buffers: dict[str, Tensor]  # by name in the network: moving it, or synchronising batch norms, replaces them

    @classmethod
    def take(cls, net: nn.Module) -> Snapshot:
        """Copy the values that a network has now."""
        unsaved = {id(module._buffers[name]) for module in net.modules() for name in module._non_persistent_buffers_set}
        buffers = {name: buffer.detach().clone() for name, buffer in net.named_buffers() if id(buffer) not in unsaved}
        return cls(net, {parameter: parameter.detach().clone() for parameter in net.parameters()}, buffers)

    @classmethod
    def of_names(cls, module: nn.Module, values: Mapping[str, Tensor]) -> Snapshot:
        """Return the snapshot that ``named`` was called on, on the module's devices."""
        known = dict(module.named_parameters(remove_duplicate=False))
        parameters = {known[name]: value for name, value in values.items() if name in known}
        found = cls(module, parameters, {name: value for name, value in values.items() if name not in known})
        return found.converted(lambda tensor, value: value.to(tensor.device, copy=True))

    def named(self, module: nn.Module) -> dict[str, Tensor]:
        """Return copies of the values, by their names in a module, for a checkpoint."""
        names = {id(tensor): name for name, tensor in module.named_buffers(remove_duplicate=False)}
        names |= {id(tensor): name for name, tensor in module.named_parameters(remove_duplicate=False)}
        return {names[id(tensor)]: value.clone() for tensor, value in self.pairs() if id(tensor) in names}

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the network's tensors with the values kept of them."""
        yield from self.parameters.items()
        for name, value in self.buffers.items():
            yield self.net.get_buffer(name), value

    def write(self) -> None:
        """Copy the values into the network."""
        with torch.no_grad():
            for tensor, value in self.pairs():
                overwrite(tensor, value)  # a start may have given a leak to each unit

    def converted(self, change: Callable[[Tensor, Tensor], Tensor]) -> Snapshot:
        """Return the snapshot with ``change(tensor, value)`` in place of each value."""
        parameters = {parameter: change(parameter, value) for parameter, value in self.parameters.items()}
        buffers = {name: change(self.net.get_buffer(name), value) for name, value in self.buffers.items()}
        return Snapshot(self.net, parameters, buffers)

    def renewed(self) -> Snapshot:
        """Return the values that the same tensors have now."""
        return self.converted(lambda tensor, _: tensor.detach().clone())


class Protection:
    """Watch over the steps after a write."""

    def __init__(self) -> None:
        self.safe: Snapshot | None = None  # weights to go back to; None if nothing is watched
        self.limit = math.inf  # loss above which steps are taken back
        self.done = 0  # steps since the write, or since some were taken back
        self.share = 1.0  # of its length that each step takes
        self._before: Snapshot | None = None  # weights before a step that is to be shortened

    def begin(self, net: nn.Module, solved: Judgement, smaller: Judgement) -> None:
        """Watch the steps from here on; ``solved`` and ``smaller`` judge the solved readout and the one that is trained."""
        self.safe, self._before = (Snapshot.take(net) if solved.own <= _LARGEST_WATCHED * solved.zero else None), None
        self.limit = max(_LIMIT * solved.zero, (smaller.own + solved.zero) / 2)  # the smaller readout's loss is between the others
        self.done, self.share = 0, 1.0

    def before_step(self) -> None:
        """Remember the weights if the step is to be shortened; a call without a step in between does nothing."""
        if self.safe is not None and self.share < 1 and self._before is None:
            self._before = self.safe.renewed()

    def after_step(self) -> bool:
        """Shorten and count the step; return True if the loss is to be measured now."""
        if self._before is not None:
            with torch.no_grad():
                for parameter, before in self._before.parameters.items():
                    if parameter.requires_grad:
                        parameter.lerp_(before, 1 - self.share)
            self._before = None
        self.done += self.safe is not None
        return self.safe is not None and self.done & (self.done - 1) == 0

    def check(self, loss: float, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
        """Go back to the safe weights if the loss is too high, else note these; return whether all is well.

        After ``WATCHED_STEPS`` good steps the next ones are longer again, and watched anew unless they are whole.
        """
        assert self.safe is not None
        if not loss <= self.limit:
            self.safe.write()
            clear_optimizer_state(optimizers, self.safe.parameters)
            self.done, self.share = 0, self.share * _SHORTER
            return False
        if self.done < WATCHED_STEPS:
            self.safe = self.safe.renewed()
        elif self.share == 1:
            self.safe = None
        else:
            self.done, self.share = 0, min(1.0, self.share / _SHORTER)
        return True


def clear_optimizer_state(optimizers: Sequence[torch.optim.Optimizer], parameters: Iterable[nn.Parameter]) -> None:
    """Clear what optimizers remember of written parameters, and set the gradients of these to zero: a loop may read them."""
    written = list(parameters)
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.LBFGS):  # keeps the state of all parameters under the first one
            held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            if any(one is other for one in held for other in written):
                optimizer.state.clear()
        for parameter in written:
            optimizer.state.pop(parameter, None)
    for parameter in written:
        parameter.grad = None if parameter.grad is None else torch.zeros_like(parameter.grad)


def check_optimizers(optimizers: Sequence[torch.optim.Optimizer], written: Sequence[nn.Parameter]) -> None:
    """Refuse optimizers that lack a trained parameter that a solve writes."""
    held = {id(parameter) for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]}
    missing = [parameter for parameter in written if id(parameter) not in held and parameter.requires_grad]
    if optimizers and missing:
        shapes = ", ".join(str(list(parameter.shape)) for parameter in missing)
        found = f"optimizers that do not hold written parameters of shape {shapes}"
        fix = "make the optimizer from net.parameters(), or from self.parameters() in configure_optimizers"
        raise OptionError(found, "optimizers over all written parameters of the network", fix)
