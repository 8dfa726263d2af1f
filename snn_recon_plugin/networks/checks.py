"""What a net must be for the package to read it, checked before its first pass."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import NetworkError, UnsupportedModuleError
from .adapters import is_neuron, library_of

__all__ = ["check_readable", "only_library"]


def only_library(net: nn.Module) -> str:
    """Name the one library whose neurons a net is built from.

    Args:
        net: the net.

    Returns:
        ``"snntorch"`` or ``"norse"``.

    Raises:
        UnsupportedModuleError: if there are modules of both, or no neuron of either.
    """
    found = {library for module in net.modules() if (library := library_of(module)) is not None}
    if len(found) > 1:
        raise UnsupportedModuleError(
            f"modules of {' and '.join(sorted(found))} in one net",
            "a net built from one library's neurons",
            "build all layers from the neurons of snnTorch, or all from Norse's",
        )
    if not any(is_neuron(module) for module in net.modules()):
        kinds = sorted({type(module).__name__ for module in net.modules() if module is not net})
        raise UnsupportedModuleError(
            f"no spiking neuron of snnTorch or Norse; the net ({type(net).__name__}) holds {', '.join(kinds) or 'no modules'}",
            "a net with neurons of one of these libraries",
            "put neurons between its layers, e.g. snn.Leaky(beta=0.9) or norse.LIFCell()",
        )
    return found.pop()


def check_readable(net: nn.Module) -> None:
    """Refuse nets whose hooks never fire, or whose parameters a first pass would create or that are not finite.

    Args:
        net: the net.

    Raises:
        NetworkError: if a parameter isn't finite.
        UnsupportedModuleError: if the net is a compiled one's wrapper, lazy, scripted or quantized.
    """
    if hasattr(net, "_orig_mod"):
        raise UnsupportedModuleError(
            "a compiled net, which ignores hooks", "the net itself", "pass net._orig_mod; it shares its parameters"
        )
    for name, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            kind, fix = "a TorchScript module", "pass the net from before torch.jit.script or torch.jit.trace"
        elif type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            kind, fix = "a quantized module", "reconstruct first and quantize afterwards"
        else:
            continue
        raise UnsupportedModuleError(f"{kind} at {name!r} ({type(module).__name__})", "modules with plain parameters", fix)
    for name, parameter in net.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise UnsupportedModuleError(
                f"the parameter {name!r} of a lazy layer has no values yet",
                "a net with all parameters made",
                "run the net once on a batch first",
            )
        if not bool(torch.isfinite(parameter.detach()).all()):
            raise NetworkError(f"the parameter {name!r} holds NaN or infinity", "finite parameters", "build or load the net again")
