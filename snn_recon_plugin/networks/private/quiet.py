"""Blocks that run a private net and leave no trace: random generators, precision, compiled modules, and interrupts meanwhile."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache, partial
from types import FrameType, TracebackType
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ...errors import UnsupportedModuleError
from ..calls.batches import tensors_in

_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))  # those of every module, such as parameters and hooks
SEED = 20240229  # of the first batch; the others count on from it
T = TypeVar("T")
_Step = Callable[[], object]


# -- past errors and interrupts ------------------------------------------------------------------------------------------------


def run_all(steps: Iterable[_Step]) -> None:
    """Run every step in order, also after one that raises; at the end raise the first interrupt, or else the first error."""
    raised: list[BaseException] = []
    for step in steps:
        try:
            step()
        except BaseException as error:  # noqa: PERF203 -- the next step must run all the same
            raised.append(error)
    if raised:
        raise min(raised, key=lambda error: isinstance(error, Exception))


def run_past_interrupts(step: _Step) -> None:
    """Run a step to its end; an interrupt that comes meanwhile is raised afterwards.

    Ctrl-C waits.  After an error, or an interrupt that gets through all the same, as from a debugger, the step runs a second
    time.  It must be one that may be repeated.  An error of the second time is raised.
    """
    interrupts = _Interrupts()
    try:
        interrupts.delay()
        step()
        interrupts.release()
    except BaseException as error:
        interrupts.delay()
        step()
        interrupts.release()
        if not isinstance(error, Exception):
            raise


class _Interrupts:
    """Delay of Ctrl-C, which only the main thread of a program gets; both methods may be called repeatedly."""

    def __init__(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        self._handler: Any = signal.getsignal(signal.SIGINT) if main else None
        self._delayed: tuple[int, FrameType | None] | None = None

    def delay(self) -> None:
        """Only note interrupts from now on."""
        if callable(self._handler):
            signal.signal(signal.SIGINT, self._note)

    def release(self) -> None:
        """Handle interrupts as before, beginning with one that was delayed: a KeyboardInterrupt, or the program's own handler."""
        if callable(self._handler):
            signal.signal(signal.SIGINT, self._handler)
            delayed, self._delayed = self._delayed, None
            if delayed is not None:
                self._handler(*delayed)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._delayed = (number, frame)


# -- random generators ---------------------------------------------------------------------------------------------------------


# Functions that read, restore and seed the state of a random generator.
_Generator: TypeAlias = tuple[Callable[[], Any], Callable[[Any], object], Callable[[int], object]]


def _global_generators() -> list[_Generator]:
    """List the generators of Python, NumPy and torch, whose ``manual_seed`` would leave a seed behind for when CUDA starts."""
    found: list[_Generator] = [
        (random.getstate, random.setstate, random.seed),
        (np.random.get_state, np.random.set_state, lambda seed: np.random.seed(seed % 2**32)),
        *_distinct([torch.default_generator]),
    ]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found.append((torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all, torch.cuda.manual_seed_all))
    if torch.backends.mps.is_available():
        found.append((torch.mps.get_rng_state, torch.mps.set_rng_state, torch.mps.manual_seed))
    return found


def _loader_generators(loader: object) -> list[_Generator]:
    holders: list[Any] = []
    for each in loader if isinstance(loader, tuple) else (loader,):
        batch_sampler = getattr(each, "batch_sampler", None)
        holders += [each, getattr(each, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    return _distinct(getattr(holder, "generator", None) for holder in holders)


def _distinct(values: Iterable[object]) -> list[_Generator]:
    own = {id(value): value for value in values if isinstance(value, torch.Generator)}.values()
    return [(value.get_state, value.set_state, value.manual_seed) for value in own]


def user_attributes(net: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Yield the attributes that users and libraries gave a net's modules: the module, the attribute's name and its value."""
    for module in net.modules():
        yield from ((module, name, value) for name, value in vars(module).items() if name not in _MODULE_ATTRIBUTES)


class keep_generators:  # noqa: N801 -- used as a function
    """Block with seeded random numbers; afterwards all generators go on from where they were.

    Seeded are Python's, NumPy's and torch's global generators, and those that a net holds.  Those of a loader and its samplers are
    kept as well.  A class, since an interrupt could leave a generator function suspended, which would put states back when it is
    collected.
    """

    def __init__(self, seed: int, net: nn.Module | None = None, loader: object = None) -> None:
        self._seed, self._net, self._loader = seed, net, loader
        self._restore = list[_Step]()

    def __enter__(self) -> None:
        try:
            self._begin()
        except BaseException:
            self.end()
            raise

    def _begin(self) -> None:
        held = () if self._net is None else user_attributes(self._net)  # as attributes, or in a list, tuple or dict there
        generators = [
            *_global_generators(),
            *_distinct(item for _, _, value in held for item in tensors_in(value, torch.Generator)),
        ]
        self._restore = [partial(restore, read()) for read, restore, _ in (*generators, *_loader_generators(self._loader))]
        for _, _, seed in generators:
            seed(self._seed)

    def end(self) -> None:
        """Put all back; may be called again."""
        run_past_interrupts(partial(run_all, self._restore))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()


def seeded(number: int, net: nn.Module | None = None) -> keep_generators:
    """Return a block in which a batch, counted from 0, gets the same random numbers each time."""
    return keep_generators(SEED + number, net)


# -- runs of a private net -----------------------------------------------------------------------------------------------------


class quiet(keep_generators):  # noqa: N801 -- used as a function
    """Block that runs a private net in evaluation mode, uncompiled, seeded, without gradients, autocast or inference mode."""

    def __init__(self, net: nn.Module, *, seed: int, loader: object = None) -> None:
        super().__init__(seed, net, loader)
        self._own, self._precision = net, full_precision()

    def __enter__(self) -> None:
        self._precision.__enter__()
        super().__enter__()

    def _begin(self) -> None:
        super()._begin()
        self._restore.append(partial(torch.set_grad_enabled, torch.is_grad_enabled()))
        self._restore.append(run_eagerly(self._own))
        for module in self._own.modules():
            module.training = False  # users override train(), even by a training loop that takes other arguments
        torch.set_grad_enabled(False)

    def end(self) -> None:
        """Put all back; may be called again."""
        try:
            super().end()
        finally:
            self._precision.__exit__(None, None, None)


def run_quietly(net: nn.Module, work: Callable[[], T], *, seed: int, loader: object = None) -> T:
    """Return what ``work`` returns, run in a block of :class:`quiet`; an interrupt at any line leaves generators as they were.

    They are put back twice after an error, since an interrupt may come in the middle of the first time.
    """
    block = quiet(net, seed=seed, loader=loader)
    try:
        with block:
            return work()
    except BaseException:
        block.end()
        raise


def refuse_lazy(net: nn.Module) -> None:
    """Refuse a lazy layer: its first call changes its class, which can't be put back."""
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if is_lazy(tensor):
            found = f"{name!r} of a lazy layer, which has no values yet"
            raise UnsupportedModuleError(found, "a net with all parameters made", "run the net once on a batch first")


# -- precision -----------------------------------------------------------------------------------------------------------------


@cache
def _devices() -> list[str]:
    """Return the kinds of devices there are; cached, since hooks need them at every call."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "xpu": torch.xpu.is_available()}
    return ["cpu", *(name for name, available in found.items() if available)]


def autocast_dtypes() -> dict[str, torch.dtype]:
    """Return the devices whose autocast is on, with its dtype."""
    return {device: torch.get_autocast_dtype(device) for device in _devices() if torch.is_autocast_enabled(device)}


def autocast_rounding(device: torch.device) -> float:
    """Return the relative rounding of the autocast that is on; 0 without one."""
    return torch.finfo(torch.get_autocast_dtype(device.type)).eps if torch.is_autocast_enabled(device.type) else 0.0


def full_precision() -> AbstractContextManager[Any]:
    """Return a context without autocast, and without inference mode, whose tensors could never be trained."""
    devices = autocast_dtypes()
    return _without_autocast(devices) if devices or torch.is_inference_mode_enabled() else nullcontext()


@contextmanager
def _without_autocast(devices: Iterable[str]) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


# -- compiled modules ----------------------------------------------------------------------------------------------------------


def unwrap(net: nn.Module) -> nn.Module:
    """Return the net inside a compiled one, which shares all its parameters and on which hooks fire; another net as it is."""
    inner = getattr(net, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else net


def run_eagerly(net: nn.Module) -> _Step:
    """Run compiled modules of a net without their compiled code, until the call that is returned, which may be repeated."""
    compiled = [
        name
        for name, module in net.named_modules()
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None  # the latter in place
    ]
    if not compiled:
        return lambda: None
    set_stance = getattr(torch.compiler, "set_stance", None)
    if set_stance is None:
        found = f"a compiled module {compiled[0]!r}, on which hooks do not fire"
        fix = "compile the net afterwards"
        raise UnsupportedModuleError(found, "modules that are not compiled, or torch 2.6, which can run them uncompiled", fix)
    # One line, so that no interrupt comes between the stance and the call that ends it.
    return partial(set_stance("force_eager").__exit__, None, None, None)
