"""Hardness of samples, 1 - p(label): a measurement of all samples of a data set, or the scores of a training batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed import SingleProcess
from ..errors import DataError
from ..networks import Inspections, StoredBatch, device_of, fast_passes, private_copy, quiet, record, unwrap
from ..stages import Context, Options, inspect_task
from .measure import TEMPERATURES

_HOPELESS = -100.0  # least log p(label), and that of scores that are NaN

Decode = Callable[[Any], Tensor]


def log_probabilities(scores: Tensor, labels: Tensor) -> Tensor:
    """Return log p(label) at each temperature, (T, B), of scores (B, C), or (B, 1) for two classes."""
    if scores.shape[1] == 1:
        scores = torch.cat([torch.zeros_like(scores), scores], 1)
    scaled = scores.float() / torch.tensor(TEMPERATURES, device=scores.device)[:, None, None]
    logs = scaled.log_softmax(2).gather(2, labels.to(scores.device).expand(len(scaled), -1)[..., None])[..., 0]
    return logs.nan_to_num(nan=_HOPELESS).clamp_min(_HOPELESS)


def measure_hardness(
    net: nn.Module,
    batches: Iterable[Any],
    options: Options,
    count: int,
    processes: SingleProcess,
    known: Inspections | None = None,
    shared: Iterable[object] = (),
) -> tuple[Tensor, Tensor, Decode]:
    """Return hardness (n,) and labels (n,) of the first ``count`` samples in batches, and the function from outputs to scores.

    The temperature has the least mean loss.  Of several processes each has every ``size``-th sample; the result is of all.
    """
    net = private_copy(unwrap(net), shared)
    with processes.share_errors(), quiet(net, seed=options.seed, loader=batches), fast_passes(net):
        stream = options.open(batches, device_of(net))
        head, first = stream.head(1)
        if first.dim() != 1 or first.is_floating_point():
            found = f"targets of {first.dtype}, shape {tuple(first.shape)}"
            raise DataError(found, "one class index a sample: hardness is 1 - p(label)", "train with shuffle=True instead")
        task = inspect_task(net, head[0], first, options, Context(warm_start=True, inspections=known))

        def decode(output: Any) -> Tensor:
            return task.rows.decisions(task.readout.scores(output))

        logs, labels = [], []
        for batch in stream:
            task.prepare(batch.targets)  # refuses labels out of range
            stored = StoredBatch(batch.inputs, slice(0, len(batch.targets)), batch.number)
            logs.append(log_probabilities(decode(record(net, stored, options.call)), batch.targets).cpu())
            labels.append(batch.targets.cpu())
        own = torch.cat(logs, 1)[:, :count], torch.cat(labels)[:count]
        if len(own[1]) < count or int(stream.numbers[-1]) >= len(stream.numbers):
            found, fix = "samples with a label that the loss ignores", "leave these samples out of the data set"
            raise DataError(found, "a class for each sample", fix)
    parts = processes.gather(own)
    total = torch.empty(len(TEMPERATURES), sum(len(part) for _, part in parts))
    of_all = torch.empty(total.shape[1], dtype=torch.int64)
    for rank, part in enumerate(parts):
        total[:, rank :: len(parts)], of_all[rank :: len(parts)] = part
    return 1 - total[total.mean(1).argmax()].exp(), of_all, decode
