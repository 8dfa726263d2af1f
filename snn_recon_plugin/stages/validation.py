"""Validation samples: the batches to capture with them, their split, and what is refused or warned of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed import SingleProcess
from ..errors import DataError, warn_user
from ..networks.calls.batches import describe, tensors_in
from ..networks.calls.record import StoredBatch
from .stream import MIN_SAMPLES, Split, Stream

_COMPARED = 32  # validation samples that are searched for among the samples to fit
_PIXELS = 16  # values of a sample that are compared first
_SHARED = 0.1  # share of these above which a warning is given: small discrete data hold equal samples by chance
_UNKNOWN = 0.05  # share of validation labels that may be missing among the samples to fit, as rare classes are
_FRESH = 8  # writes in place at most to a parameter by initialisations; an optimizer writes at each step
_PASS = "pass val_loader=DataLoader(val_set, batch_size=64), over samples of the same kind that training does not see"


class CapturedBatches:
    """Batches to capture: all validation samples first, then at most ``limit`` samples to fit."""

    def __init__(self, stream: Stream, validation: Stream | None, limit: int | None) -> None:
        self._streams = [(stream, limit)] if validation is None else [(validation, None), (stream, limit)]
        self._validation = validation
        self._rows: Tensor | None = None  # (k, D), the first validation samples
        self.shared = torch.zeros(0, dtype=torch.bool)  # (k,), which of them are among the samples to fit

    def __len__(self) -> int:
        return sum(len(stream) for stream, _ in self._streams)

    def __iter__(self) -> Iterator[StoredBatch]:
        for stream, limit in self._streams:
            for batch in stream:
                part = batch.cut(limit)
                self._compare(stream, part)
                yield part
                if part.rows.stop == limit:
                    break

    @property
    def most(self) -> int | None:
        """Largest number of samples of all streams; None without a limit, or if the validation samples have no length."""
        counts = [limit or stream.total_samples for stream, limit in self._streams]
        return None if self._streams[-1][1] is None or None in counts else sum(count or 0 for count in counts)

    @property
    def numbers(self) -> list[Tensor]:
        """Numbers of the samples of each stream within its loader."""
        return [stream.numbers[:limit] for stream, limit in self._streams]

    def _compare(self, stream: Stream, batch: StoredBatch) -> None:
        """Note which of the first validation samples are in a batch to fit."""
        if self._validation is None:
            return
        rows = _rows_of(batch, stream.axis_of(batch))
        if stream is self._validation:
            if rows is not None and self._rows is None:
                some = rows[:_COMPARED]
                self._rows = some[(some != some[:, :1]).any(1)].clone()  # constant samples are equal by chance
                self.shared = torch.zeros(len(self._rows), dtype=torch.bool)
        elif rows is not None and self._rows is not None and rows.shape[1:] == self._rows.shape[1:]:
            few = slice(None, None, max(1, rows.shape[1] // _PIXELS))
            alike = (rows[:, None, few] == self._rows[None, :, few]).all(2).nonzero()
            for row, known in alike.tolist():
                self.shared[known] |= torch.equal(rows[row], self._rows[known])


def _rows_of(batch: StoredBatch, axis: int | None) -> Tensor | None:
    """Return the samples of a batch's first tensor, (n, D); None if their axis is unclear, or the tensor is sparse."""
    value = next(tensors_in(batch.inputs), None)
    if value is None or axis is None or value.layout is not torch.strided or value.dim() < 2:
        return None
    rows: Tensor = value.movedim(axis, 0)[: batch.size].flatten(1)
    return rows


def split_validation(
    validation: Tensor, fitted: Tensor, processes: SingleProcess, *, judged: int, fit_val: bool
) -> tuple[Split, Tensor]:
    """Return the split that holds out the validation samples, and the places (n,) of all samples among those of all processes.

    Validation samples come first.  Numbers of ``validation`` (v,) and ``fitted`` samples (f,) are those within their loaders.
    """
    held, total = len(validation), processes.total_rows(len(validation))
    behind = 1 + max(processes.gather(int(validation.max())))
    numbers = torch.cat([validation, fitted + behind])
    places = torch.searchsorted(torch.cat(processes.gather(numbers)).sort().values, numbers)
    split = Split(torch.arange(held, len(places)), torch.arange(held), places[held:] - total, excludes=not fit_val, judged=judged)
    return split, places


def was_trained(net: nn.Module) -> bool:
    """Return True if an optimizer has changed a network's parameters: they have a gradient, or were written many times."""
    return any(parameter.grad is not None or parameter._version > _FRESH for parameter in net.parameters())


def check_form(validation: Stream, training: Stream, steps: int) -> None:
    """Refuse validation batches of another form than the training batches, of a net that makes so many steps."""
    own, known = ([*tensors_in(stream.first(1)[0].inputs)] for stream in (validation, training))

    def form(tensors: list[Tensor]) -> list[Any]:  # numbers of samples and steps may differ, and a sequence of numbers is (B, T)
        return [(tensor.dtype, tensor.dim(), tensor.shape[2:]) for tensor in tensors]

    widths = [(one.shape[1], other.shape[1]) for one, other in zip(own, known, strict=False) if one.dim() == other.dim() == 2]
    if form(own) != form(known) or any(one != other != steps for one, other in widths):
        own_form, other = (describe(stream.first(1)[0].inputs) for stream in (validation, training))
        raise DataError(f"val_loader gives inputs {own_form}, the loader {other}", "inputs of one form in both", _PASS)


def check_validation(batches: CapturedBatches, targets: Tensor, held: int, processes: SingleProcess) -> None:
    """Refuse few samples, or labels that the samples to fit lack; warn of validation samples that are among these.

    ``targets`` are those of this process's samples, the first ``held`` of them of validation samples.
    """
    for name, count in (("val_loader", held), ("the loader", len(targets) - held)):
        if processes.total_rows(count) < MIN_SAMPLES:
            found = f"{processes.total_rows(count)} samples in {name}"
            raise DataError(found, f"at least {MIN_SAMPLES}", "pass a loader with more data")
    if not targets.is_floating_point():
        own, known = (torch.unique(part).tolist() for part in (targets[:held], targets[held:]))
        missing = sorted(set().union(*processes.gather(own)) - set().union(*processes.gather(known)))
        count = sum(processes.gather(int(torch.isin(targets[:held], targets.new_tensor(missing)).sum())))
        if count > _UNKNOWN * sum(processes.gather(targets[:held].numel())):
            found = f"{count} labels in val_loader that the loader does not have: {', '.join(map(str, missing[:10]))}"
            raise DataError(found, "the same classes in both", _PASS)
    shared = sum(processes.gather(int(batches.shared.sum())))
    compared = sum(processes.gather(len(batches.shared)))
    if shared > _SHARED * compared:
        warn_user(
            f"{shared} of the first {compared} samples of val_loader are in the loader too. Samples that are fitted choose too "
            "weak a penalty, and the reported accuracy is too high: pass val_loader over samples that training does not see."
        )
