"""Values that are in the net for a while, and the trained ones that come back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..report import Report

__all__ = ["Loan", "named"]


def named(module: nn.Module, values: Iterable[tuple[nn.Parameter, Tensor]]) -> dict[str, Tensor]:
    """Copies of values by the names that their parameters have in ``module``, for a checkpoint; of those that it has."""
    names = {id(parameter): name for name, parameter in module.named_parameters(remove_duplicate=False)}
    return {names[id(parameter)]: value.clone() for parameter, value in values if id(parameter) in names}


class Loan:
    """Values that come back when training goes on; made ahead of a write, so that no interrupt comes between the two.

    Args:
        trained: parameters, and the values that come back.
    """

    def __init__(self, trained: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
        self.trained = list(trained)
        self.report: Report | None = None  # of what is in the net meanwhile, which can't be undone any more when the loan ends

    @classmethod
    def of(cls, parameters: Iterable[nn.Parameter]) -> Loan:
        """Parameters as they are now."""
        return cls((parameter, parameter.detach().clone()) for parameter in parameters)

    @classmethod
    def of_checkpoint(cls, module: nn.Module, trained: Mapping[str, Tensor]) -> Loan:
        """What a checkpoint has beside its weights, by name."""
        return cls((module.get_parameter(name), value) for name, value in trained.items())

    def end(self) -> None:
        """The trained values come back, bit for bit."""
        if self.report is not None and self.report.replaced:
            self.report.undo()
        with torch.no_grad():
            for parameter, value in self.trained:
                parameter.copy_(value)
