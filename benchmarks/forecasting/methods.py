"""The methods of the study: starts without a gradient step, rivals, and surrogate-gradient training, also with the callback."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import ConvexInitializer

from .measure import Predictor, one_step_error, roll_out, valid_times
from .nets import NETS, FeedForward, OfChanges, Stepped
from .rivals import Persistence, fit_autoregression, fit_echo_state, sample_rows
from .series import Series, Split, windows
from .training import train, tune

__all__ = ["METHODS", "RIVALS", "STARTS", "TRAININGS", "applies", "run_method"]

BATCH, SHOWN = 32, 120  # windows; steps of a continuation that are kept
HUBER = nn.HuberLoss()  # changes have a usual size of 1
# Options of ConvexInitializer; "sampled" rows are written first.
STARTS: dict[str, Mapping[str, Any]] = {
    "auto": {},
    "leaks": {"heterogeneous": True},
    "keep": {"hidden": "keep"},
    "sampled": {"hidden": "keep"},
    "auto, Huber": {"loss": HUBER},
    "keep, Huber": {"hidden": "keep", "loss": HUBER},
}
RIVALS: dict[str, Callable[[Split, int, int], tuple[Predictor, dict[str, Any]]]] = {
    "echo state": fit_echo_state,
    "autoregression": lambda data, width, seed: fit_autoregression(data),
    "persistence": lambda data, width, seed: (Persistence(), {}),
}
TRAININGS = ("training", "callback")
CALLBACK = {"feed-forward": STARTS["leaks"], "recurrent": STARTS["keep"]}  # options of the callback's start
METHODS = (*STARTS, *RIVALS, *TRAININGS)
TUNING_SEED = 1000  # of no other run


def applies(method: str, net: str, outliers: bool) -> bool:
    """Return whether a method is run: rivals have no net, Huber's loss is for outliers, S-SWIM's rows for Leaky neurons."""
    if method in RIVALS:
        return net == ""
    only = {"sampled": "feed-forward", "leaks": "feed-forward"}.get(method, net)
    if net == "" or net != only:
        return False
    if outliers:
        return net == "feed-forward" and method in ("auto", "keep", "auto, Huber", "keep, Huber")
    return not method.endswith("Huber") and not (net == "Norse" and method in TRAININGS)


def run_method(method: str, net: str, width: int, series: Series, data: Split, seed: int, rate: float | None) -> dict[str, Any]:
    """Fit by a method; its measures on test data, CPU seconds of the fit, and the first continuation of the test series."""
    began = time.process_time()
    predictor, about = _fit(method, net, width, data, seed, rate)
    seconds = time.process_time() - began
    predicted, truth = roll_out(predictor, data.test, series.horizon)
    valid = valid_times(predicted, truth) / series.unit
    return {
        "one_step": one_step_error(predictor, data.test),
        "valid": float(valid.mean()),
        "valid_median": float(valid.median()),
        "cpu_seconds": seconds,
        **({"example": [_first(values) for values in (truth, predicted)]} if seed == 0 else {}),
        **about,
    }


def _first(values: Tensor) -> list[float]:
    """Return the first channel of the first continuation, as far as it is drawn."""
    return [round(value, 3) for value in values[0, :SHOWN, 0].tolist()]


def tune_rate(net: str, width: int, data: Split) -> dict[str, Any]:
    """Tune the learning rate of a net's training, on the net without the plugin."""
    return tune(lambda: _make(net, width, data, TUNING_SEED), data, TUNING_SEED)


def _fit(method: str, net: str, width: int, data: Split, seed: int, rate: float | None) -> tuple[Predictor, dict[str, Any]]:
    if method in RIVALS:
        return RIVALS[method](data, width, seed)
    made = _make(net, width, data, seed)
    if method in TRAININGS:
        assert rate is not None
        about = {"rate": rate, **train(made, data, rate, seed, CALLBACK[net] if method == "callback" else None)}
    else:
        about = start(made, data, method, seed)
    return OfChanges(made, data.scale), about


def start(net: Stepped, data: Split, method: str, seed: int) -> dict[str, Any]:
    """Initialise a net in place; what became of its hidden layer, and the held-out loss."""
    inputs, targets = windows(data.train, data.scale)
    if method == "sampled":
        assert isinstance(net, FeedForward)
        sample_rows(net.hidden, net.neuron, inputs, targets, seed)
    loader = DataLoader(TensorDataset(inputs, targets), BATCH)
    options = {"loss": nn.MSELoss(), "readout": "membrane_per_step", "seed": seed, "progress": False, **STARTS[method]}
    report = ConvexInitializer(**options).initialize(net, loader).to_dict()
    return {"heldout": report["loss_after"], "gap": report["certificate"]["relative_gap"], "layers": report["layers"]}


def _make(net: str, width: int, data: Split, seed: int) -> Stepped:
    torch.manual_seed(seed)
    return NETS[net](data.train.shape[1], width)
