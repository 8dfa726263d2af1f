"""Parameters of a module, plain or computed from others, and runs with other values in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import UnsupportedModuleError, WriteError
from .libraries import is_neuron, library_of
from .state import ModuleState

# Older kinds of computation, which a hook repeats at every forward, and how each is removed; {} stands for module and name.
_REMOVED = {
    "pruning": "torch.nn.utils.prune.remove({}) first",
    "weight_norm": "torch.nn.utils.remove_weight_norm({}) first",
    "spectral_norm": "torch.nn.utils.remove_spectral_norm({}) first",
    "the module, e.g. by quantization,": "reconstruct first and quantize afterwards",
}
_ROUNDING = 16  # units in the last place by which a value may change on its way through a parametrization and back


def find_computation(module: nn.Module, name: str) -> str:
    """Return what overwrites a parameter at every forward, such as ``"pruning"``; empty if nothing does, or a parametrization."""
    if f"{name}_mask" in module._buffers:
        return "pruning"
    if f"{name}_g" in module._parameters:
        return "weight_norm"
    if f"{name}_orig" in module._parameters:
        return "spectral_norm"
    plain = name in module._parameters or parametrize.is_parametrized(module, name) or not hasattr(module, name)
    return "" if plain else "the module, e.g. by quantization,"


def refuse_computed(module: nn.Module, name: str, path: str, spelled: str) -> None:
    """Refuse a parameter that is overwritten at every forward, so that a copy into it is lost.

    Messages show the parameter as ``path``, and the module as ``spelled``.
    """
    how = find_computation(module, name)
    if how:
        fix = _REMOVED[how].format(f'{spelled}, "{name}"' if how == "pruning" else f'{spelled}, name="{name}"')
        raise UnsupportedModuleError(f"{path} is computed by {how}", "a plain parameter", fix)


def is_frozen(module: nn.Module, name: str) -> bool:
    """Return whether a parameter, or any that it is computed from, has ``requires_grad=False``."""
    if parametrize.is_parametrized(module, name):
        sources = list(parametrization_of(module, name)._parameters.values())
    else:
        sources = [module._parameters.get(part) for part in (name, f"{name}_g", f"{name}_v", f"{name}_orig")]
    return any(source is not None and not source.requires_grad for source in sources)


def store_of(module: nn.Module, name: str) -> dict[str, Any]:
    """Return the dict of a module that holds a parameter, or a buffer that is saved with it."""
    is_buffer = module._buffers.get(name) is not None and name not in module._non_persistent_buffers_set
    return module._buffers if is_buffer else module._parameters


def plain_values(module: nn.Module, name: str, value: Tensor, path: str) -> list[tuple[nn.Module, str, Tensor]]:
    """List the module, name and value of each plain parameter that makes a value; refuse a value that can't be made.

    The value has the parameter's shape, or for the leak of all units one number for each unit.
    """
    current = _read(module, name)
    shared_leak = current.numel() == 1 and is_neuron(module) and library_of(module).leak_name(module) == name
    per_unit = value.dim() > 0 and value.numel() == len(value)
    if current.shape != value.shape and not (shared_leak and per_unit):
        raise WriteError(
            f"a value of shape {list(value.shape)} for {path}",
            f"the parameter's shape {list(current.shape)}",
            "give a value of that shape",
        )
    value = value.detach().to(current)
    return _invert(module, name, value, path) if parametrize.is_parametrized(module, name) else [(module, name, value)]


# -- parametrizations ----------------------------------------------------------------------------------------------------------


def parametrization_of(module: nn.Module, name: str) -> parametrize.ParametrizationList:
    """Return the parametrizations of a parameter in order of application; the list holds the parameters they start from."""
    return cast(parametrize.ParametrizationList, cast(nn.ModuleDict, module.parametrizations)[name])


def refuse_uninvertible(module: nn.Module, name: str, path: str) -> None:
    """Refuse parametrizations through which no value can be written; ``path`` is the parameter in a message."""
    if _rescales(module, name):
        raise _uninvertible(path, "spectral_norm, which rescales whatever is written")
    if not all(hasattr(step, "right_inverse") for step in parametrization_of(module, name)):
        raise _uninvertible(path, "a parametrization without a right_inverse")


def _rescales(module: nn.Module, name: str) -> bool:
    """Return whether a parametrization rescales any value, and changes its buffers when it is read, as spectral_norm does."""
    return any("SpectralNorm" in type(step).__name__ for step in parametrization_of(module, name))


def _invert(module: nn.Module, name: str, value: Tensor, path: str) -> list[tuple[nn.Module, str, Tensor]]:
    """Invert parametrizations that have passed :func:`refuse_uninvertible`."""
    parts: Any = value
    steps = parametrization_of(module, name)
    kept = ModuleState(steps.modules())  # the inverse of an orthogonal parametrization writes into one of its buffers
    try:
        with torch.no_grad():
            for step in reversed(list(steps)):
                parts = cast(Any, step).right_inverse(parts)
                if type(step).__name__ == "_WeightNorm":
                    parts = _with_direction(parts, steps)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise _uninvertible(path, f"a parametrization that can't take the value ({error})") from error
    finally:
        kept.restore()
    if isinstance(parts, Tensor):
        return [(steps, "original", parts)]
    return [(steps, f"original{number}", part) for number, part in enumerate(parts)]


def _with_direction(parts: Any, steps: nn.Module) -> tuple[Tensor, Tensor]:
    """Give rows of size zero the direction that they have now: weight_norm divides by its length."""
    size, direction = parts
    now = cast(Tensor, steps._parameters["original1"])
    now = torch.where(now == 0, torch.ones_like(now), now)
    return size, torch.where(size == 0, now, direction)


def check_computed(module: nn.Module, name: str, value: Tensor, path: str) -> None:
    """Refuse a parametrization that makes another value, up to rounding, than the one that was put in."""
    if not parametrize.is_parametrized(module, name):
        return
    computed = _read(module, name)
    wanted = value.detach().to(computed)
    off = float((computed.double() - wanted.double()).abs().max())
    if not off <= _ROUNDING * torch.finfo(wanted.dtype).eps * float(wanted.double().abs().max()):
        raise _uninvertible(path, f"a value that comes out different by {off:.3g}")


def _uninvertible(path: str, how: str) -> UnsupportedModuleError:
    return UnsupportedModuleError(
        f"{path} is computed by {how}",
        "a plain parameter, or a parametrization that can be inverted, such as weight_norm",
        "torch.nn.utils.parametrize.remove_parametrizations(module, name) first",
    )


# -- other values for a while --------------------------------------------------------------------------------------------------


@contextmanager
def replace_values(module: nn.Module, values: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Replace plain parameters and buffers by values of any shape until the block ends; then the original objects."""
    with ExitStack() as stack:
        for name, value in (values or {}).items():
            learned = name in module._parameters
            store: dict[str, Any] = module._parameters if learned else module._buffers
            original = store[name]
            stack.callback(store.__setitem__, name, original)
            other = value.detach().to(original)
            store[name] = nn.Parameter(other, requires_grad=False) if learned else other
        yield


@contextmanager
def replace_parameters(values: Mapping[tuple[nn.Module, str], Tensor]) -> Iterator[None]:
    """Put other parameters, or buffers, in place of a net's until the block ends; then the original objects.

    The leak that all units of a neuron share may become one for each unit.  A parametrized weight, as of
    ``torch.nn.utils.parametrizations.weight_norm``, takes its value through the inverse of its parametrization.

    Raises:
        UnsupportedModuleError: a module has no parameter of that name, or computes it in a way that can't be inverted.
        WriteError: a value has another shape than the parameter.
    """
    for module, name in values:
        _check_replaceable(module, name)
    plain = [part for (module, name), value in values.items() for part in plain_values(module, name, value, _path(module, name))]
    with ExitStack() as stack:
        for module, name, value in plain:
            stack.enter_context(replace_values(module, {name: value}))
        for (module, name), value in values.items():
            check_computed(module, name, value, _path(module, name))
        yield


def _check_replaceable(module: nn.Module, name: str) -> None:
    """Refuse a parameter that is neither plain nor computed by what can be inverted."""
    if parametrize.is_parametrized(module, name):
        refuse_uninvertible(module, name, _path(module, name))
    elif store_of(module, name).get(name) is None:
        raise UnsupportedModuleError(
            f"{_path(module, name)} is no plain parameter",
            "a parameter of that name that is plain, or computed by a parametrization that can be inverted, such as weight_norm",
            "remove what computes it first, e.g. torch.nn.utils.prune.remove",
        )


def can_replace(module: nn.Module, name: str) -> bool:
    """Return whether a parameter is there, and plain or computed by what can be inverted: not by spectral_norm or orthogonal."""
    if module._parameters.get(name) is not None:
        return True
    if not parametrize.is_parametrized(module, name) or _rescales(module, name):
        return False
    value = _read(module, name)
    # Rows of other lengths, as rescaling makes them: some parametrizations take only values like their own.
    factors = torch.linspace(1.5, 2.5, len(value), dtype=value.dtype, device=value.device)
    other = value * factors.reshape(-1, *[1] * (value.ndim - 1))
    try:
        with replace_parameters({(module, name): other}):
            return True
    except UnsupportedModuleError:
        return False


def _read(module: nn.Module, name: str) -> Tensor:
    with torch.no_grad():
        return cast(Tensor, getattr(module, name))


def _path(module: nn.Module, name: str) -> str:
    return f"{name!r} of a {type(module).__name__}"
