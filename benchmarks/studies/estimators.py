"""The scikit-learn estimators against scikit-learn's linear classifiers: seconds and test accuracy, as they are typed.

Each fit is a process of its own with one thread. Data and a first small fit, which imports modules, are not timed.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeClassifier
from sklearn.svm import LinearSVC

from benchmarks.process import Meter, Report, in_process
from benchmarks.render import machines_line, markdown_table
from benchmarks.solvers.problems import filtered_spikes
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Places, Study, machine
from benchmarks.tasks import load_task
from snn_recon_plugin import ReadoutClassifier
from snn_recon_plugin.demo import Data, build_network, train_epoch

SEED, STEPS, SEEN = 0, 25, 10_000  # of the net; images of its one epoch of training
SETUP, LIMIT = 600.0, 1800.0  # seconds
WARM = 200  # rows of the first fit
PACKAGES = ("scikit-learn", "scipy", "snntorch")

# Data by name: the task, and the hidden neurons whose spikes are the features; 0 for the pixels themselves.
DATA = {"digits, spikes": ("whole digits", 256), "MNIST, pixels": ("all images", 0), "MNIST, spikes": ("all images", 1000)}

MODELS: dict[str, Callable[[], Any]] = {
    "ReadoutClassifier()": ReadoutClassifier,
    'ReadoutClassifier("cross_entropy")': partial(ReadoutClassifier, "cross_entropy"),
    "ReadoutClassifier(strength=1e-3)": partial(ReadoutClassifier, strength=1e-3),
    "LogisticRegression()": LogisticRegression,
    "LogisticRegression(max_iter=10_000)": partial(LogisticRegression, max_iter=10_000),
    "LogisticRegressionCV()": LogisticRegressionCV,
    "LinearSVC()": LinearSVC,
    "LinearSVC(dual=False)": partial(LinearSVC, dual=False),
    "RidgeClassifier()": RidgeClassifier,
}


def features_of(name: str, places: Places) -> Data:
    """Return the data of a name: pixels, or the spikes of a net after one epoch of surrogate gradients."""
    task, hidden = DATA[name]
    data = load_task(task, places)
    if not hidden:
        return data
    torch.manual_seed(SEED)
    net = build_network(data.train_inputs.shape[1], hidden, 10, STEPS)
    train_epoch(net, Data(data.train_inputs[:SEEN], data.train_labels[:SEEN], data.test_inputs, data.test_labels), 5e-4, 128)
    train, test = (
        torch.cat([filtered_spikes(net, part) for part in inputs.split(1000)]) for inputs in (data.train_inputs, data.test_inputs)
    )
    return Data(train, data.train_labels, test, data.test_labels)


def fit(name: str, model: str, places: Places, report: Report) -> None:
    """Fit a model, and report what it took and what it is worth."""
    warnings.filterwarnings("ignore")
    data = features_of(name, places)
    X, y, test_X, test_y = (part.numpy() for part in (data.train_inputs, data.train_labels, data.test_inputs, data.test_labels))
    MODELS[model]().fit(X[:WARM], y[:WARM])
    with Meter() as meter:
        made = MODELS[model]().fit(X, y)
    gap = made.certificate_.relative_gap if isinstance(made, ReadoutClassifier) else None
    costs = {"seconds": meter.seconds, "cpu": meter.cpu_seconds, "peak_mib": meter.added / 2**20}
    report({**costs, "accuracy": float(made.score(test_X, test_y)), "relative_gap": gap, "rows": len(X), "columns": X.shape[1]})


def measure(name: str, model: str, places: Places) -> dict[str, Any]:
    """Return what a fit in a process of its own reported, and why it ended early."""
    found, reason = in_process(fit, name, model, places, threads=1, limit=SETUP + LIMIT)
    return {**(found[0] if found else {}), "data": name, "model": model, "reason": reason, "machine": machine(*PACKAGES)}


def cells(bench: Bench) -> Cells:
    """Every model on all data."""
    return {f"{name}: {model}": partial(measure, name, model, bench.places) for name, model in itertools.product(DATA, MODELS)}


def shown(cell: Mapping[str, Any] | None) -> str:
    """Return seconds and accuracy of a cell."""
    if cell is None:
        return ""
    if "seconds" not in cell:
        return f"over {LIMIT:,.0f} s" if cell["reason"] == "killed at the time limit" else cell["reason"]
    return f"{cell['seconds']:.3g} s, {100 * cell['accuracy']:.1f} %"


def pages(store: Store) -> dict[str, dict[str, str]]:
    """Wall-clock seconds and test accuracy, a row a model."""
    found = store.named()
    sizes = {cell["data"]: f"{cell['data']} {cell['rows']:,} x {cell['columns']:,}" for cell in found.values() if "rows" in cell}
    rows = [(f"`{model}`", *(shown(found.get(f"{name}: {model}")) for name in sizes)) for model in MODELS]
    table = markdown_table(("seconds of the fit, test accuracy", *sizes.values()), rows)
    return {"evidence/solver.md": {"estimators": f"{table}\n\n{machines_line(store.cells())}"}}


STUDY = Study(
    title="the scikit-learn estimators against scikit-learn's linear classifiers",
    minutes=120,
    cells=cells,
    pages=pages,
    fields=("data", "model", "rows", "columns", "seconds", "cpu", "peak_mib", "accuracy", "relative_gap", "reason"),
    packages=PACKAGES,
    needs=("mnist",),
)
