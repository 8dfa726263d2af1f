"""A judgement of the user's own: the monitored metric of a run, or anything else that tells two readouts apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import OptionError
from ..networks import preserved

__all__ = ["Judge", "judgement"]

Judge = Callable[[Any], Any]


def judgement(judge: Judge, module: Any, seed: int) -> float:
    """What the user's function says of a module as it is, which is left as it was found.

    Args:
        judge: ``judge(module)``; less is better.
        module: the LightningModule, in evaluation mode meanwhile and without gradients.
        seed: of random generators meanwhile, so that two judgements differ by the readout alone.

    Raises:
        OptionError: it gives no number.
    """
    with preserved(module, seed=seed):
        value = judge(module)
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        fix = "return a float, less for better, e.g. minus the accuracy on validation data"
        raise OptionError(f"judge gave a {type(value).__name__}", "one number", fix) from None
