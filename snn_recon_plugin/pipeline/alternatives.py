"""Other values that the network returns, and the classes that they would decide."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..convex import accuracy_of
from ..errors import warn_user
from ..networks import Source
from ..report import OtherReadout, Report
from .capture import ProgramData
from .options import Context, Options
from .task import Task

__all__ = ["other_decisions", "warn_of_others"]


def other_decisions(task: Task, data: ProgramData, own: Tensor, others: Mapping[Source, Tensor]) -> tuple[OtherReadout, ...]:
    """Compare the decisions of other items of the output with the network's own, on held-out samples.

    Args:
        task: the program's task.
        data: captured samples.
        own: scores of the written network, of the first samples.
        others: scores ``[m, C]`` of other items.
    """
    held = data.split.heldout[data.split.heldout < len(own)].to(own.device)
    held = held if len(held) else torch.arange(len(own), device=own.device)
    targets = task.rows.decided(data.prepared(task, held))
    scores = task.rows.decisions(own[held])
    decided, accuracy = task.loss.predictions(scores), accuracy_of(task.loss, scores, targets)
    compared = []
    for source, values in others.items():
        there = values[held]
        differing = float((task.loss.predictions(there) != decided).double().mean())
        right = accuracy_of(task.loss, there, targets)
        compared.append(OtherReadout(str(source), source.kind, differing, right, accuracy, len(held)))
    return tuple(compared)


def warn_of_others(report: Report, options: Options, context: Context) -> None:
    """Warn of another returned value that decides differently, unless an option or the loss determines what decides."""
    chosen = options.readout != "auto" or options.scores is not None or options.criterion.takes is not None
    if chosen or context.warm_start:
        return
    for other in report.others:
        if other.notable:
            warn_user(
                f"Classes are decided by the {report.decided_by}. The {other.source} decides {100 * other.differing:.1f} % of "
                f"{other.samples} held-out samples differently, {100 * other.accuracy:.1f} % right against "
                f"{100 * other.own_accuracy:.1f} %. Pass readout={other.option!r} if your test reads it, "
                f"readout={report.readout_kind!r} if not."
            )
