"""Options of an initialisation, the checks of their values, and the circumstances in which it runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from ..convex import SOLVER_NAMES, CrossEntropy, Hinge, Logistic, Penalty, SquaredHinge, make_penalty
from ..convex.checks import checked_bound, plain_number, positive_number
from ..convex.path import CHOICES
from ..distributed import SINGLE_PROCESS, SingleProcess
from ..errors import OptionError, closest
from ..hidden import Sampler, get_sampler
from ..networks import ALL_READOUTS, Forward, Inspections, OverTime, plain_forward
from ..networks.forward import bare
from .criterion import Criterion, criterion_of
from .loader import Unpack
from .stream import Stream

AUTO, SAME, SQUARED_HINGE = FIT_LOSSES = ("auto", "same", "squared_hinge")
_TRUTHS = {"heterogeneous": None, "allow_tied": False, "progress": None}  # and their defaults


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of an initialisation, checked when they are made; ``ConvexInitializer`` documents them.

    Raises:
        OptionError: an unknown name or a number out of range; the message lists what is valid.
    """

    hidden: str = "auto"
    witnesses: str | Sampler = "auto"
    n_candidates: float | int = 3.0
    heterogeneous: bool | None = None
    loss: object = "cross_entropy"
    fit_loss: str = "auto"
    penalty: str = "ridge"
    strength: float | str = "auto"
    readout: str = "auto"
    readout_layer: str | None = None
    classes: int | None = None
    solver: str = "auto"
    tol: float = 1e-6
    max_cost: float = 1.0
    max_samples: int | None = None
    max_memory: int | None = None
    holdout: float = 0.2
    allow_tied: bool = False
    seed: int = 0
    forward: Forward | None = None
    unpack: Unpack | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            object.__setattr__(self, name, plain_number(getattr(self, name)))
        one_of("hidden", self.hidden, ("auto", "rescale", "reconstruct", "keep"))
        get_sampler(self.witnesses)
        _check_candidates(self.n_candidates)
        for name, usual in _TRUTHS.items():
            truth(name, getattr(self, name), usual)
        one_of("fit_loss", self.fit_loss, FIT_LOSSES)
        _check_substitute(self.fit_loss, self.criterion)
        _check_penalty(self.penalty)
        if not (isinstance(self.strength, str) and self.strength in CHOICES):
            positive_number("strength", self.strength, "pass strength='auto'", "a positive number, 'auto' or 'one_se'")
        one_of("readout", self.readout, ("auto", *ALL_READOUTS))
        _check_classes(self.classes, self.criterion)
        one_of("solver", self.solver, SOLVER_NAMES)
        positive_number("tol", self.tol, "pass tol=1e-6")
        checked_bound("max_cost", self.max_cost)
        if self.max_samples is not None:
            whole("max_samples", self.max_samples, 10)
        if self.max_memory is not None:
            whole("max_memory", self.max_memory, 2**20)
        share("holdout", self.holdout, 0.5, 0.2)
        whole("seed", self.seed, 0, 2**32 - 1)
        _check_function("forward(net, inputs)", self.forward, "forward=over_time(25)")
        _check_function("unpack(batch)", self.unpack, "unpack=lambda batch: (batch[0], batch[1])")

    def __getstate__(self) -> dict[str, Any]:
        """Return the options alone, for processes that are spawned: the functions of a criterion can't be pickled."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @cached_property
    def criterion(self) -> Criterion:
        """Training loss, in terms of the program."""
        return criterion_of(self.loss)

    @property
    def num_classes(self) -> int | None:
        """Number of classes that the outputs stand for, from the option or from the loss; None if neither gives it."""
        return self.criterion.num_classes if self.classes is None else self.classes

    @property
    def names_program(self) -> bool:
        """True if the caller determines the program, by its loss or strength: then its solution is written as it is."""
        return self.fit_loss == SAME or not isinstance(self.strength, str)

    @property
    def call(self) -> Forward:
        """Function that calls the network on a batch of inputs."""
        return plain_forward if self.forward is None else self.forward

    @property
    def names_readout(self) -> bool:
        """True if an option or the loss determines which of the returned values decides."""
        return self.readout != "auto" or self.criterion.takes is not None

    def open(self, loader: Iterable[Any], device: torch.device) -> Stream:
        """Open a loader of batches as these options describe them."""
        forward, criterion = bare(self.call), self.criterion
        return Stream(
            loader,
            device,
            self.unpack,
            criterion.ignored,
            over_time=forward if isinstance(forward, OverTime) else None,
            binary=isinstance(criterion.make(1), Logistic | Hinge | SquaredHinge),
        )


@dataclass(frozen=True)
class Context:
    """Circumstances that set a refit, or a measurement, during training apart from a start."""

    warm_start: bool = False  # start the solver from the readout's trained weights
    trains_on: bool = True  # training goes on from what is written, so the readout may be a fraction of the solved one
    verified_samples: int = 2048  # at most, on which the written network is run again
    processes: SingleProcess = SINGLE_PROCESS  # that share the samples
    previous: Mapping[str, float] = field(default_factory=dict)  # best strength of the last solve, by its loss: paths begin near it
    held_first: int = 0  # first samples of the loader, validation data: held out, and not fitted in the end either
    writes: bool = True  # False: the network is measured only, so its readout may be frozen or pruned
    inspections: Inspections | None = None  # made of this network before; None: it is inspected anew
    shared: tuple[object, ...] = ()  # objects that the network and its private copies refer to, such as a trainer


START = Context()


def one_of(name: str, value: object, valid: tuple[str, ...]) -> None:
    """Refuse a value that is none of the valid names."""
    if value not in valid:
        raise OptionError(f"{name}={value!r}", f"one of {list(valid)}", f"pass {name}={closest(value, valid) or valid[0]!r}")


def truth(name: str, value: object, usual: bool | None) -> None:
    """Refuse what is neither True nor False, nor the usual value."""
    if not isinstance(value, bool) and value is not usual:
        needed = "None, True or False" if usual is None else "True or False"
        raise OptionError(f"{name}={value!r}", needed, f"pass {name}=True")


def whole(name: str, value: object, least: int, most: float = math.inf) -> None:
    """Refuse what is no whole number within limits."""
    value = plain_number(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        limits = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        raise OptionError(f"{name}={value!r}", f"a whole number, {limits}", f"pass {name}={least}")


def share(name: str, value: object, most: float, usual: float) -> None:
    """Refuse what is no number above 0 and at most ``most``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise OptionError(f"{name}={value!r}", f"a share above 0, up to {most:g}", f"pass {name}={usual}")


def _check_candidates(value: float | int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value >= 1 and math.isfinite(value)):
        found = f"n_candidates={value!r}"
        raise OptionError(found, "a multiple of the width as a float, or a number as an int, at least 1", "pass n_candidates=3.0")


def _check_substitute(fit_loss: str, criterion: Criterion) -> None:
    if fit_loss == SQUARED_HINGE and not isinstance(criterion.make(1), CrossEntropy):
        found = f"fit_loss='squared_hinge' with loss={criterion.name!r}"
        raise OptionError(found, "a cross-entropy, which it replaces", "pass loss='squared_hinge', or leave fit_loss out")


def _check_penalty(value: object) -> None:
    """Refuse a Penalty object, whose own settings its name would lose."""
    if isinstance(value, Penalty):
        raise OptionError(f"penalty={value!r}", "a name", f"pass penalty={value.name!r}, or use snn_recon_plugin.convex directly")
    make_penalty(value)  # type: ignore[arg-type]


def _check_function(form: str, value: object, example: str) -> None:
    if value is not None and not callable(value):
        raise OptionError(f"{form.partition('(')[0]}={value!r}", f"a function {form}", f"pass {example}")


def _check_classes(classes: int | None, criterion: Criterion) -> None:
    """Refuse a number of classes that is not the one in the loss."""
    in_loss = criterion.num_classes
    if classes is None or (isinstance(classes, int) and classes == in_loss):
        return
    if in_loss is not None:
        found = f"classes={classes!r} with num_classes={in_loss} in {criterion.name}"
        raise OptionError(found, "one number of classes", f"pass classes={in_loss}, or leave it out")
    whole("classes", classes, 2)
