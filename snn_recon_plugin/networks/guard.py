"""Borrow a net and give it back as it was: modes, hooks, membranes, buffers, Parameter objects and random numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from types import TracebackType
from typing import TypeVar

import torch
from torch import nn

from ..errors import WriteError
from .compiled import run_eagerly
from .generators import global_states, loader_generators, net_generators, seed_global, seed_torch, states_of
from .interrupts import insist, run_all
from .precision import full_precision
from .state import ModuleState

__all__ = ["all_or_nothing", "preserved", "seeded"]

_SEED = 20240229
_Result = TypeVar("_Result")


def all_or_nothing(
    net: nn.Module,
    work: Callable[[], _Result],
    *,
    seed: int,
    loader: object = None,
    undo: Callable[[], object] | None = None,
    written: Callable[[], Collection[int]] = tuple,
) -> _Result:
    """Run ``work`` on a borrowed net, as :func:`preserved` does, so that no single interrupt or error leaves a part of it.

    Putting back is done twice after an error, since an interrupt may come in the middle of the first time.  Every step of it
    may be repeated, and changes nothing in a net that is as before.

    Args:
        net: the net.
        work: what to do; it may write parameters if ``undo`` can put them back.
        seed: as for :func:`preserved`.
        loader: as for :func:`preserved`.
        undo: puts parameters back that ``work`` has written; called only after an error, and may be called again.
        written: returns the ids of buffers that ``work`` has written on purpose, whose content stays.

    Returns:
        What ``work`` returned.

    Raises:
        WriteError: if something could not be put back.
    """
    with full_precision():
        before = _Borrowed(net, loader)
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


def preserved(net: nn.Module, *, seed: int, loader: object = None) -> _Preserved:
    """Put a net into evaluation mode, seed every random generator, and undo both when the block ends, however it ends.

    Inside the block compiled modules run uncompiled, so that hooks fire, gradients are off by ``no_grad``, and autocast and
    inference mode are off.

    Args:
        net: the net; its buffers and attributes, and those of all submodules, come back bit for bit as the same
            objects.  What parameters hold is not touched, neither here nor on the way back.
        seed: seeds Python's, NumPy's and torch's global generators, and those that the net holds, inside the block.
        loader: a data loader whose own generators, and those of its samplers, are put back too.

    Returns:
        The context manager.
    """
    return _Preserved(net, seed, loader)


class seeded:  # noqa: N801 -- used as a function
    """Seed torch's global generators and the net's own for a block, so that a batch drawn again gets the same random spikes.

    The generators then go on from where they were.  A class, since a generator function that an interrupt leaves suspended
    would put the states back whenever it is collected.

    Args:
        number: which batch it is.
        net: a net whose own generators are seeded too.
    """

    def __init__(self, number: int, net: nn.Module | None = None) -> None:
        self._number, self._generators = number, [] if net is None else net_generators(net)

    def __enter__(self) -> None:
        self._put_back = seed_torch(_SEED + self._number, self._generators)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for put_back in self._put_back:
            put_back()


class _Preserved:
    """The context manager of :func:`preserved`."""

    def __init__(self, net: nn.Module, seed: int, loader: object) -> None:
        self._net, self._seed, self._loader = net, seed, loader

    def __enter__(self) -> None:
        self._precision = full_precision()
        self._precision.__enter__()
        self._borrowed = _Borrowed(self._net, self._loader)
        try:
            self._borrowed.begin(self._seed)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._borrowed.restore()
        finally:
            self._precision.__exit__(None, None, None)


class _Borrowed:
    """A net and all around it at one moment.

    Args:
        net: the net.
        loader: a data loader with generators of its own, or None.
    """

    def __init__(self, net: nn.Module, loader: object) -> None:
        self._net, self._own = net, net_generators(net)
        self._state = ModuleState(net.modules())
        self._generators = [*global_states(), *states_of([*self._own, *loader_generators(loader)])]
        self._gradients = torch.is_grad_enabled()
        self._end_eager: Callable[[], object] = lambda: None

    def begin(self, seed: int) -> None:
        """Prepare the net for passes that only look at it."""
        self._end_eager = run_eagerly(self._net)
        seed_global(seed)
        for generator in self._own:
            generator.manual_seed(seed)
        for module in self._net.modules():
            module.training = False  # users override train(), even by a training loop that takes other arguments
        torch.set_grad_enabled(False)

    def restore(self, undo: Callable[[], object] | None = None, but: Collection[int] = ()) -> None:
        """Put all back as it was, past errors and interrupts, which are raised at the end; may be called again.

        Args:
            undo: puts written parameters back.
            but: ids of tensors whose content stays as it is now.

        Raises:
            WriteError: if something could not be put back.
        """
        state = partial(self._state.restore, but)
        gradients = partial(torch.set_grad_enabled, self._gradients)
        steps: list[Callable[[], object]] = [self._end_eager, state, *self._generators, gradients]
        insist(partial(_put_back, steps if undo is None else [undo, *steps]))


def _put_back(steps: list[Callable[[], object]]) -> None:
    """Run all steps, and raise what went wrong at the end."""
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
