"""What a net must be for the package to read it, checked before its first pass."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
from torch import nn

from ..errors import NetworkError, UnsupportedModuleError
from .forward import Forward, OverTime, bare, plain_forward
from .layers import spell
from .libraries import is_neuron, libraries_in

__all__ = ["check_arguments", "check_readable", "only_library"]

# The attributes that nn.Module itself keeps: parameters, buffers, submodules, hooks, mode.  All others are the user's.
_OWN_ATTRIBUTES = frozenset(vars(nn.Module()))


def only_library(net: nn.Module) -> str:
    """Return the one library whose neurons a net is built from.

    Args:
        net: the net.

    Returns:
        ``"snntorch"`` or ``"norse"``.

    Raises:
        UnsupportedModuleError: if there are modules of both, or no neuron of either.
    """
    _refuse_lists(net)
    found = libraries_in(net)
    if len(found) > 1:
        raise UnsupportedModuleError(
            f"modules of {' and '.join(found)} in one net",
            "a net built from one library's neurons",
            "build all layers from the neurons of snnTorch, or all from Norse's",
        )
    if not any(is_neuron(module) for module in net.modules()):
        kinds = sorted({type(module).__name__ for module in net.modules() if module is not net})
        raise UnsupportedModuleError(
            f"no spiking neuron of snnTorch or Norse; the net ({type(net).__name__}) holds {', '.join(kinds) or 'no modules'}",
            "a net with neurons of one of these libraries",
            "put neurons between its layers, e.g. snn.Leaky(beta=0.9) or norse.LIFCell(); a readout of any other "
            "features is solved by snn_recon_plugin.convex.solve",
        )
    return found[0]


def _refuse_lists(net: nn.Module) -> None:
    """Refuse neurons in plain containers: a net neither lists nor moves nor saves what lies in them."""
    known = set(net.modules())
    for module in known:
        for name, value in vars(module).items():
            hidden = (
                [] if name in _OWN_ATTRIBUTES else [part for part in _modules_in(value) if part not in known and is_neuron(part)]
            )
            if hidden:
                kinds = ", ".join(sorted({type(part).__name__ for part in hidden}))
                wrapped = "ModuleDict" if isinstance(value, dict) else "ModuleList"
                raise UnsupportedModuleError(
                    f"{len(hidden)} neurons ({kinds}) in self.{name} of {type(module).__name__}, a plain "
                    f"{type(value).__name__}, which hides them from the net",
                    "neurons that are modules of the net",
                    f"write self.{name} = nn.{wrapped}(...) in its __init__",
                )


def _modules_in(value: object) -> Iterator[nn.Module]:
    """Yield the modules in plain lists, tuples and dicts, nested at will."""
    if isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, nn.Module):
                yield item
            else:
                yield from _modules_in(item)


def check_arguments(net: nn.Module, forward: Forward) -> None:
    """Refuse a net whose own forward needs more than the inputs, such as its states.

    Args:
        net: the net.
        forward: how it is called; a function of the user's own may pass what it likes.

    Raises:
        NetworkError: if it does; the message names the arguments.
    """
    if bare(forward) is not plain_forward and not isinstance(bare(forward), OverTime):
        return
    try:
        arguments = list(inspect.signature(net.forward).parameters.values())[1:]
    except (TypeError, ValueError):
        return
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [each.name for each in arguments if each.default is inspect.Parameter.empty and each.kind not in variable]
    if needed:
        raise NetworkError(
            f"a forward of {type(net).__name__} that also takes {', '.join(needed)}",
            "a function forward(net, inputs) that starts such states and hands them on from step to step",
            f"pass one: def run(net, x): ..., which calls net(x, {', '.join(needed)}) at every step and returns "
            "torch.stack(outputs); then forward=run",
        )


def check_readable(net: nn.Module) -> None:
    """Refuse nets whose hooks never fire, or whose parameters a first pass would create or that are not finite.

    Args:
        net: the net.

    Raises:
        NetworkError: if a parameter or a running statistic isn't finite.
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
    for name, buffer in net.named_buffers():
        owner, _, key = name.rpartition(".")
        if key.startswith("running_") and not bool(torch.isfinite(buffer).all()):
            raise NetworkError(
                f"the buffer {name!r} ({type(net.get_submodule(owner)).__name__}) holds NaN or infinity",
                "finite running statistics",
                f"{spell(owner)}.reset_running_stats(), or load the net again",
            )
