"""A readout that is in the net for a while, and the trained one that comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..report import Report

__all__ = ["Loan"]


class Loan:
    """Refitted values that are in the net until training goes on.

    Args:
        trained: parameters, and the values that come back.
        give_back: puts them back, bit for bit.
    """

    def __init__(self, trained: Sequence[tuple[nn.Parameter, Tensor]], give_back: Callable[[], None]) -> None:
        self.trained, self._give_back = list(trained), give_back

    @classmethod
    def of_report(cls, report: Report) -> Loan:
        """What a solve has just written; nothing comes back where the user has undone it since."""
        return cls(report.replaced, lambda: report.undo() if report.replaced else None)

    @classmethod
    def of_checkpoint(cls, module: nn.Module, trained: Mapping[str, Tensor]) -> Loan:
        """What a checkpoint's weights have, and the trained values beside them, by name."""
        pairs = [(module.get_parameter(name), value) for name, value in trained.items()]

        def give_back() -> None:
            with torch.no_grad():
                for parameter, value in pairs:
                    parameter.copy_(value)

        return cls(pairs, give_back)

    def end(self) -> None:
        """The trained values come back."""
        self._give_back()
