"""Steps that run to their end past errors and interrupts, writes into tensors, and the state of random generators."""

from __future__ import annotations

import hashlib
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import FrameType, MethodType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))  # those of every module, such as parameters and hooks


# -- past errors and interrupts ------------------------------------------------------------------------------------------------


def run_all(steps: Iterable[Callable[[], object]]) -> None:
    """Run every step in order, also after one that raises; at the end raise the first interrupt, or else the first error."""
    raised: list[BaseException] = []
    for step in steps:
        try:
            step()
        except BaseException as error:  # noqa: PERF203 -- the next step must run all the same
            raised.append(error)
    if raised:
        raise min(raised, key=lambda error: isinstance(error, Exception))


def run_past_interrupts(step: Callable[[], object]) -> None:
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


# -- tensors and modules -------------------------------------------------------------------------------------------------------


def has_custom_forward(module: nn.Module) -> bool:
    """Return whether a module runs another forward than its class's, set on the instance."""
    own = vars(module).get("forward")
    return own is not None and not (isinstance(own, MethodType) and own.__func__ is getattr(type(module), "forward", None))


def overwrite(tensor: Tensor, value: Tensor) -> None:
    """Copy a value into a tensor, which stays the same object.  If it takes another shape, its gradient is dropped."""
    if tensor.shape != value.shape:
        if isinstance(tensor, nn.Parameter):
            tensor.grad = None
        dtype = tensor.dtype
        # Two steps: a graph that is still alive holds the old shape, to which it would sum gradients; a change of dtype drops it.
        tensor.data = torch.empty_like(value, dtype=torch.float32 if dtype is torch.float64 else torch.float64, device="cpu")
        tensor.data = torch.empty_like(value, dtype=dtype, device=tensor.device)
    tensor.detach().copy_(value)  # raises the tensor's version, so that a backward pass still to come notices


class Version:
    """A tensor at one version.  It is held: no other tensor can take its place in memory."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self._version = tensor, tensor._version

    def is_current(self, tensor: Tensor) -> bool:
        """Return whether this is the tensor, and nothing was written into it since."""
        return tensor is self.tensor and tensor._version == self._version


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Compare contents as bytes, so that NaN equals NaN and 0.0 differs from -0.0."""
    if left.layout is not torch.strided or left.is_quantized or left.shape != right.shape:
        return False
    return torch.equal(_as_bytes(left), _as_bytes(right))


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def checksum(values: Mapping[str, Any]) -> str:
    """Return a checksum of tensors by name, 16 digits; other values are left out."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in values.items():
        if isinstance(value, Tensor):  # a module may keep anything as its extra state
            digest.update(name.encode() + value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def user_attributes(net: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Yield the attributes that users and libraries gave a net's modules: the module, the attribute's name and its value."""
    for module in net.modules():
        yield from ((module, name, value) for name, value in vars(module).items() if name not in _MODULE_ATTRIBUTES)


def hooks_of(net: nn.Module) -> Iterator[Any]:
    """Yield the hooks of a net's modules."""
    for module in net.modules():
        for name, value in vars(module).items():
            if name.endswith("_hooks") and isinstance(value, dict):
                yield from value.values()


# -- random generators ---------------------------------------------------------------------------------------------------------


class Generator(NamedTuple):
    """Random generator, by the functions that read, restore and seed its state."""

    read: Callable[[], Any]
    restore: Callable[[Any], object]
    seed: Callable[[int], object]

    def keep(self) -> Callable[[], object]:
        """Return the call that puts the present state back."""
        return partial(self.restore, self.read())


def global_generators() -> list[Generator]:
    """List the generators of Python, NumPy and torch, whose ``manual_seed`` would leave a seed behind for when CUDA starts."""
    found = [
        Generator(random.getstate, random.setstate, random.seed),
        Generator(np.random.get_state, np.random.set_state, lambda seed: np.random.seed(seed % 2**32)),
        _own(torch.default_generator),
    ]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found.append(Generator(torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all, torch.cuda.manual_seed_all))
    if torch.backends.mps.is_available():
        found.append(Generator(torch.mps.get_rng_state, torch.mps.set_rng_state, torch.mps.manual_seed))
    return found


def loader_generators(loader: object) -> list[Generator]:
    """List the generators that a loader and its samplers draw from, each once."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    holders: list[Any] = [loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    return _distinct(getattr(holder, "generator", None) for holder in holders)


def net_generators(net: nn.Module) -> list[Generator]:
    """List the generators that modules of a net hold as attributes, or in a list, tuple or dict there, each once."""
    found: list[object] = []
    for _, _, value in user_attributes(net):
        found.append(value)
        found += value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return _distinct(found)


def _distinct(values: Iterable[object]) -> list[Generator]:
    return [_own(value) for value in {id(value): value for value in values if isinstance(value, torch.Generator)}.values()]


def _own(generator: torch.Generator) -> Generator:
    return Generator(generator.get_state, generator.set_state, generator.manual_seed)
