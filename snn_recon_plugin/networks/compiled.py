"""Nets, or parts of nets, that went through ``torch.compile``: found, unwrapped, and run without their compiled code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from ..errors import UnsupportedModuleError

__all__ = ["run_eagerly", "unwrap"]


def unwrap(net: nn.Module) -> nn.Module:
    """Give the net inside what ``torch.compile(net)`` returned, which shares all its parameters; another net as it is.

    Args:
        net: a net, compiled or not.

    Returns:
        The net itself, on which hooks fire.
    """
    inner = getattr(net, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else net


def run_eagerly(net: nn.Module) -> Callable[[], object]:
    """Run compiled modules without their compiled code from now on; nothing happens to a net without any.

    Args:
        net: the net.

    Returns:
        The call that ends it; it may be repeated.

    Raises:
        UnsupportedModuleError: if a part of the net is compiled and this version of torch can't run it otherwise.
    """
    compiled = [name for name, module in net.named_modules() if _is_compiled(module)]
    if not compiled:
        return lambda: None
    set_stance = getattr(torch.compiler, "set_stance", None)
    if set_stance is None:
        raise UnsupportedModuleError(
            f"a compiled module {compiled[0]!r}, on which hooks do not fire",
            "modules that are not compiled, or torch 2.6, which can run them uncompiled",
            "compile the net afterwards",
        )
    # One line, so that no interrupt comes between the stance and what ends it.
    return partial(set_stance("force_eager").__exit__, None, None, None)


def _is_compiled(module: nn.Module) -> bool:
    """Say whether a module is what ``torch.compile`` returned, or was compiled in place by ``module.compile()``."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
