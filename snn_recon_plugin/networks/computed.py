"""Parameters that are computed from others: by parametrizations, by pruning, by quantization."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import UnsupportedModuleError

__all__ = ["chain_of", "holder_of", "refuse_computed"]


def refuse_computed(module: nn.Module, name: str, path: str) -> None:
    """Refuse a parameter that others are computed into, where a copy is lost at the next forward.

    Args:
        module: the module.
        name: the parameter's name in it.
        path: how a message calls it.

    Raises:
        UnsupportedModuleError: if it is computed by pruning, by hooks of older kinds of normalisation, or by the module.
    """
    if f"{name}_mask" in module._buffers:
        how, fix = "pruning", "torch.nn.utils.prune.remove(module, name) first"
    elif f"{name}_g" in module._parameters:
        how, fix = "weight_norm", "torch.nn.utils.remove_weight_norm(module, name) first"
    elif f"{name}_orig" in module._parameters:
        how, fix = "spectral_norm", "torch.nn.utils.remove_spectral_norm(module, name) first"
    elif name not in module._parameters and hasattr(module, name):
        how, fix = "the module, e.g. by quantization,", "reconstruct first and quantize afterwards"
    else:
        return
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
