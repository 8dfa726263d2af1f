"""Small programs, and a second opinion on them in plain numpy and scipy that shares no code with the package."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import settings
from scipy import optimize, special

from snn_recon_plugin.convex import LOSSES, PENALTIES, Features, HeldOutRows, Problem, make_loss, solve_path
from snn_recon_plugin.convex.grid import GridPoint

SPARSE_PENALTIES = [name for name, kind in PENALTIES.items() if kind.sparse]
PENALTY_NAMES = sorted(PENALTIES)
LOSS_NAMES = list(LOSSES)
SMOOTH_LOSSES = [name for name, kind in LOSSES.items() if kind.smooth]
VALUES = [name for name, kind in LOSSES.items() if kind.fits_values]  # losses that take floating targets
TWO_OUTPUTS = ("cross_entropy",)  # losses that compare outputs need at least two
BIASES = ("one", "none", "vector")
PRODUCT = [(loss, penalty) for loss in LOSS_NAMES for penalty in PENALTY_NAMES]
# Every penalty with cross-entropy, and two of them with each of the other smooth losses.  The hinge has tests of its own.
OTHER_PENALTIES = {"squared_hinge": ("l1", "ridge"), "squared": ("group_l1", "ridge")}
PAIRS = [
    *(("cross_entropy", penalty) for penalty in PENALTY_NAMES),
    *((loss, penalty) for loss in SMOOTH_LOSSES[1:] for penalty in OTHER_PENALTIES.get(loss, ("group_l1", "l1"))),
]
every_pair = pytest.mark.parametrize(("loss", "penalty"), PAIRS)
smooth_loss = pytest.mark.parametrize("loss", SMOOTH_LOSSES)
every_penalty = pytest.mark.parametrize("penalty", PENALTY_NAMES)
every_bias = pytest.mark.parametrize("bias", BIASES)
# Every loss with one, two and three outputs.
LOSS_CASES = [(name, outputs) for name in LOSSES for outputs in (1, 2, 3) if outputs > 1 or name not in TWO_OUTPUTS]
every_loss_case = pytest.mark.parametrize(("name", "outputs"), LOSS_CASES)
# The same pairs, with alternating kinds of bias.
pairs_with_bias = pytest.mark.parametrize(
    ("loss", "penalty", "bias"), [(*pair, BIASES[k % len(BIASES)]) for k, pair in enumerate(PAIRS)]
)

quick = settings(deadline=None, derandomize=True, max_examples=25)


def random(seed, *shape, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spikes(seed, n, p, rate=0.4):
    return (torch.rand(n, p, generator=torch.Generator().manual_seed(seed)) < rate).to(torch.uint8)


def collinear(seed, n, p, decay=0.9, offset=30.0):
    """Nearly collinear features with a large offset, as membranes of a recurrent net: singular values fall by ``decay``."""
    left = torch.linalg.qr(random(seed, n, p))[0]
    return n**0.5 * left * decay ** torch.arange(p) @ random(seed + 1, p, p) + offset * random(seed + 2, p)


def labels(seed, n, classes):
    """Every class at least once where n allows it."""
    drawn = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))
    drawn[: min(n, classes)] = torch.arange(min(n, classes))
    return drawn


def loss_rows(name, outputs, seed, n=6, scale=2.0):
    """A loss with random scores and prepared targets."""
    loss = make_loss(name)
    targets = random(seed + 9, n) if name in VALUES and outputs == 1 else labels(seed, n, max(outputs, 2))
    return loss, random(seed, n, outputs, scale=scale), loss.prepare(targets, outputs)


def bias_column(kind, n):
    return {"one": 1.0, "none": None, "vector": torch.linspace(0.4, 2.0, n, dtype=torch.float64)}[kind]


def small_problem(loss="cross_entropy", penalty="group_l1", *, seed=0, n=30, p=8, classes=3, bias="one", share=0.1, **options):
    """Random spikes and labels at a share of the critical strength (or at ``strength``)."""
    strength = options.pop("strength", None)
    features = options.pop("features", None)
    matrix = spikes(seed, n, p) if features is None else features
    made = Features(matrix, bias_column(bias, n), options.pop("row_weights", None))
    problem = Problem(made, labels(seed, n, classes), loss=loss, penalty=penalty, **options)
    return problem.with_strength(strength if strength is not None else share * problem.critical_strength())


def separable(n=30):
    """Spikes, and one column for each of three classes that tells it."""
    return torch.cat([spikes(0, n, 8).double(), torch.eye(3, dtype=torch.float64)[labels(0, n, 3)]], 1)


def collinear_problem(loss="squared", penalty="l1", share=1e-3, bias="one", classes=2, n=120, p=100, **options):
    """Program on which Newton steps gain little."""
    made = Features(collinear(0, n, p), bias_column(bias, n))
    problem = Problem(made, labels(1, n, classes), loss=loss, penalty=penalty, num_outputs=classes, **options)
    return problem.with_strength(share * problem.critical_strength())


def follow(problem, features, targets, **options):
    """A path, with the options of held-out rows and of the path by their names."""
    of_rows = {name: options.pop(name) for name in ("bias_column", "weights", "rows_per_sample") if name in options}
    return solve_path(problem, HeldOutRows(features, targets, **of_rows), **options)


def round_nearest(weight, bias, grid):
    """Each weight rounded alone, with scales for the largest weights."""
    scale = grid.widest(weight)
    return GridPoint(grid.round(weight / scale[:, None]), scale, bias)


# -- the formulas, from the literature, in numpy ----------------------------------------------------------------------
@dataclass(frozen=True)
class Formulas:
    encode: Callable  # class labels, number of outputs -> targets
    value: Callable  # scores, targets -> (n,)
    gradient: Callable  # scores, targets -> (n, C)
    conjugate: Callable  # dual rows, targets -> (n,)


def _hot(classes, outputs):
    return np.eye(max(outputs, 2))[classes][:, 1:] if outputs == 1 else np.eye(outputs)[classes]


def _negentropy(q):
    assert (q > -1e-9).all()
    return special.xlogy(np.maximum(q, 0), np.maximum(q, 0))


LOSS_FORMULAS = {
    "cross_entropy": Formulas(
        _hot,
        lambda z, y: special.logsumexp(z, axis=1) - (z * y).sum(1),
        lambda z, y: special.softmax(z, axis=1) - y,
        lambda u, y: _negentropy(u + y).sum(1),
    ),
    "logistic": Formulas(
        lambda classes, outputs: 2 * _hot(classes, outputs) - 1,
        lambda z, y: np.logaddexp(0, -y * z).sum(1),
        lambda z, y: -y * special.expit(-y * z),
        lambda u, y: (_negentropy(-y * u) + _negentropy(1 + y * u)).sum(1),
    ),
    "hinge": Formulas(
        lambda classes, outputs: 2 * _hot(classes, outputs) - 1,
        lambda z, y: np.maximum(0, 1 - y * z).sum(1),
        lambda z, y: -y * (y * z < 1),
        lambda u, y: np.where((u * y <= 1e-9) & (u * y >= -1 - 1e-9), u * y, np.inf).sum(1),
    ),
    "squared_hinge": Formulas(
        lambda classes, outputs: 2 * _hot(classes, outputs) - 1,
        lambda z, y: 0.5 * (np.maximum(0, 1 - y * z) ** 2).sum(1),
        lambda z, y: -y * np.maximum(0, 1 - y * z),
        lambda u, y: np.where(u * y <= 1e-9, 0.5 * u**2 + u * y, np.inf).sum(1),
    ),
    "squared": Formulas(
        _hot, lambda z, y: 0.5 * ((z - y) ** 2).sum(1), lambda z, y: z - y, lambda u, y: (0.5 * u**2 + u * y).sum(1)
    ),
}

LOSS_FORMULAS["huber"] = Formulas(
    _hot,
    lambda z, y: special.huber(1.0, z - y).sum(1),
    lambda z, y: np.clip(z - y, -1, 1),
    lambda u, y: np.where(np.abs(u) <= 1 + 1e-9, 0.5 * u**2 + u * y, np.inf).sum(1),
)


def _column_norms(w):
    return np.sqrt((w**2).sum(0))


# Value of W (C, P); sizes of the groups, of which the largest in a gradient is the dual norm; conjugate at a gradient and a
# strength, None for a norm, whose conjugate is the indicator of a ball.
PENALTY_FORMULAS = {
    "group_l1": (lambda w: _column_norms(w).sum(), _column_norms, None),
    "l1": (lambda w: np.abs(w).sum(), np.abs, None),
    "ridge": (lambda w: 0.5 * (w**2).sum(), None, lambda g, s: (g**2).sum() / (2 * s)),
}


class SecondOpinion:
    """Objective, gradient and dual bound of a program, dense, uncentred, in numpy."""

    def __init__(self, problem: Problem, classes: torch.Tensor):
        self.features = problem.features.matrix.double().numpy().copy()
        self.column = problem.features.bias_column[:, 0].numpy()
        self.weights = problem.features.row_weights.numpy()
        self.has_bias = problem.features.has_bias
        self.strength = problem.strength
        self.loss = LOSS_FORMULAS[problem.loss.name]
        self.penalty, self.sizes, self.conjugate = PENALTY_FORMULAS[problem.penalty.name]
        self.targets = self.loss.encode(classes.numpy(), problem.num_outputs)
        self.zero_loss = self.weights @ self.loss.value(np.zeros_like(self.targets), self.targets)

    def scores(self, weight, bias):
        return self.features @ weight.T + np.outer(self.column, bias)

    def objective(self, weight, bias):
        return self.weights @ self.loss.value(self.scores(weight, bias), self.targets) + self.strength * self.penalty(weight)

    def slopes(self, weight, bias):
        """Gradient of the mean loss in W and in b."""
        rows = self.loss.gradient(self.scores(weight, bias), self.targets) * self.weights[:, None]
        return rows.T @ self.features, rows.T @ self.column

    def exact_bias(self, weight, start):
        if not self.has_bias:
            return np.zeros(len(weight))
        found = optimize.least_squares(lambda b: self.slopes(weight, b)[1], start, xtol=1e-15, ftol=1e-15, gtol=1e-15)
        return found.x

    def dual(self, weight, start):
        """Dual objective of the residual at ``weight`` with its exact bias, shrunk into the feasible set."""
        bias = self.exact_bias(weight, start)
        rows = self.loss.gradient(self.scores(weight, bias), self.targets)
        gradient = self.slopes(weight, bias)[0]
        if self.conjugate is None:
            scale = min(1.0, self.strength / max(self.sizes(gradient).max(), 1e-300))
            return -self.weights @ self.loss.conjugate(scale * rows, self.targets)
        return -self.weights @ self.loss.conjugate(rows, self.targets) - self.conjugate(gradient, self.strength)
