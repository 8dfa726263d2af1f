"""The tasks of the paper (arXiv 2605.08022) as tensors: strings, sums, and images read in pieces.

All are drawn from a seed alone.  Inputs are (n, T, D) float32; targets are classes, (n,) of a whole sequence or (n, T) of its
steps.  tests/benchmarks/test_sequences.py computes the labels again, in another way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """Sequences and what is asked of them.

    Args:
        inputs: (n, T, D) float32.
        targets: (n,) or (n, T) int64 classes.
        classes: how many there are.
        extra: (n, T) int64, a second answer at every step, the carry of a sum; None where there is none.
    """

    inputs: Tensor
    targets: Tensor
    classes: int
    extra: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self, first: int, last: int) -> Sequences:
        """Return a part of the samples."""
        extra = None if self.extra is None else self.extra[first:last]
        return Sequences(self.inputs[first:last], self.targets[first:last], self.classes, extra)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def first_last_xor(count: int, length: int, seed: int = 0) -> Sequences:
    """Binary strings; the class is whether the first and the last symbol differ.  Both classes are as frequent, but for one sample.

    Args:
        count: n.
        length: T, at least 2.
        seed: of the draw.
    """
    generator = _generator(seed)
    strings = torch.randint(2, (count, length), generator=generator)
    labels = torch.arange(count) % 2
    labels = labels[torch.randperm(count, generator=generator)]
    strings[:, -1] = strings[:, 0] ^ labels
    return Sequences(strings[..., None].float(), labels, 2)


def addition(count: int, base: int, digits: int, seed: int = 0) -> Sequences:
    """Sums of two numbers, least significant digit first; a last step has nothing to add but the carry.

    A step's input is (a digit, a digit, the carry that comes in) over ``base - 1``, its target the digit of the sum, ``extra``
    the carry that goes out.

    Args:
        count: n.
        base: b, at least 2.
        digits: of the numbers; T is one more.
        seed: of the draw.
    """
    pairs = torch.randint(base, (count, digits, 2), generator=_generator(seed))
    pairs = torch.cat([pairs, torch.zeros(count, 1, 2, dtype=torch.int64)], 1)
    carry, inputs, sums, carries = torch.zeros(count, dtype=torch.int64), [], [], []
    for pair in pairs.unbind(1):
        inputs.append(torch.cat([pair, carry[:, None]], 1))
        total = pair.sum(1) + carry
        sums.append(total % base)
        carry = total // base
        carries.append(carry)
    return Sequences(torch.stack(inputs, 1).float() / (base - 1), torch.stack(sums, 1), base, torch.stack(carries, 1))


def sequential(images: Tensor, labels: Tensor, steps: int, permutation: int | None = None) -> Sequences:
    """Images cut into ``steps`` pieces of as many pixels, the last one filled up with zeros.

    Args:
        images: (n, pixels), 0 to 1.
        labels: (n,) int64, of ten classes.
        steps: T.
        permutation: seed of an order in which the pixels of all images are read; None reads them as they come.
    """
    pixels = images.shape[1]
    if permutation is not None:
        images = images[:, torch.randperm(pixels, generator=_generator(permutation))]
    piece = math.ceil(pixels / steps)
    filled = torch.cat([images, images.new_zeros(len(images), piece * steps - pixels)], 1)
    return Sequences(filled.reshape(len(images), steps, piece).float(), labels, 10)
