"""Other values that the network returns, and how its classes would be decided by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .convex import accuracy_of
from .errors import warn_user
from .networks import Source

if TYPE_CHECKING:
    from .options import Options
    from .outcome import Found
    from .report import Report

__all__ = ["OtherReadout", "other_decisions", "warn_of_others"]

_ALIKE = 0.02  # share of decisions that differ between two readouts of one net without anybody noticing


@dataclass(frozen=True)
class OtherReadout:
    """How another item of the network's output would decide, measured on the written network.

    Args:
        source: the item and how classes come from it, e.g. "membrane mean of output[1]".
        option: the ``readout=`` that takes it.
        differing: share of the held-out samples that it decides differently, 0 to 1.
        accuracy: of its decisions on them.
        own_accuracy: of the decisions that the report is about, on the same samples.
        samples: how many these are.
    """

    source: str
    option: str
    differing: float
    accuracy: float
    own_accuracy: float
    samples: int

    @property
    def notable(self) -> bool:
        """True if it decides more than 2 % of the samples differently."""
        return self.differing > _ALIKE

    def __str__(self) -> str:
        """Say how many decisions differ, and which option takes it."""
        return f"{self.source} decides {100 * self.differing:.1f} % differently: readout={self.option!r} if your test reads it"


def other_decisions(found: Found, own: Tensor, others: Mapping[Source, Tensor]) -> tuple[OtherReadout, ...]:
    """Compare the decisions of other items of the output with the network's own, on held-out samples that it was run on.

    Args:
        found: after the solve.
        own: the written network's own scores of the first samples.
        others: the scores ``[m, C]`` of other items.
    """
    held = found.split.heldout[found.split.heldout < len(own)].to(own.device)
    held = held if len(held) else torch.arange(len(own), device=own.device)
    targets = found.rows.decided(found.prepared(held))
    scores = found.rows.decisions(own[held])
    decided, accuracy = found.loss.predictions(scores), accuracy_of(found.loss, scores, targets)
    compared = []
    for source, values in others.items():
        there = values[held]
        differing = float((found.loss.predictions(there) != decided).double().mean())
        right = accuracy_of(found.loss, there, targets)
        compared.append(OtherReadout(str(source), source.kind, differing, right, accuracy, len(held)))
    return tuple(compared)


def warn_of_others(report: Report, options: Options) -> None:
    """Warn of another returned value that decides differently, where neither an option nor the loss says what decides."""
    said = options.readout != "auto" or options.scores is not None or options.criterion.takes is not None
    if said or options.warm_start:
        return
    for other in report.others:
        if other.notable:
            text = (
                f"Classes are decided by the {report.decided_by}. The {other.source} decides {100 * other.differing:.1f} % of "
                f"{other.samples} held-out samples differently, {100 * other.accuracy:.1f} % right against "
                f"{100 * other.own_accuracy:.1f} %. Pass readout={other.option!r} if your test reads it, "
                f"readout={report.readout_kind!r} if not."
            )
            warn_user(text)
