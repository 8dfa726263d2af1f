"""Two sets of values for the same parameters, one of them in the net."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["Swap"]


class Swap:
    """Values that wait beside the net, to be put in for a while, or for good.

    Args:
        parameters: whose present values are kept.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._waiting: list[tuple[nn.Parameter, Tensor]] = [(parameter, parameter.detach().clone()) for parameter in parameters]
        self.inside = False

    def put_in(self) -> None:
        """Into the net; what was there waits meanwhile."""
        if not self.inside:
            self._exchange()

    def take_out(self) -> None:
        """Out of the net again, bit for bit."""
        if self.inside:
            self._exchange()

    def waiting(self) -> list[tuple[nn.Parameter, Tensor]]:
        """The parameters, and what is not in the net now."""
        return list(self._waiting)

    def _exchange(self) -> None:
        with torch.no_grad():
            for number, (parameter, value) in enumerate(self._waiting):
                present = parameter.detach().clone()
                parameter.copy_(value)
                self._waiting[number] = (parameter, present)
        self.inside = not self.inside
