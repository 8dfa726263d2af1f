"""The tasks of the paper (arXiv 2605.08022) as tensors: strings, sums, images read in pieces, and automata.

All are drawn from a seed alone.  Inputs are (n, T, D) float32; targets are classes, (n,) of a whole sequence or (n, T) of its
steps.  tests/benchmarks/test_sequences.py computes the labels again, in another way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TOMITA", "Automaton", "Sequences", "addition", "automaton_task", "first_last_xor", "sequential"]


@dataclass(frozen=True)
class Sequences:
    """Sequences and what is asked of them.

    Args:
        inputs: (n, T, D) float32.
        targets: (n,) or (n, T) int64 classes.
        classes: how many there are.
        extra: (n, T) int64, a second answer at every step: the carry of a sum, the state of an automaton; None where there is none.
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


@dataclass(frozen=True)
class Automaton:
    """A deterministic finite automaton over the symbols 0 and 1, which begins in state 0.

    Args:
        moves: (states, 2) the next state for each state and symbol.
        accepts: (states,) bool.
    """

    moves: Tensor
    accepts: Tensor

    def run(self, strings: Tensor) -> Tensor:
        """States after each symbol, (n, T), of strings (n, T)."""
        state, states = torch.zeros(len(strings), dtype=torch.int64), []
        for symbol in strings.unbind(1):
            state = self.moves[state, symbol]
            states.append(state)
        return torch.stack(states, 1)


def _automaton(moves: list[tuple[int, int]], accepting: set[int]) -> Automaton:
    return Automaton(torch.tensor(moves), torch.tensor([state in accepting for state in range(len(moves))]))


# Tomita's seven regular languages over 0 and 1 (1982), and parity.
TOMITA: dict[str, Automaton] = {
    "1: only ones": _automaton([(1, 0), (1, 1)], {0}),
    "2: repetitions of 10": _automaton([(2, 1), (0, 2), (2, 2)], {0}),
    "3: no odd run of ones, then an odd one of zeros": _automaton([(0, 1), (3, 2), (2, 1), (4, 5), (3, 1), (5, 5)], {0, 1, 2, 4}),
    "4: no 000": _automaton([(1, 0), (2, 0), (3, 0), (3, 3)], {0, 1, 2}),
    "5: even zeros and even ones": _automaton([(1, 2), (0, 3), (3, 0), (2, 1)], {0}),
    "6: ones minus zeros a multiple of 3": _automaton([(2, 1), (0, 2), (1, 0)], {0}),
    "7: 0*1*0*1*": _automaton([(0, 1), (2, 1), (2, 3), (4, 3), (4, 4)], {0, 1, 2, 3}),
    "parity of ones": _automaton([(0, 1), (1, 0)], {1}),
}


def automaton_task(automaton: Automaton, count: int, length: int, seed: int = 0) -> Sequences:
    """Strings and whether the automaton accepts them; ``extra`` has its state after each symbol.

    Half of the strings are accepted wherever there are enough such ones: a language that hardly any string belongs to would
    otherwise be learnt by always saying no.

    Args:
        automaton: which one.
        count: n.
        length: T.
        seed: of the draw.
    """
    generator, ways = _generator(seed), _ways(automaton, length)
    strings = torch.randint(2, (count, length), generator=generator)
    wanted = torch.arange(count) % 2 == 0
    for index in torch.arange(count).tolist():
        goal = ways[bool(wanted[index])]
        if goal[length][0] > 0:
            strings[index] = _walk(automaton, goal, length, generator)
    order = torch.randperm(count, generator=generator)
    strings = strings[order]
    states = automaton.run(strings)
    return Sequences(strings[..., None].float(), automaton.accepts[states[:, -1]].long(), 2, states)


def _ways(automaton: Automaton, length: int) -> dict[bool, list[list[float]]]:
    """For ending well and not: in how many ways that can be done from each state in so many steps."""
    found: dict[bool, list[list[float]]] = {}
    for end in (True, False):
        counts = [[float(bool(accepts) == end) for accepts in automaton.accepts]]
        for _ in range(length):
            counts.append([counts[-1][zero] + counts[-1][one] for zero, one in automaton.moves.tolist()])
        found[end] = counts
    return found


def _walk(automaton: Automaton, ways: list[list[float]], length: int, generator: torch.Generator) -> Tensor:
    """A string that ends as wanted, each such string as likely as any other."""
    state, symbols = 0, []
    for left in range(length, 0, -1):
        zero, one = (int(following) for following in automaton.moves[state])
        share = ways[left - 1][one] / ways[left][state]
        symbol = int(float(torch.rand(1, generator=generator)) < share)
        symbols.append(symbol)
        state = one if symbol else zero
    return torch.tensor(symbols)
