"""Forward that stands in place of a module's own."""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import nn

from .sequence import Tape


class Installed:
    """Forward of one module of a user's net, set on the instance.

    Args:
        module: whose forward it is.
        tape: sequences of the net.
    """

    def __init__(self, module: nn.Module, tape: Tape) -> None:
        self.module, self.tape, self.own = module, tape, module.forward
        self.__wrapped__ = module.forward  # ``inspect.signature`` shows its arguments
        self.calls = self.computed = 0  # calls, and operations that they took

    @property
    def is_idle(self) -> bool:
        """True if the module's own forward does as well, since each call is computed."""
        return self.computed == self.calls

    def __reduce__(self) -> Any:
        """Let copies and pickles of the net run the module's own code."""
        return _own_forward, (self.module,)


def _own_forward(module: nn.Module) -> Any:
    """Return the forward of a module's class."""
    return MethodType(type(module).forward, module)
