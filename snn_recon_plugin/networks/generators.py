"""Random generators: the global ones, those of a loader, and those that a net holds itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["global_states", "loader_generators", "net_generators", "seed_global", "seed_torch", "states_of"]

_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))  # which hold no generators
Restore = Callable[[], object]


def global_states() -> list[Restore]:
    """Record Python's, NumPy's and torch's global generators, and return the calls that put them back."""
    python, numpy = random.getstate(), np.random.get_state()
    return [lambda: random.setstate(python), lambda: np.random.set_state(numpy), *_torch_states()]


def states_of(generators: Iterable[torch.Generator]) -> list[Restore]:
    """Record generators, and return the calls that put them back."""
    return [_restorer(generator) for generator in generators]


def seed_global(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators.

    Args:
        seed: any integer from 0.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    seed_torch(seed)


def seed_torch(seed: int, generators: Iterable[torch.Generator] = ()) -> list[Restore]:
    """Seed torch's global generators and some others.

    ``torch.manual_seed`` is avoided: if CUDA has not started yet, it leaves a seed behind for when it does.

    Args:
        seed: any integer from 0.
        generators: the others.

    Returns:
        The calls that put them all back.
    """
    generators = list(generators)
    before = [*_torch_states(), *states_of(generators)]
    for generator in (torch.default_generator, *generators):
        generator.manual_seed(seed)
    if _cuda_started():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    return before


def loader_generators(loader: object) -> list[torch.Generator]:
    """List the generators that a loader and its samplers draw from, each once."""
    holders: list[Any] = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    holders.append(getattr(holders[-1], "sampler", None))
    return _distinct(getattr(holder, "generator", None) for holder in holders)


def net_generators(net: nn.Module) -> list[torch.Generator]:
    """List the generators that modules of a net hold as attributes, or in a list, tuple or dict there, each once."""
    found: list[object] = []
    for module in net.modules():
        for name, value in vars(module).items():
            if name not in _MODULE_ATTRIBUTES:
                found.append(value)
                found += value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return _distinct(found)


def _distinct(values: Iterable[object]) -> list[torch.Generator]:
    return list({id(value): value for value in values if isinstance(value, torch.Generator)}.values())


def _torch_states() -> list[Restore]:
    restorers = [_restorer(torch.default_generator)]
    if _cuda_started():
        cuda = torch.cuda.get_rng_state_all()
        restorers.append(lambda: torch.cuda.set_rng_state_all(cuda))
    if torch.backends.mps.is_available():
        mps = torch.mps.get_rng_state()
        restorers.append(lambda: torch.mps.set_rng_state(mps))
    return restorers


def _restorer(generator: torch.Generator) -> Restore:
    state = generator.get_state()
    return lambda: generator.set_state(state)


def _cuda_started() -> bool:
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
