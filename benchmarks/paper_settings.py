"""Tasks, widths and data of the paper's tables, and the figures it has there (arXiv 2605.08022; test %, from its result files)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from benchmarks.paper_methods import Splits, autoregressive
from benchmarks.sequences import Sequences, addition, first_last_xor, sequential
from snn_recon_plugin.demo import load_mnist_data

__all__ = ["METHODS", "Setting", "settings", "shortened"]

METHODS = ("LSM ridge", "SG", "CVX", "SG-CVX", "R-CVX", "R-CVX analog", "STE from STE", "STE from CVX", "ours", "ours + SG")


@dataclass(frozen=True)
class Setting:
    """A row of a table.

    Args:
        table: "xor", "mnist", "addition" or "carry".
        name: of the row, e.g. "T=6, L=5".
        make: the samples of a seed.
        inputs: D.
        widths: of the hidden layers, all branches together.
        outputs: C; 1 for the hinge of two classes.
        steps: which steps have a target, "last" or "each".
        epochs: of surrogate gradients.
        methods: that are run here.
        published: test accuracies in % by method: one, or one for each of ``tests``.
        target: what the best of ours should reach, likewise.
        tests: names of the test sets.
    """

    table: str
    name: str
    make: Callable[[int], Splits]
    inputs: int
    widths: tuple[int, ...]
    outputs: int
    steps: str
    epochs: int
    methods: tuple[str, ...]
    published: dict[str, tuple[float, ...]] = field(default_factory=dict)
    target: tuple[float, ...] = ()
    tests: tuple[str, ...] = ("test",)

    @property
    def stem(self) -> str:
        """As part of a file's name."""
        return f"{self.table}-{self.name}".replace(", ", "-").replace("=", "").replace(" ", "-")


_SHARED = ("LSM ridge", "SG", "CVX", "SG-CVX", "R-CVX")
_XOR = {
    (6, 5): ((100, 73.7, 100, 80.3, 63.6, 100), 100),
    (6, 15): ((100, 50.4, 86.6, 49.6, 50.0, 100), 100),
    (8, 5): ((98.4, 68.9, 100, 86.5, 55.1, 100), 100),
    (8, 15): ((92.7, 49.9, 69.2, 50.0, 49.6, 98.8), 100),
    (11, 5): ((53.7, 59.7, 61.4, 76.0, 51.4, 63.2), 80),
}
_MNIST = {
    (4, 3): ((72.7, 85.2, 70.0, 83.9, 63.6), 90),
    (14, 3): ((82.3, 80.6, 67.9, 77.8, 66.3), 88),
    (4, 10): ((22.2, 9.1, 16.6, 11.3, 17.7), 80),
}
_ADDITION_METHODS = ("SG", "CVX", "SG-CVX", "STE from STE", "STE from CVX")
_ADDITION: dict[int, tuple[tuple[tuple[float, float], ...], float]] = {
    2: (((61.7, 56.1), (77.6, 66.1), (67.6, 60.4), (63.9, 58.1), (62.7, 56.1)), 99),
    3: (((41.4, 36.2), (53.6, 44.9), (45.5, 38.5), (41.9, 36.8), (38.7, 36.3)), 97),
    5: (((28.1, 23.4), (33.0, 27.0), (30.1, 24.3), (28.8, 23.8), (26.1, 22.8)), 90),
}
_MORE_BASES = (7, 10)
_CARRY = {2: {"STE from STE": (66.7, 64.8), "STE from CVX": (85.4, 74.5)}}
_MORE_MNIST = ((28, 3, None), (4, 3, 0), (14, 3, 0))  # T, L and the seed of a permutation of the pixels


def settings(root: str | None) -> list[Setting]:
    """All rows; those on MNIST only where ``root`` says where torchvision finds it."""
    found = [_xor(length, depth) for length, depth in _XOR]
    if root:
        found += [_mnist(root, steps, depth) for steps, depth in _MNIST] + [_mnist(root, *more) for more in _MORE_MNIST]
    found += [_addition(base) for base in (*_ADDITION, *_MORE_BASES)]
    return found + [_carry(base) for base in (*_ADDITION, *_MORE_BASES)]


def shortened(setting: Setting) -> Setting:
    """The same task with few samples, narrow layers and two epochs, to try the machinery."""

    def make(seed: int) -> Splits:
        data = setting.make(seed)
        tests = {name: _rows(test, 0, 300) for name, test in data.tests.items()}
        return Splits(_rows(data.train, 0, 400), _rows(data.validation, 0, 200), tests, data.measure)

    widths = tuple(max(32, width // 8) for width in setting.widths)
    return replace(setting, make=make, widths=widths, epochs=2, target=())


def _rows(data: Sequences, first: int, last: int) -> Sequences:
    extra = None if data.extra is None else data.extra[first:last]
    return Sequences(data.inputs[first:last], data.targets[first:last], data.classes, extra)


def _xor(length: int, depth: int) -> Setting:
    """Bits enter as -1 and 1: without biases a string of zeros would leave every neuron silent."""

    def make(seed: int) -> Splits:
        data = first_last_xor(8000, length, seed)
        data = replace(data, inputs=2 * data.inputs - 1)
        return Splits(_rows(data, 0, 2000), _rows(data, 2000, 4000), {"test": _rows(data, 4000, 8000)})

    figures, target = _XOR[length, depth]
    methods = (*_SHARED, "R-CVX analog")
    published = {method: (figure,) for method, figure in zip(methods, figures, strict=True)}
    widths = (*(500,) * (depth - 2), 1000)
    return Setting("xor", f"T={length}, L={depth}", make, 1, widths, 1, "last", 20, (*methods, "ours"), published, (target,))


def _mnist(root: str, steps: int, depth: int, permutation: int | None = None) -> Setting:
    def make(seed: int) -> Splits:
        data = load_mnist_data(root, None)
        order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(seed))
        inputs, labels = data.train_inputs[order[:8000]].flatten(1), data.train_labels[order[:8000]]
        few = torch.randperm(len(data.test_labels), generator=torch.Generator().manual_seed(seed))[:2000]

        def cut(inputs: Tensor, labels: Tensor) -> Sequences:
            return sequential(inputs, labels, steps, permutation)

        tests = {"test": cut(data.test_inputs[few].flatten(1), data.test_labels[few])}
        return Splits(cut(inputs[:6000], labels[:6000]), cut(inputs[6000:], labels[6000:]), tests)

    name = f"T={steps}, L={depth}" + ("" if permutation is None else ", permuted")
    widths, size = (*(512,) * (depth - 2), 1024), -(-784 // steps)
    if permutation is not None or (steps, depth) not in _MNIST:
        return Setting("mnist", name, make, size, widths, 10, "last", 20, ("CVX", "ours"))
    figures, target = _MNIST[steps, depth]
    published: dict[str, tuple[float, ...]] = {method: (figure,) for method, figure in zip(_SHARED, figures, strict=True)}
    methods = (*_SHARED, "ours", "ours + SG")
    return Setting("mnist", name, make, size, widths, 10, "last", 20, methods, published, (target,))


def _addition(base: int) -> Setting:
    """Trained on 5 digits, tested on 5 and on 10; published for bases 2, 3 and 5."""

    def make(seed: int) -> Splits:
        data = addition(8192 + 2048, base, 5, seed)
        tests = {f"{digits} digits": addition(4096, base, digits, 2**20 + seed) for digits in (5, 10)}
        return Splits(_rows(data, 0, 8192), _rows(data, 8192, 8192 + 2048), tests)

    figures, target = _ADDITION.get(base, ((), 0))
    published: dict[str, tuple[float, ...]] = dict(zip(_ADDITION_METHODS, figures, strict=False))
    methods = (*_ADDITION_METHODS, "ours") if figures else ("CVX", "ours")
    return Setting(
        *("addition", f"base {base}", make, 3, (256, 512), base, "each", 10, methods, published),
        *((target, target) if figures else (), ("5 digits", "10 digits")),
    )


def _carry(base: int) -> Setting:
    """Addition that goes by itself: the carry is an answer too, and the next step gets the net's own.  Published for base 2."""

    def make(seed: int) -> Splits:
        data = _addition(base).make(seed)
        return Splits(_totals(data.train), _totals(data.validation), data.tests, autoregressive)

    published = _CARRY.get(base, {})
    methods = ("CVX", *published, "ours")
    return Setting(
        *("carry", f"base {base}", make, 3, (256, 512), 2 * base, "each", 10, methods, published, ()),
        ("5 digits", "10 digits"),
    )


def _totals(data: Sequences) -> Sequences:
    """What each step adds up to: the digit and, in units of the base, the carry."""
    assert data.extra is not None
    return Sequences(data.inputs, data.targets + data.classes * data.extra, 2 * data.classes)
