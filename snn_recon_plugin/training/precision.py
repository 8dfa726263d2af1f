"""A network's forward as the trainer has it: its precision, and without what a compiler made of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..networks import Forward, Within

__all__ = ["in_precision", "rounding", "uncompiled"]


def rounding(trainer: Any) -> float:
    """Relative difference of scores that is rounding alone, where the trainer's precision rounds to 16 bits on the way."""
    types = {"16": torch.float16, "bf16": torch.bfloat16}
    kind = types.get(str(trainer.precision).split("-", maxsplit=1)[0])
    return 0.0 if kind is None else 8 * torch.finfo(kind).eps


def in_precision(trainer: Any, forward: Forward) -> Forward:
    """The forward as the trainer's precision has it, autocast included."""
    return Within(forward, trainer.precision_plugin.forward_context)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Hooks fire only in code that runs uncompiled, also where Lightning itself holds the compiled module."""
    stance = getattr(torch.compiler, "set_stance", None)
    if stance is None:
        yield
    else:
        with stance("force_eager"):
            yield
