"""Guards that give a net back as it was: modes, hooks, membranes, buffers, Parameter objects and random numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from ..errors import WriteError
from .interrupts import insist, run_all
from .modes import full_precision, run_eagerly
from .state import MODULE_ATTRIBUTES, ModuleState

__all__ = ["all_or_nothing", "preserved", "seeded"]

_SEED = 20240229  # of the first batch; the others count on from it
_Result = TypeVar("_Result")
_Restore = Callable[[], object]


def all_or_nothing(
    net: nn.Module,
    work: Callable[[], _Result],
    *,
    seed: int,
    loader: object = None,
    undo: Callable[[], object] | None = None,
    written: Callable[[], Collection[int]] = tuple,
) -> _Result:
    """Run ``work`` under :func:`preserved`, so that no single interrupt or error leaves a part of it in the net.

    After an error the net is put back twice, since an interrupt may come in the middle of the first time.  Each step may be
    repeated, and changes nothing in a net that is as before.

    Args:
        net: the net.
        work: may write parameters if ``undo`` can put them back.
        seed: as for :func:`preserved`.
        loader: as for :func:`preserved`.
        undo: puts written parameters back; called only after an error, perhaps twice.
        written: returns the ids of buffers that ``work`` wrote on purpose, whose content stays.

    Returns:
        The result of ``work``.

    Raises:
        WriteError: something could not be put back.
    """
    with full_precision():
        before = _Snapshot(net, loader)
        try:
            try:
                before.begin(seed)
                result = work()
                before.restore(but=written())
                return result
            except BaseException:
                before.restore(undo)
                raise
        except BaseException:
            before.restore(undo)
            raise


class preserved:  # noqa: N801 -- used as a function
    """Block in evaluation mode, with seeded random numbers, after which the net is as before, however the block ends.

    Inside it compiled modules run uncompiled, so that hooks fire; gradients, autocast and inference mode are off.

    Args:
        net: the net.  Its buffers and attributes, and those of all submodules, come back bit for bit as the same objects.
            Values of parameters are left alone, inside and afterwards.
        seed: of Python's, NumPy's and torch's global generators, and of those that the net holds.
        loader: a data loader whose own generators, and those of its samplers, are put back too.
    """

    def __init__(self, net: nn.Module, *, seed: int, loader: object = None) -> None:
        self._net = net
        self._seed = seed
        self._loader = loader

    def __enter__(self) -> None:
        self._precision = full_precision()
        self._precision.__enter__()
        self._before = _Snapshot(self._net, self._loader)
        try:
            self._before.begin(self._seed)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._before.restore()
        finally:
            self._precision.__exit__(None, None, None)


class seeded:  # noqa: N801 -- used as a function
    """Block in which a batch gets the same random numbers each time; afterwards the generators go on from where they were.

    A class, since an interrupt could leave a generator function suspended, which would then put the states back when it is
    collected.

    Args:
        number: of the batch.
        net: a net whose own generators are seeded too.
    """

    def __init__(self, number: int, net: nn.Module | None = None) -> None:
        self._number, self._generators = number, [] if net is None else _net_generators(net)

    def __enter__(self) -> None:
        self._restore = [*_torch_states(), *map(_restorer, self._generators)]
        _seed_torch(_SEED + self._number, self._generators)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for restore in self._restore:
            restore()


class _Snapshot:
    """A net, the global random generators and the gradient mode at one moment.

    Args:
        net: the net.
        loader: a data loader with generators of its own, or None.
    """

    def __init__(self, net: nn.Module, loader: object) -> None:
        self._net, self._own = net, _net_generators(net)
        self._state = ModuleState(net.modules())
        self._generators = [*_global_states(), *map(_restorer, (*self._own, *_loader_generators(loader)))]
        self._gradients = torch.is_grad_enabled()
        self._end_eager: _Restore = lambda: None

    def begin(self, seed: int) -> None:
        """Prepare the net for passes that only read it."""
        self._end_eager = run_eagerly(self._net)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        _seed_torch(seed)
        for generator in self._own:
            generator.manual_seed(seed)
        for module in self._net.modules():
            module.training = False  # users override train(), even by a training loop that takes other arguments
        torch.set_grad_enabled(False)

    def restore(self, undo: _Restore | None = None, but: Collection[int] = ()) -> None:
        """Put everything back past errors and interrupts, which are raised at the end; may be called again.

        Args:
            undo: puts written parameters back.
            but: ids of tensors whose content stays as it is now.

        Raises:
            WriteError: something could not be put back.
        """
        state, gradients = partial(self._state.restore, but), partial(torch.set_grad_enabled, self._gradients)
        steps: list[_Restore] = [self._end_eager, state, *self._generators, gradients]
        insist(partial(_put_back, steps if undo is None else [undo, *steps]))


def _put_back(steps: list[_Restore]) -> None:
    """Run all steps, and raise the first error at the end."""
    raised = run_all(steps)
    if not raised:
        return
    if isinstance(raised[0], WriteError) or not isinstance(raised[0], Exception):
        raise raised[0]
    raise WriteError(
        f"a part of the net that could not be put back as it was ({type(raised[0]).__name__}: {raised[0]})",
        "buffers, attributes and hooks that can be set again",
        "build the net anew, or load your last checkpoint into it",
    ) from raised[0]


# -- random generators ---------------------------------------------------------------------------------------------------------


def _seed_torch(seed: int, generators: Iterable[torch.Generator] = ()) -> None:
    """Seed torch's global generators and some others.

    ``torch.manual_seed`` is avoided: before CUDA has started, it leaves a seed behind for when it does.
    """
    for generator in (torch.default_generator, *generators):
        generator.manual_seed(seed)
    if _cuda_started():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def _global_states() -> list[_Restore]:
    """Record Python's, NumPy's and torch's global generators, and return the calls that put them back."""
    python, numpy = random.getstate(), np.random.get_state()
    return [lambda: random.setstate(python), lambda: np.random.set_state(numpy), *_torch_states()]


def _torch_states() -> list[_Restore]:
    restore = [_restorer(torch.default_generator)]
    if _cuda_started():
        cuda = torch.cuda.get_rng_state_all()
        restore.append(lambda: torch.cuda.set_rng_state_all(cuda))
    if torch.backends.mps.is_available():
        mps = torch.mps.get_rng_state()
        restore.append(lambda: torch.mps.set_rng_state(mps))
    return restore


def _restorer(generator: torch.Generator) -> _Restore:
    state = generator.get_state()
    return lambda: generator.set_state(state)


def _loader_generators(loader: object) -> list[torch.Generator]:
    """List the generators that a loader and its samplers draw from, each once."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    holders: list[Any] = [loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    return _distinct(getattr(holder, "generator", None) for holder in holders)


def _net_generators(net: nn.Module) -> list[torch.Generator]:
    """List the generators that modules of a net hold as attributes, or in a list, tuple or dict there, each once."""
    found: list[object] = []
    for module in net.modules():
        for name, value in vars(module).items():
            if name not in MODULE_ATTRIBUTES:
                found.append(value)
                found += value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return _distinct(found)


def _distinct(values: Iterable[object]) -> list[torch.Generator]:
    return list({id(value): value for value in values if isinstance(value, torch.Generator)}.values())


def _cuda_started() -> bool:
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
