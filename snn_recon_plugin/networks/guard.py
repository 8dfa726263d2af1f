"""Borrow a net and give it back as it was: modes, random numbers, membranes and buffers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from .compiled import run_eagerly
from .state import ModuleState

__all__ = ["preserved", "seeded"]

_SEED = 20240229


@contextmanager
def preserved(net: nn.Module, *, seed: int, loader: object = None) -> Iterator[None]:
    """Put a net into evaluation mode, seed every random generator, and undo both when the block ends, however it ends.

    Inside the block compiled modules run uncompiled, so that hooks fire, and gradients are off by ``no_grad``; not by
    inference mode, whose tensors could never be trained.

    Args:
        net: the net; its buffers and attributes, and those of all submodules, come back bit for bit as the same
            objects.  Parameters are not touched, neither here nor on the way back.
        seed: seeds Python's, NumPy's and torch's global generators inside the block.
        loader: a data loader whose own generators, and those of its samplers, are put back too.

    Yields:
        Nothing.
    """
    # A stack, since each of its callbacks runs even where another one raises.
    with ExitStack() as stack:
        for put_back in _generator_restorers(loader):
            stack.callback(put_back)
        stack.enter_context(run_eagerly(net))
        stack.callback(_restore_modes, [(module, module.training) for module in net.modules()])
        stack.callback(ModuleState(net.modules()).restore)
        _seed(seed)
        net.eval()
        stack.enter_context(torch.no_grad())
        yield


@contextmanager
def seeded(number: int) -> Iterator[None]:
    """Seed torch's global generators for a block, so that a batch drawn again gets the same random spikes.

    Args:
        number: which batch it is.

    Yields:
        Nothing.  The generators then go on from where they were.
    """
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if _cuda_started() else []
    torch.default_generator.manual_seed(_SEED + number)
    if cuda:
        torch.cuda.manual_seed_all(_SEED + number)
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def _restore_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    """Set each module's flag alone: ``train()`` would be inherited by submodules and may be overridden by users."""
    for module, training in modes:
        module.training = training


def _generator_restorers(loader: object) -> list[Callable[[], object]]:
    """Take down the state of every random generator, and give the calls that put the states back."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    restorers: list[Callable[[], object]] = [
        lambda: random.setstate(python),
        lambda: np.random.set_state(numpy),
        lambda: torch.set_rng_state(cpu),
    ]
    if _cuda_started():
        cuda = torch.cuda.get_rng_state_all()
        restorers.append(lambda: torch.cuda.set_rng_state_all(cuda))
    if torch.backends.mps.is_available():
        mps = torch.mps.get_rng_state()
        restorers.append(lambda: torch.mps.set_rng_state(mps))
    return restorers + [_generator_restorer(generator) for generator in _loader_generators(loader)]


def _generator_restorer(generator: torch.Generator) -> Callable[[], object]:
    state = generator.get_state()
    return lambda: generator.set_state(state)


def _loader_generators(loader: object) -> list[torch.Generator]:
    """Find the generators that a loader and its samplers draw from, each once."""
    found: dict[int, torch.Generator] = {}
    holders: list[Any] = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    holders.append(getattr(holders[-1], "sampler", None))
    for holder in holders:
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            found[id(generator)] = generator
    return list(found.values())


def _seed(seed: int) -> None:
    """Seed the global generators.

    ``torch.manual_seed`` is avoided: where CUDA has not started yet it leaves a seed behind for when it does.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if _cuda_started():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def _cuda_started() -> bool:
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
