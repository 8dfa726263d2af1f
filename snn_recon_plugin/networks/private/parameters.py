"""Parameters of a module, plain or computed from others, and writes of other values into a private net."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...errors import UnsupportedModuleError, WriteError
from ..libraries import is_neuron, library_of
from .workbench import overwrite

Values: TypeAlias = Mapping[tuple[nn.Module, str], Tensor]  # of parameters and saved buffers, by module and name

# What computes a parameter, and how it is removed; {} stands for module and name.
_REMOVED = {
    "pruning": "torch.nn.utils.prune.remove({}) first",
    "weight_norm": "torch.nn.utils.remove_weight_norm({}) first, or use torch.nn.utils.parametrizations.weight_norm",
    "spectral_norm": "torch.nn.utils.remove_spectral_norm({}) first",
    "its module": "reconstruct first and quantize afterwards",
}
_REMOVED_PARAMETRIZATION = "torch.nn.utils.parametrize.remove_parametrizations({}) first"
RUNNING = ("running_mean", "running_var")  # buffers of a norm
_WRITTEN = "_WeightNorm"  # the one parametrization whose parts are found from a value, for any value


def find_computation(module: nn.Module, name: str) -> str:
    """Return what computes a parameter, e.g. ``"pruning"``; empty for a plain one, and under ``parametrizations.weight_norm``."""
    if f"{name}_mask" in module._buffers:
        return "pruning"
    if f"{name}_g" in module._parameters:
        return "weight_norm"
    if f"{name}_orig" in module._parameters:
        return "spectral_norm"
    if parametrize.is_parametrized(module, name):
        steps = [type(step).__name__ for step in parametrization_of(module, name)]
        return "" if steps == [_WRITTEN] else f"the parametrization {', '.join(step.strip('_') for step in steps)}"
    buffer = name in module._buffers and (is_neuron(module) or name in RUNNING)
    plain = name in module._parameters or buffer or not hasattr(module, name)
    return "" if plain else "its module"


def refuse_computed(module: nn.Module, name: str, path: str, *, typed: str) -> None:
    """Refuse a parameter that is computed from others; messages show it as ``path``, and its module as ``typed``."""
    how = find_computation(module, name)
    if how:
        fix = _REMOVED.get(how, _REMOVED_PARAMETRIZATION).format(f'{typed}, "{name}"')
        raise UnsupportedModuleError(f"{path} is computed by {how}", "a plain parameter, or weight_norm as a parametrization", fix)


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


def plain_values(
    module: nn.Module, name: str, value: Tensor, *, path: str, grows: bool = False
) -> list[tuple[nn.Module, str, Tensor]]:
    """List the plain parameters that make a value; refuse one of another shape, but for a leak a unit, and rows if it ``grows``."""
    current = cast(Tensor, getattr(module, name)).detach()  # not under no_grad, which an interrupt could leave switched on
    shared_leak = current.numel() == 1 and is_neuron(module) and library_of(module).leak_name(module) == name
    per_unit = value.dim() > 0 and value.numel() == len(value)
    more_rows = grows and 0 < current.dim() == value.dim() and value.shape[1:] == current.shape[1:] and len(value) > len(current)
    if current.shape != value.shape and not (shared_leak and per_unit) and not more_rows:
        found = f"a value of shape {list(value.shape)} for {path}"
        raise WriteError(found, f"the parameter's shape {list(current.shape)}", "give a value of that shape")
    return _split(module, name, value)


def follow_rows(module: nn.Module) -> None:
    """Let a Linear's ``out_features`` follow the rows of its weight."""
    if isinstance(module, nn.Linear) and module.out_features != len(module.weight):
        module.out_features = len(module.weight)


def parametrization_of(module: nn.Module, name: str) -> parametrize.ParametrizationList:
    """Return the parametrizations of a parameter in order of application; the list holds the parameters they start from."""
    return cast(parametrize.ParametrizationList, cast(nn.ModuleDict, module.parametrizations)[name])


def _split(module: nn.Module, name: str, value: Tensor) -> list[tuple[nn.Module, str, Tensor]]:
    """List the module, name and value of each plain parameter that makes a value, in the parameter's dtype and on its device."""
    value = value.detach().to(cast(Tensor, getattr(module, name)))
    if not parametrize.is_parametrized(module, name):
        return [(module, name, value)]
    steps = parametrization_of(module, name)
    size, direction = cast(Any, steps[0]).right_inverse(value)
    # Rows of size zero keep the direction that they have now: weight_norm divides by its length.
    now = cast(Tensor, steps._parameters["original1"]).detach()
    now = torch.where(now == 0, torch.ones_like(now), now)
    now = torch.cat([now, torch.ones_like(direction[len(now) :])])  # of new rows
    return [(steps, "original0", size), (steps, "original1", torch.where(size == 0, now, direction))]


def can_replace(module: nn.Module, name: str) -> bool:
    """Return whether a parameter is there, and plain or computed by weight_norm as a parametrization."""
    there = module._parameters.get(name) is not None or parametrize.is_parametrized(module, name)
    return there and not find_computation(module, name)


@contextmanager
def with_values(values: Values) -> Iterator[None]:
    """Put values of any shape in place of parameters, or of what computes them, and buffers until the block ends."""
    with ExitStack() as stack:
        for place, value in values.items():
            for module, name, plain in _split(*place, value):
                learned = name in module._parameters
                store: dict[str, Any] = module._parameters if learned else module._buffers
                stack.callback(store.__setitem__, name, store[name])
                store[name] = nn.Parameter(plain, requires_grad=False) if learned else plain
        yield


def write_values(values: Values) -> Values:
    """Write values, also a leak for each unit or more rows, into a private net; return copies of those that they replace."""
    replaced: dict[tuple[nn.Module, str], Tensor] = {}
    for place, value in values.items():
        for module, name, plain in _split(*place, value):
            tensor = cast(Tensor, getattr(module, name))
            replaced[module, name] = tensor.detach().clone()
            overwrite(tensor, plain)
            follow_rows(module)
    torch.clear_autocast_cache()  # an autocast around the call would go on with its cast of the old value
    return replaced
