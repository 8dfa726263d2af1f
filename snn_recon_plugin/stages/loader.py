"""Checks of a loader and of its batches, before they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import RandomSampler

from ..errors import DataError
from ..networks.calls.batches import Padded, batch_axis, describe, map_samples, unpack_of

Unpack = Callable[[Any], tuple[Any, Any] | tuple[Any, Any, Any]]


def find_repeats(loader: Any) -> str:
    """Return how a loader's sampler draws samples more than once; empty if it does not, as far as torch's samplers go."""
    batches = getattr(loader, "batch_sampler", None)
    sampler = getattr(loader, "sampler", None) if batches is None else getattr(batches, "sampler", None)
    kind, source = type(sampler).__name__, getattr(sampler, "data_source", None)
    if getattr(sampler, "replacement", False) is True:
        return f"a {kind}, which draws samples with replacement"
    if type(sampler) is RandomSampler and isinstance(source, Sized) and len(sampler) > len(source):
        return f"a {kind} of {len(sampler)} samples over {len(source)}, which draws samples again"
    return ""


def refuse_iterator(name: str, batches: object) -> None:
    """Refuse batches that can be read only once, where they are needed again and again."""
    if isinstance(batches, Iterator):
        found = f"{name} of type {type(batches).__name__}, which can be read once"
        raise DataError(found, "batches that can be read again", "pass a DataLoader, or a list of batches")


def refuse_repeats(loader: Any) -> None:
    """Refuse a loader that gives samples more than once: copies of fitted samples would be among the held-out ones."""
    found = find_repeats(loader)
    if found:
        raise DataError(
            f"a loader with {found}",
            "each sample once: held-out samples must not be copies of fitted ones",
            "pass a loader with shuffle=True; for classes of different size pass loss=nn.CrossEntropyLoss(weight=...)",
        )


def unpacked(batch: Any, unpack: Unpack | None, number: int) -> Any:
    """Return the pair that the user's function makes of a batch, with lengths beside the inputs if it gives them."""
    if unpack is None:
        return batch
    try:
        parts = unpack(batch)
    except Exception as error:
        raise DataError(
            f"unpack(batch) raised {type(error).__name__}: {error}, for batch {number}, {describe(batch)}",
            "a function from a batch to its (input, target) pair",
            "pass a function for these batches, " + unpack_of(batch),
        ) from error
    if not isinstance(parts, tuple) or len(parts) != 3:
        return parts
    inputs, targets, lengths = parts
    try:
        lengths = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError):
        whole, found = False, f"that are a {type(lengths).__name__}"
    else:
        whole = lengths.shape == (len(targets),) and not lengths.is_floating_point()
        found = f"from {int(lengths.min())}" if whole else f"of {lengths.dtype}, shape {tuple(lengths.shape)}"
    if not whole or bool((lengths < 1).any()):
        raise DataError(
            f"lengths {found}, for {len(targets)} targets in batch {number}",
            "the number of steps of each sequence, whole numbers (B,) from 1, as the third value of unpack(batch)",
            "pass unpack=lambda batch: (input, target, lengths), or give no third value",
        )
    return Padded(inputs, lengths), targets


def class_labels(targets: Tensor) -> Tensor:
    """Return floating labels 0 and 1 of one output, ``[n]`` or ``[n, 1]``, as class indices ``[n]``; other targets as they are."""
    one = targets.is_floating_point() and (targets.dim() == 1 or targets.shape[1:] == (1,))
    return targets.flatten().long() if one and bool(((targets == 0) | (targets == 1)).all()) else targets


def without_ignored(inputs: Any, target: Tensor, ignored: int, number: int, known: int | None) -> tuple[Any, Tensor, Tensor]:
    """Leave out the samples of a batch whose labels are all ignored; return inputs, targets and indices of the others."""
    kept = (target != ignored).reshape(len(target), -1).any(1).nonzero()[:, 0]
    if len(kept) == len(target):
        return inputs, target, kept
    axis = batch_axis(inputs, len(target), known)
    if axis is None:
        raise DataError(
            f"{len(target) - len(kept)} samples of batch {number} with the label {ignored}, which the loss ignores, in inputs that "
            f"are {describe(inputs)}",
            f"tensors whose first or second axis alone holds the {len(target)} samples of the batch",
            "leave samples with that label out of the loader",
        )
    return map_samples(lambda value, axis: value.index_select(axis, kept.to(value.device)), inputs, axis), target[kept], kept


def check_same_form(target: Tensor, first: Tensor, number: int) -> None:
    """Refuse targets that one table can't hold without a conversion: 1.7 would become class 1."""
    if target.dtype != first.dtype or target.shape[1:] != first.shape[1:]:
        raise DataError(
            f"targets of batch {number} of {target.dtype}, shape {tuple(target.shape)}; batch 1 has {first.dtype}, "
            f"shape {tuple(first.shape)}",
            "targets of one dtype and one shape, but for the number of samples",
            "check the loader's collate function",
        )
