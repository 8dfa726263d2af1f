"""What a run needs to know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from .convex.shards import Alone
from .criteria import Criterion
from .networks import Forward
from .stream import Unpack
from .witnesses import Sampler

__all__ = ["Options"]


class Options(Protocol):
    """What a run needs to know, checked before; documented at ``ConvexInitializer``."""

    hidden: str
    witnesses: str | Sampler
    n_candidates: float | int
    rounds: int
    unit_parameters: bool
    criterion: Criterion
    fit_loss: str
    penalty: str
    strength: float | str
    readout: str
    readout_layer: str | None
    scores: Callable[[Any], Tensor] | None
    classes: int | None
    solver: str
    tol: float
    max_cost: float
    max_samples: int | None
    holdout: float
    allow_tied: bool
    seed: int
    forward: Forward
    unpack: Unpack | None
    progress: bool | None
    near: tuple[str, float] | None
    warm_start: bool
    compared: int
    shards: Alone
