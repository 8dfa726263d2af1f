"""The methods of the study: starts without a gradient step, and surrogate-gradient trainings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import ConvexInitializer, ReconstructionError
from snn_recon_plugin.demo import Data

from .nets import accuracy
from .training import BATCH, Schedule

__all__ = ["COUNTS", "KINDS", "METHODS", "SLOPE", "STARTS", "TRAININGS", "applies", "start"]

# Options of ConvexInitializer.
STARTS: dict[str, Mapping[str, Any]] = {
    "keep": {"hidden": "keep"},
    "rescale": {"hidden": "rescale"},
    "auto": {"hidden": "auto"},
    "heterogeneous": {"hidden": "auto", "heterogeneous": True},
    "traces": {"hidden": "reconstruct", "witnesses": "traces"},
    "pairs": {"hidden": "reconstruct", "witnesses": "pairs"},
    "gaussian": {"hidden": "reconstruct", "witnesses": "gaussian"},
    "one": {"n_candidates": 1.0},
    "two": {"n_candidates": 2.0},
    "six": {"n_candidates": 6.0},
}
KINDS = ("traces", "pairs", "gaussian")  # starts from candidates of one kind
COUNTS = ("one", "two", "auto", "six")  # starts from so many candidates a neuron; three by default
SLOPE = 25.0  # of snnTorch's tutorials
TRAININGS: dict[str, Schedule] = {
    "train": Schedule(epochs=20),
    "train-cycle": Schedule(epochs=20, cycle=True),
    # 20 epochs of the small tasks are fewer than 200 steps, so they get five times as many.
    "train-long": Schedule(epochs=100),
    "train-cycle-long": Schedule(epochs=100, cycle=True),
    "train-sharp": Schedule(epochs=20, cycle=True, slope=SLOPE),
    "train-sharp-long": Schedule(epochs=100, cycle=True, slope=SLOPE),
}
METHODS = (*STARTS, *TRAININGS)
_OPTIONS = {field.name for field in fields(ConvexInitializer)}
_LONG_UP_TO = 2000  # training samples


def applies(method: str, net: str, data: Data) -> bool:
    """Return whether a method is run: long trainings on small data, options that exist."""
    if method in TRAININGS:
        if TRAININGS[method].slope is not None and not net.startswith("snntorch"):
            return False
        return len(data.train_labels) <= _LONG_UP_TO or not method.endswith("-long")
    return _OPTIONS.issuperset(STARTS[method])


def start(net: nn.Module, data: Data, options: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Initialise a net in place; test accuracy after it, seconds of the call, and what became of each hidden layer.

    If the call refuses, the net is as before and the text of the refusal is kept.
    """
    loader = DataLoader(TensorDataset(data.train_inputs, data.train_labels), BATCH, shuffle=True)
    began, began_cpu = time.perf_counter(), time.process_time()
    found: dict[str, Any] = {}
    try:
        report = ConvexInitializer(seed=seed, progress=False, **options).initialize(net, loader)
    except ReconstructionError as error:
        found["refused"] = str(error)
    else:
        content = report.to_dict()
        found |= {"heldout": content["accuracy_after"], "layers": content["layers"]}
    spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - began_cpu}
    return {"test": accuracy(net, data.test_inputs, data.test_labels), **spent, **found}
