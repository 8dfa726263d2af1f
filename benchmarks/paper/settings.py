"""Tasks, widths and data of the paper's tables, and the figures it has there (arXiv 2605.08022; test %, from its result files)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from benchmarks.paper.methods import Splits, autoregressive
from benchmarks.sequences import Sequences, addition, first_last_xor, sequential
from benchmarks.tasks import load_mnist_data

METHODS = ("LSM ridge", "SG", "CVX", "SG-CVX", "R-CVX", "R-CVX analog", "STE from STE", "STE from CVX", "ours", "ours + SG")


@dataclass(frozen=True)
class Setting:
    """A row of a table."""

    table: str  # "xor", "mnist", "addition" or "carry"
    name: str  # of the row, e.g. "T=6, L=5"
    make: Callable[[int], Splits]  # the samples of a seed
    inputs: int  # D
    widths: tuple[int, ...]  # of the hidden layers, all branches together
    outputs: int  # C; 1 for the hinge of two classes
    methods: tuple[str, ...]  # that are run here
    published: dict[str, tuple[float, ...]] = field(default_factory=dict)  # test accuracies in % by method, one for each test set
    target: tuple[float, ...] = ()  # accuracies that the best of ours should reach
    tests: tuple[str, ...] = ("test",)  # names of the test sets; two of them for tasks with a target at every step

    @property
    def each(self) -> bool:
        """Whether every step has a target."""
        return len(self.tests) > 1

    @property
    def epochs(self) -> int:
        """Of surrogate gradients."""
        return 10 if self.each else 20

    @property
    def stem(self) -> str:
        """As part of a cell's name."""
        return f"{self.table}-{self.name}".replace(", ", "-").replace("=", "").replace(" ", "-")


_XOR_METHODS = ("LSM ridge", "SG", "CVX", "SG-CVX", "R-CVX", "R-CVX analog")
_XOR = {  # T and L: the methods' figures, and our goal
    (6, 5): ((100, 73.7, 100, 80.3, 63.6, 100), 100),
    (6, 15): ((100, 50.4, 86.6, 49.6, 50.0, 100), 100),
    (8, 5): ((98.4, 68.9, 100, 86.5, 55.1, 100), 100),
    (8, 15): ((92.7, 49.9, 69.2, 50.0, 49.6, 98.8), 100),
    (11, 5): ((53.7, 59.7, 61.4, 76.0, 51.4, 63.2), 80),
}
_MNIST = {  # T, L and the seed of a permutation of the pixels
    (4, 3, None): ((72.7, 85.2, 70.0, 83.9, 63.6), 90),
    (14, 3, None): ((82.3, 80.6, 67.9, 77.8, 66.3), 88),
    (4, 10, None): ((22.2, 9.1, 16.6, 11.3, 17.7), 80),
    **dict.fromkeys(((28, 3, None), (4, 3, 0), (14, 3, 0))),
}
_ADDITION_METHODS = ("SG", "CVX", "SG-CVX", "STE from STE", "STE from CVX")
_ADDITION = {  # base: figures for 5 and 10 digits
    2: (((61.7, 56.1), (77.6, 66.1), (67.6, 60.4), (63.9, 58.1), (62.7, 56.1)), 99),
    3: (((41.4, 36.2), (53.6, 44.9), (45.5, 38.5), (41.9, 36.8), (38.7, 36.3)), 97),
    5: (((28.1, 23.4), (33.0, 27.0), (30.1, 24.3), (28.8, 23.8), (26.1, 22.8)), 90),
    **dict.fromkeys((7, 10)),
}
_CARRY = {2: {"STE from STE": (66.7, 64.8), "STE from CVX": (85.4, 74.5)}}
_DIGITS = ("5 digits", "10 digits")


def settings(root: str) -> list[Setting]:
    """Return all rows; ``root`` is where torchvision finds MNIST."""
    found = [_xor(*key) for key in _XOR] + [_mnist(root, *key) for key in _MNIST]
    return found + [_addition(base) for base in _ADDITION] + [_carry(base) for base in _ADDITION]


def _xor(length: int, depth: int) -> Setting:
    """Bits enter as -1 and 1: without biases a string of zeros would leave every neuron silent."""

    def make(seed: int) -> Splits:
        data = first_last_xor(8000, length, seed)
        data = replace(data, inputs=2 * data.inputs - 1)
        return Splits(data.rows(0, 2000), data.rows(2000, 4000), {"test": data.rows(4000, 8000)})

    figures, target = _XOR[length, depth]
    published = {method: (figure,) for method, figure in zip(_XOR_METHODS, figures, strict=True)}
    widths = (*(500,) * (depth - 2), 1000)
    return Setting("xor", f"T={length}, L={depth}", make, 1, widths, 1, (*_XOR_METHODS, "ours"), published, (target,))


def _mnist(root: str, steps: int, depth: int, permutation: int | None) -> Setting:
    def make(seed: int) -> Splits:
        data = load_mnist_data(root, None)
        order, few = (
            torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
            for labels in (data.train_labels, data.test_labels)
        )

        def cut(inputs: Tensor, labels: Tensor) -> Sequences:
            return sequential(inputs.flatten(1), labels, steps, permutation)

        train = cut(data.train_inputs[order[:8000]], data.train_labels[order[:8000]])
        tests = {"test": cut(data.test_inputs[few[:2000]], data.test_labels[few[:2000]])}
        return Splits(train.rows(0, 6000), train.rows(6000, 8000), tests)

    name, widths = f"T={steps}, L={depth}" + ", permuted" * (permutation is not None), (*(512,) * (depth - 2), 1024)
    known = _MNIST[steps, depth, permutation]
    row = Setting("mnist", name, make, -(-784 // steps), widths, 10, ("CVX", "ours"))
    if known is None:
        return row
    published = {method: (figure,) for method, figure in zip(_XOR_METHODS[:-1], known[0], strict=True)}
    return replace(row, methods=(*published, "ours", "ours + SG"), published=published, target=(known[1],))


def _addition(base: int) -> Setting:
    def make(seed: int) -> Splits:
        data = addition(8192 + 2048, base, 5, seed)
        tests = {f"{digits} digits": addition(4096, base, digits, 2**20 + seed) for digits in (5, 10)}
        return Splits(data.rows(0, 8192), data.rows(8192, 8192 + 2048), tests)

    known, row = _ADDITION[base], Setting("addition", f"base {base}", make, 3, (256, 512), base, ("CVX", "ours"), tests=_DIGITS)
    if known is None:
        return row
    published = dict(zip(_ADDITION_METHODS, known[0], strict=True))
    return replace(row, methods=(*published, "ours"), published=published, target=(known[1],) * 2)


def _carry(base: int) -> Setting:
    """Addition that goes by itself: the carry is an answer too, and the next step gets the net's own.  Published for base 2."""

    def totals(data: Sequences) -> Sequences:
        """What each step adds up to: the digit and, in units of the base, the carry."""
        return Sequences(data.inputs, data.targets + base * data.extra, 2 * base)

    def make(seed: int) -> Splits:
        data = _addition(base).make(seed)
        return Splits(totals(data.train), totals(data.validation), data.tests, autoregressive)

    published = _CARRY.get(base, {})
    return Setting("carry", f"base {base}", make, 3, (256, 512), 2 * base, ("CVX", *published, "ours"), published, tests=_DIGITS)
