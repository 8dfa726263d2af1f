"""One solve of a made program by the package or a peer, with its seconds, peak memory and certified gap.

All state ``(1/n) sum loss(W phi + b, y) + strength/2 |W|^2`` with a free bias.  Every point is certified by ``Problem.certify``
in float64 while clock and memory stand still.  Memory is above that of the spikes, labels and imported packages.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from snn_recon_plugin.convex import Features, Problem, solve

from .data import planted_spikes
from .meter import Meter

__all__ = ["PEERS", "STRENGTH", "TOL", "run_solver"]

TOL, STRENGTH = 1e-4, 1e-3
_CHUNK = 10  # L-BFGS steps between certificates
_STILL = 10  # certificates without a gain of a tenth, from which on float32 can't improve
_LADDER = tuple(10.0**-k for k in range(2, 8))  # tolerances of scikit-learn's solvers, from scratch each

Point = tuple[Tensor, Tensor, dict[str, Any]]
Report = Callable[[dict[str, Any]], object]


def run_solver(cell: dict[str, Any], report: Report) -> None:
    """Report outcome, seconds, peak bytes and gap of a cell's best point so far."""
    warnings.filterwarnings("ignore")
    spikes, labels = planted_spikes(cell["n"], cell["P"], cell["C"], cell["seed"])
    few = planted_spikes(200, 20, 3, 0)
    for name, (features, classes), tell in (("small", few, lambda found: None), ("cell", (spikes, labels), report)):
        size = {"n": 200, "P": 20, "C": 3} if name == "small" else {}  # a small program first: modules are imported in it
        measure({**cell, **size}, features.to(cell["device"]), classes.to(cell["device"]), tell)


def measure(cell: dict[str, Any], spikes: Tensor, labels: Tensor, report: Report) -> None:
    """Solve on spikes (n, P) and labels (n,), and report every point that is the best so far."""
    judge = None if cell["peer"] == "ours" else _Judge(cell, spikes, labels)
    best, reached, meter = math.inf, TOL * (1 + 1e-4), Meter(cell["device"])
    features = {"features_bytes": spikes.numel() * spikes.element_size(), "firing": float(spikes[:1000].float().mean())}
    with meter:
        for weight, bias, more in PEERS[cell["peer"]](cell, spikes, labels):
            meter.pause()
            gap = more.pop("relative_gap", None)
            gap = judge(weight, bias) if gap is None else gap
            spent = {"seconds": meter.seconds, "cpu_seconds": meter.cpu_seconds, **more}
            memory = {"added_bytes": meter.added, "before_bytes": meter.before, **features}
            if gap < best:
                best = gap
                report({"outcome": "reached" if gap <= reached else "not reached", "relative_gap": gap, **spent, **memory})
            if gap <= reached or meter.seconds > cell["limit"]:
                break
            meter.resume()


class _Judge:
    """Certifies points by one routine, against the best lower bound so far."""

    def __init__(self, cell: dict[str, Any], spikes: Tensor, labels: Tensor) -> None:
        self._problem, self._bound = _problem(cell, spikes, labels), -math.inf

    def __call__(self, weight: Tensor, bias: Tensor) -> float:
        found = self._problem.certify(weight.double(), bias.double(), TOL, self._bound)
        self._bound = max(self._bound, found.dual)
        return found.relative_gap


def _problem(cell: dict[str, Any], spikes: Tensor, labels: Tensor) -> Problem:
    return Problem(Features(spikes), labels, loss=cell["loss"], penalty="ridge", strength=STRENGTH, num_outputs=cell["C"])


def _ours(cell: dict[str, Any], spikes: Tensor, labels: Tensor) -> Iterator[Point]:
    """Clock and memory include the centring of features."""
    found = solve(_problem(cell, spikes, labels), tol=TOL, time_limit=cell["limit"])
    statistics = found.statistics
    more = {"products": statistics.products, "iterations": statistics.iterations, "solver": statistics.solver}
    yield found.weight, found.bias, {"relative_gap": found.certificate.relative_gap, **more}


def _lbfgs(cell: dict[str, Any], spikes: Tensor, labels: Tensor) -> Iterator[Point]:
    """torch.optim.LBFGS in float32 on centred features, which a free bias makes the same program."""
    features = spikes.float()
    mean = features.mean(0)
    features -= mean
    weight = features.new_zeros(cell["C"], cell["P"], requires_grad=True)
    bias = features.new_zeros(cell["C"], requires_grad=True)
    options = {"history_size": 10, "line_search_fn": "strong_wolfe", "tolerance_grad": 0.0, "tolerance_change": 0.0}
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_CHUNK, max_eval=10 * _CHUNK, **options)
    evaluations = 0

    @torch.no_grad()
    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        value, slope = _loss_and_slope(cell["loss"], torch.addmm(bias, features, weight.T), labels)
        weight.grad = torch.addmm(weight, slope.T, features, beta=STRENGTH)
        bias.grad = slope.sum(0)
        return value + 0.5 * STRENGTH * weight.square().sum()

    while True:
        optimizer.step(closure)
        found = weight.detach()
        yield found, bias.detach() - found @ mean, {"products": 2.0 * evaluations, "iterations": evaluations}


def _loss_and_slope(loss: str, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean loss and its gradient in the scores (n, C), with as few tensors of that shape as possible."""
    rows = torch.arange(len(labels), device=labels.device)
    if loss == "cross_entropy":
        value, slope = functional.cross_entropy(scores, labels), scores.softmax(1)
        slope[rows, labels] -= 1
    else:  # squared hinge, one class against the rest
        own = (1 - scores[rows, labels]).clamp_min(0)
        slope = scores.add_(1).clamp_min_(0)
        slope[rows, labels] = -own
        value = 0.5 * slope.square().sum() / len(labels)
    return value, slope.div_(len(labels))


def _logistic(cell: dict[str, Any], spikes: Tensor, labels: Tensor) -> Iterator[Point]:
    from sklearn.linear_model import LogisticRegression

    features = spikes.numpy().astype("float64")
    mean = features.mean(0)
    features -= mean
    for tol in _LADDER:
        model = LogisticRegression(C=1 / (len(labels) * STRENGTH), tol=tol, max_iter=100_000)
        yield from _fitted(model, features, labels, mean, tol)


def _linear_svc(cell: dict[str, Any], spikes: Tensor, labels: Tensor) -> Iterator[Point]:
    """Raw features, which liblinear stores sparse; its bias is part of the penalty, the less the larger the scaling."""
    from sklearn.svm import LinearSVC

    features = spikes.numpy().astype("float64")
    for tol in _LADDER:
        model = LinearSVC(C=1 / (2 * len(labels) * STRENGTH), dual=False, intercept_scaling=30.0, tol=tol, max_iter=100_000)
        yield from _fitted(model, features, labels, 0.0, tol)


def _fitted(model: Any, features: Any, labels: Tensor, mean: Any, tol: float) -> Iterator[Point]:
    """Fit, and take the seconds of this fit alone, without the conversion of features."""
    began = time.perf_counter(), time.process_time()
    model.fit(features, labels.numpy())
    spent = {"seconds": time.perf_counter() - began[0], "cpu_seconds": time.process_time() - began[1]}
    weight, bias = model.coef_, model.intercept_ - (model.coef_ * mean).sum(1)
    yield torch.as_tensor(weight), torch.as_tensor(bias), {**spent, "setting": tol}


PEERS: dict[str, Callable[[dict[str, Any], Tensor, Tensor], Iterator[Point]]] = {
    "ours": _ours,
    "lbfgs": _lbfgs,
    "logistic": _logistic,
    "linear_svc": _linear_svc,
}
