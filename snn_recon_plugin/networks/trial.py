"""Let a net run with other parameter values without touching the user's parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import UnsupportedModuleError, WriteError
from .computed import chain_of, comes_out, originals_of, table_of

__all__ = ["can_try", "trial_parameters"]


@contextmanager
def trial_parameters(values: Mapping[tuple[nn.Module, str], Tensor]) -> Iterator[None]:
    """Hang other parameters, or buffers, on modules until the block ends, then the original objects again.

    An optimizer, a tied module or an outside reference keeps seeing the originals all the while.  A parametrized weight, as
    of ``torch.nn.utils.parametrizations.weight_norm``, takes its value through the inverse of its parametrization.

    Args:
        values: for each module and parameter name the value to run with, of the parameter's shape.  Values are
            used as they are, in the parameter's dtype and on its device.

    Yields:
        Nothing.

    Raises:
        UnsupportedModuleError: if a module has no parameter of that name, or computes it in a way that can't be inverted.
        WriteError: if a value has another shape than the parameter.
    """
    hung = [part for (module, name), value in values.items() for part in _parts(module, name, value)]
    with ExitStack() as stack:
        for module, name, value in hung:
            table = table_of(module, name)
            original = table[name]
            assert original is not None
            stack.callback(table.__setitem__, name, original)
            tried = value.detach().to(original)
            table[name] = nn.Parameter(tried, requires_grad=False) if isinstance(original, nn.Parameter) else tried
        for (module, name), value in values.items():
            _check_arrived(module, name, value)
        yield


def can_try(module: nn.Module, name: str) -> bool:
    """Say whether :func:`trial_parameters` would take values for a parameter.

    Args:
        module: the module.
        name: the parameter's name in it.

    Returns:
        False where there is no such parameter, and where the module computes it in a way that can't be inverted, such as
        pruning, spectral_norm or an orthogonal parametrization.
    """
    if module._parameters.get(name) is not None:
        return True
    if not parametrize.is_parametrized(module, name) or _stateful(module, name):
        return False
    with torch.no_grad():
        value: Tensor = getattr(module, name)
        # Rows of other lengths, as a rescaling makes them: what only takes values like its own would not take those.
        factors = torch.linspace(1.5, 2.5, len(value), dtype=value.dtype, device=value.device)
        other = value * factors.reshape(-1, *[1] * (value.ndim - 1))
    try:
        with trial_parameters({(module, name): other}):
            return True
    except UnsupportedModuleError:
        return False


def _stateful(module: nn.Module, name: str) -> bool:
    """Say whether a parametrization rescales whatever is put in, and changes its buffers by looking at it."""
    return any("SpectralNorm" in type(step).__name__ for step in chain_of(module, name))


def _parts(module: nn.Module, name: str, value: Tensor) -> list[tuple[nn.Module, str, Tensor]]:
    """List the plain parameters that give a value, with what they must hold for it; refuse where there are none."""
    current = table_of(module, name).get(name)
    parametrized = current is None and parametrize.is_parametrized(module, name) and not _stateful(module, name)
    if current is None and not parametrized:
        raise _untried(module, name)
    if current is None:
        with torch.no_grad():
            current = getattr(module, name)
    assert current is not None
    if current.shape != value.shape:
        raise WriteError(
            f"a value of shape {list(value.shape)} for {name!r}",
            f"the shape {list(current.shape)}",
            "give a value of the parameter's shape",
        )
    if not parametrized:
        return [(module, name, value)]
    try:
        return originals_of(module, name, value.detach().to(current))
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise _untried(module, name) from error


def _check_arrived(module: nn.Module, name: str, value: Tensor) -> None:
    """Refuse a parametrization that doesn't give back the value put in."""
    if table_of(module, name).get(name) is None:
        with torch.no_grad():
            computed: Tensor = getattr(module, name)
        if not comes_out(computed, value.detach().to(computed)):
            raise _untried(module, name)


def _untried(module: nn.Module, name: str) -> UnsupportedModuleError:
    return UnsupportedModuleError(
        f"{type(module).__name__} without a plain parameter {name!r}",
        "a parameter of that name that is plain, or computed by a parametrization that can be inverted, such as weight_norm",
        "remove what computes it first, e.g. torch.nn.utils.parametrize.remove_parametrizations or torch.nn.utils.prune.remove",
    )
