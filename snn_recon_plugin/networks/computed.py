"""Parameters that are computed from others: by parametrizations, by pruning, by quantization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import UnsupportedModuleError
from .state import ModuleState

__all__ = ["chain_of", "comes_out", "computed_by", "holder_of", "is_frozen", "originals_of", "refuse_computed", "table_of"]

# What computes a value by a hook of older kinds, and how it is removed; {} stands for module and name.
_REMOVED = {
    "pruning": "torch.nn.utils.prune.remove({}) first",
    "weight_norm": "torch.nn.utils.remove_weight_norm({}) first",
    "spectral_norm": "torch.nn.utils.remove_spectral_norm({}) first",
    "the module, e.g. by quantization,": "reconstruct first and quantize afterwards",
}


def computed_by(module: nn.Module, name: str) -> str:
    """Name what computes a value into a module, where a copy is lost at the next forward.

    Args:
        module: the module.
        name: the value's name in it.

    Returns:
        For example ``"pruning"``; empty for a plain parameter, one that is not there, and one computed by parametrizations.
    """
    if f"{name}_mask" in module._buffers:
        return "pruning"
    if f"{name}_g" in module._parameters:
        return "weight_norm"
    if f"{name}_orig" in module._parameters:
        return "spectral_norm"
    plain = name in module._parameters or parametrize.is_parametrized(module, name) or not hasattr(module, name)
    return "" if plain else "the module, e.g. by quantization,"


def is_frozen(module: nn.Module, name: str) -> bool:
    """Say whether a value, or any parameter that it is computed from, has ``requires_grad=False``.

    Args:
        module: the module.
        name: the value's name in it, e.g. ``"weight"``.
    """
    if parametrize.is_parametrized(module, name):
        sources = list(holder_of(module, name)._parameters.values())
    else:
        sources = [module._parameters.get(part) for part in (name, f"{name}_g", f"{name}_v", f"{name}_orig")]
    return any(source is not None and not source.requires_grad for source in sources)


def refuse_computed(module: nn.Module, name: str, path: str, spelled: str = "module") -> None:
    """Refuse a parameter that others are computed into, where a copy is lost at the next forward.

    Args:
        module: the module.
        name: the parameter's name in it.
        path: how a message calls it.
        spelled: how the user types the module.

    Raises:
        UnsupportedModuleError: if it is computed by pruning, by hooks of older kinds of normalisation, or by the module.
    """
    how = computed_by(module, name)
    if how:
        fix = _REMOVED[how].format(f'{spelled}, "{name}"' if how == "pruning" else f'{spelled}, name="{name}"')
        raise UnsupportedModuleError(f"{path} is computed by {how}", "a plain parameter", fix)


def holder_of(module: nn.Module, name: str) -> nn.Module:
    """Give the module that holds the parameters which a parametrized one is computed from.

    Args:
        module: the module.
        name: the parameter's name in it.
    """
    lists = module.parametrizations
    assert isinstance(lists, nn.ModuleDict)
    return lists[name]


def chain_of(module: nn.Module, name: str) -> list[Any]:
    """List the parametrizations of a parameter in the order in which they are applied.

    Args:
        module: the module.
        name: the parameter's name in it.
    """
    holder = holder_of(module, name)
    assert isinstance(holder, nn.ModuleList)
    return list(holder)


def table_of(module: nn.Module, name: str) -> dict[str, Any]:
    """Return the table of a module that a parameter, or a buffer that is saved with it, hangs in.

    Args:
        module: the module.
        name: the parameter's or buffer's name in it.
    """
    of_buffer = module._buffers.get(name) is not None and name not in module._non_persistent_buffers_set
    return module._buffers if of_buffer else module._parameters


def originals_of(module: nn.Module, name: str, value: Tensor) -> list[tuple[nn.Module, str, Tensor]]:
    """Compute the parameters that a parametrized value comes from, through the inverses of its parametrizations.

    Args:
        module: the module.
        name: the parameter's name in it.
        value: the value that is to come out, of the parameter's shape and dtype.

    Returns:
        For each of these parameters the module that holds it, its name there and its value.

    Raises:
        NotImplementedError: if a parametrization has no inverse.
        ValueError: if an inverse can't take the value; or a RuntimeError, as the inverse pleases.
    """
    parts: Any = value
    holder = holder_of(module, name)
    kept = ModuleState(holder.modules())  # the inverse of an orthogonal parametrization writes into a buffer of it
    try:
        with torch.no_grad():
            for step in reversed(chain_of(module, name)):
                if not hasattr(step, "right_inverse"):
                    raise NotImplementedError(f"{type(step).__name__} has no right_inverse")
                parts = step.right_inverse(parts)
                if type(step).__name__ == "_WeightNorm":
                    parts = _directed(parts, holder)
    finally:
        kept.restore()
    originals = [parts] if isinstance(parts, Tensor) else list(parts)
    names = ["original"] if isinstance(parts, Tensor) else [f"original{number}" for number in range(len(originals))]
    return [(holder, part, original) for part, original in zip(names, originals, strict=True)]


def _directed(parts: Any, holder: nn.Module) -> Any:
    """Give rows of size zero the direction that they have now: weight_norm divides by its length."""
    size, direction = parts
    now: Tensor = holder._parameters["original1"]  # type: ignore[assignment]
    now = torch.where(now == 0, torch.ones_like(now), now)
    return size, torch.where(size == 0, now, direction)


def comes_out(computed: Tensor, value: Tensor) -> bool:
    """Say whether a parametrized value is, up to rounding, the one that was put in.

    Args:
        computed: what the module computes.
        value: what was to come out, of the same shape.
    """
    off = float((computed.double() - value.double()).abs().max())
    return off <= 16 * torch.finfo(value.dtype).eps * float(value.double().abs().max())
