"""Blocks that run a private net: in full precision, uncompiled, in evaluation mode, with seeded random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache, partial
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ...errors import UnsupportedModuleError
from .state import global_generators, loader_generators, net_generators, run_all, run_past_interrupts

_SEED = 20240229  # of the first batch; the others count on from it
T = TypeVar("T")
_Step = Callable[[], object]


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


class quiet:  # noqa: N801 -- used as a function
    """Block that runs a private net: in evaluation mode, with seeded random numbers, without gradients, autocast or inference mode.

    Compiled modules run uncompiled, so that hooks fire.  The seed sets Python's, NumPy's and torch's global generators, and those
    that the net holds.  Afterwards all generators go on from where they were, those of the loader and its samplers too.
    """

    def __init__(self, net: nn.Module, *, seed: int, loader: object = None) -> None:
        self._net, self._seed, self._loader = net, seed, loader
        self._precision, self._restore = full_precision(), list[_Step]()

    def __enter__(self) -> None:
        self._precision.__enter__()
        try:
            self._begin()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _begin(self) -> None:
        """Keep the generators' states and the gradient mode, then prepare the net for passes."""
        generators = [*global_generators(), *net_generators(self._net)]
        kept = [generator.keep() for generator in (*generators, *loader_generators(self._loader))]
        self._restore = [*kept, partial(torch.set_grad_enabled, torch.is_grad_enabled())]
        self._restore.append(run_eagerly(self._net))
        for generator in generators:
            generator.seed(self._seed)
        for module in self._net.modules():
            module.training = False  # users override train(), even by a training loop that takes other arguments
        torch.set_grad_enabled(False)

    def end(self) -> None:
        """Put generators and the gradient mode back; may be called again."""
        run_past_interrupts(partial(run_all, self._restore))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.end()
        finally:
            self._precision.__exit__(None, None, None)


class seeded:  # noqa: N801 -- used as a function
    """Block in which a batch gets the same random numbers each time; afterwards the generators go on from where they were.

    A class, since an interrupt could leave a generator function suspended, which would put states back when it is collected.
    """

    def __init__(self, number: int, net: nn.Module | None = None) -> None:
        self._number, self._own = number, [] if net is None else net_generators(net)

    def __enter__(self) -> None:
        generators = [*global_generators(), *self._own]
        self._restore = [generator.keep() for generator in generators]
        for generator in generators:
            generator.seed(_SEED + self._number)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for restore in self._restore:
            restore()


def refuse_lazy(net: nn.Module) -> None:
    """Refuse a lazy layer: its first call changes its class, which can't be put back."""
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if is_lazy(tensor):
            raise UnsupportedModuleError(
                f"{name!r} of a lazy layer, which has no values yet",
                "a net with all parameters made",
                "run the net once on a batch first",
            )


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
    compiled = [name for name, module in net.named_modules() if _is_compiled(module)]
    if not compiled:
        return lambda: None
    set_stance = getattr(torch.compiler, "set_stance", None)
    if set_stance is None:
        raise UnsupportedModuleError(
            f"a compiled module {compiled[0]!r}, on which hooks do not fire",
            "modules that are not compiled, or torch 2.6, which can run them uncompiled",
            "compile the net afterwards",
        )
    # One line, so that no interrupt comes between the stance and the call that ends it.
    return partial(set_stance("force_eager").__exit__, None, None, None)


def _is_compiled(module: nn.Module) -> bool:
    """Return whether a module came from ``torch.compile``, or was compiled in place by ``module.compile()``."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
