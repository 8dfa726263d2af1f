"""A network's forward as the trainer has it: its precision, and without what a compiler made of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..networks import Forward, Within

__all__ = ["in_precision", "uncompiled"]


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
