"""The weights that may be evaluated: trained, averaged, refitted and best; their snapshots and their exchange.

Training keeps its weights.  Others are in the network only while it is validated, while a checkpoint takes its weights, and after
training.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..networks import is_neuron, overwrite
from .measure import Judged

_LAST = 4  # a short average covers the last quarter of its points: earlier ones are from before the net had learnt anything


@dataclass(frozen=True)
class Snapshot:
    """Values of parameters at one moment."""

    values: dict[nn.Parameter, Tensor]

    @classmethod
    def take(cls, parameters: Iterable[nn.Parameter]) -> Snapshot:
        """Copy the values that parameters have now."""
        return cls({parameter: parameter.detach().clone() for parameter in parameters})

    @classmethod
    def of_names(cls, module: nn.Module, values: Mapping[str, Tensor]) -> Snapshot:
        """Return the snapshot that ``named`` was called on."""
        return cls({module.get_parameter(name): value.clone() for name, value in values.items()})

    def named(self, module: nn.Module) -> dict[str, Tensor]:
        """Return copies of the values, by the parameters' names in a module, for a checkpoint."""
        names = {id(parameter): name for name, parameter in module.named_parameters(remove_duplicate=False)}
        return {names[id(parameter)]: value.clone() for parameter, value in self.values.items() if id(parameter) in names}

    def write(self) -> None:
        """Copy the values into the parameters."""
        with torch.no_grad():
            for parameter, value in self.values.items():
                overwrite(parameter, value)  # a start may have given a leak to each unit

    def moved(self) -> Snapshot:
        """Return the same values on the parameters' devices."""
        return Snapshot({parameter: value.to(parameter.device) for parameter, value in self.values.items()})


@dataclass
class Average:
    """Exponential moving average (EMA) of parameters over optimizer steps."""

    # Not torch.optim.swa_utils.AveragedModel: it deep-copies the module, which fails for snnTorch membranes inside a graph, and
    # averages 16-bit parameters in 16 bits, which rounds the share of a step away.

    decay: float  # share of the average that a step keeps, from 0 to 1; less in the first steps, so early points fade
    snapshot: Snapshot
    points: int = 1
    better: bool = False  # than the trained weights, when last judged

    @classmethod
    def begin(cls, decay: float, parameters: Iterable[nn.Parameter]) -> Average:
        """Return the average of one point, of the parameters of floating point."""
        values = Snapshot.take(parameter for parameter in parameters if parameter.is_floating_point()).values
        return cls(decay, Snapshot({key: value.float() if value.element_size() < 4 else value for key, value in values.items()}))

    def update(self) -> None:
        """Add the parameters' present values."""
        self.points += 1
        weight = max(1 - self.decay, _LAST / (self.points + _LAST - 1))
        for parameter, value in self.snapshot.values.items():
            if parameter.requires_grad:
                value.lerp_(parameter.detach().to(value.dtype), weight)
            else:  # frozen values may be infinite
                value.copy_(parameter.detach())


@dataclass
class Best:
    """The best weights evaluated so far, and their judgement."""

    snapshot: Snapshot
    judged: Judged
    held: bool = False  # evaluated in place of later weights

    def beats(self, judged: Judged) -> bool:
        """Return whether it is better, or the other one has no judgement."""
        return math.isnan(judged.value) or self.judged.ranks_above(judged)

    def update(self, judged: Judged) -> None:
        """Take the parameters' present values."""
        self.judged, self.snapshot = judged, Snapshot.take(self.snapshot.values)


class Candidates:
    """Owner of all weight snapshots of a run; ``decay`` belongs to the EMA, None for none.

    | field | holds | set by |
    |---|---|---|
    | ``trained`` | the trained weights while others are in the network | ``open``, ``swap_in``; None by ``accept``, ``swap_out`` |
    | ``evaluated`` | the weights with a refit, until the next step | ``settle``; None by ``discard`` |
    | ``average`` | the EMA, and whether it was better than the trained weights; None without one | ``begin``, each judgement |
    | ``best`` | the best weights so far, and whether they are held; None if nothing compares weights | ``hold`` |

    A checkpoint sets all of them.
    """

    def __init__(self, decay: float | None) -> None:
        self.decay = decay
        self.trained: Snapshot | None = None
        self.evaluated: Snapshot | None = None
        self.average: Average | None = None
        self.best: Best | None = None

    # -- the trained weights ---------------------------------------------------------------------------------------------

    def begin(self, net: nn.Module) -> None:
        """Start the average from the network as it is, unless a checkpoint had one."""
        if self.decay is not None and self.average is None:
            self.average = Average.begin(self.decay, net.parameters())
        for kept in (self.average, self.best):
            if kept is not None:
                kept.snapshot = kept.snapshot.moved()

    def open(self, parameters: Iterable[nn.Parameter]) -> None:
        """Save the trained weights before others are written, so that an error in between brings them back."""
        self.trained = Snapshot.take(parameters)

    def accept(self) -> None:
        """Train on from the weights in the network."""
        self.trained = None

    def take_back(self) -> None:
        """Write the trained weights back; others may be written after that."""
        if self.trained is not None:
            self.trained.write()

    def settle(self) -> None:
        """Evaluate the weights in the network until the next step, and train on from the trained ones."""
        if self.trained is not None:
            self.evaluated = Snapshot.take(self.trained.values)
        self.take_back()
        self.trained = None

    def discard(self) -> None:
        """Put the trained weights back and drop those chosen after the last epoch."""
        self.swap_out()
        self.evaluated = None

    def reject(self) -> None:
        """Evaluate the trained weights, since others could not be found or judged."""
        if self.average is not None:
            self.average.better = False
        if self.best is not None:
            self.best.held = False

    # -- the exchange ----------------------------------------------------------------------------------------------------

    @property
    def averaged(self) -> bool:
        """Return whether the average was better than the trained weights when last judged."""
        return self.average is not None and self.average.better

    @property
    def held(self) -> bool:
        """Return whether the best weights are evaluated in place of later ones."""
        return self.best is not None and self.best.held

    @property
    def _shown(self) -> Snapshot | None:
        """Return the weights that an evaluation at this moment uses; None for the trained ones."""
        if self.evaluated is not None:
            return self.evaluated
        if self.best is not None and self.best.held:
            return self.best.snapshot
        return self.average.snapshot if self.average is not None and self.average.better else None

    def swap_in(self) -> None:
        """Exchange the trained weights for those to evaluate."""
        shown = self._shown
        if shown is not None and self.trained is None:
            self.trained = Snapshot.take(shown.values)
            shown.write()

    def swap_out(self) -> None:
        """Exchange the evaluated weights for the trained ones, bit for bit."""
        if self.trained is None:
            return
        if self.evaluated is not None:  # as they are now: a hook may have undone the report
            self.evaluated = Snapshot.take(self.trained.values)
        self.take_back()
        self.trained = None

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Have the weights to evaluate in the network for a while."""
        if self.trained is not None:
            yield
            return
        self.swap_in()
        try:
            yield
        finally:
            self.swap_out()

    # -- average and best ------------------------------------------------------------------------------------------------

    def update(self) -> None:
        """Add a point to the average after an optimizer step."""
        if self.average is not None:
            self.average.update()

    def restart(self, parameters: Iterable[nn.Parameter]) -> None:
        """Begin the average anew, after weights that should not be in it."""
        if self.average is not None:
            self.average = Average.begin(self.average.decay, parameters)

    def hold(self, net: nn.Module, judged: Judged | None) -> None:
        """Write the best weights into the network if they are better than those in it, or note these as the best.

        ``judged`` belongs to the weights in the network; without it nothing can be compared, and none are held.
        """
        if self.decay is None or judged is None or not has_fixed_buffers(net):
            self.best = None
        elif self.best is None:
            self.best = None if math.isnan(judged.value) else Best(Snapshot.take(net.parameters()), judged)
        else:
            self.best.held = self.best.beats(judged)
            if self.best.held:
                self.best.snapshot.write()
            else:
                self.best.update(judged)

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def state_dict(self, module: nn.Module) -> dict[str, Any]:
        """Return what a checkpoint needs beside the evaluated weights, by names in ``module``; empty if nothing."""
        found: dict[str, Any] = {}
        shown = self._shown
        trained = self.trained if self.trained is not None or shown is None else Snapshot.take(shown.values)
        if trained is not None:
            found["trained"] = trained.named(module)
        if self.average is not None:
            found |= {"average": self.average.snapshot.named(module), "points": self.average.points}
            found |= {"averaged": self.averaged, "held": self.held}
        if self.best is not None:
            found |= {"best": self.best.snapshot.named(module), "judged": list(self.best.judged)}
        return found

    def load_state_dict(self, module: nn.Module, found: Mapping[str, Any]) -> None:
        """Read ``state_dict``; ``settle`` then writes the trained weights."""
        if "trained" in found:
            self.trained = Snapshot.of_names(module, found["trained"])
        if self.decay is None or "average" not in found:
            return
        average = Snapshot.of_names(module, found["average"])
        self.average = Average(self.decay, average, found["points"], bool(found.get("averaged")))
        if "best" in found:
            self.best = Best(Snapshot.of_names(module, found["best"]), Judged(*found["judged"]), bool(found.get("held")))


def has_fixed_buffers(net: nn.Module) -> bool:
    """Return whether training changes parameters alone: running statistics would not be those of earlier parameters."""
    return not any(list(module.buffers(recurse=False)) for module in net.modules() if not is_neuron(module))
