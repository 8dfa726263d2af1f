"""Peak memory of a training step, a start and a refit of the same net; each runs in a process of its own.

A training step is forward, backward and Adam on one batch.  A start is ``convex_init_`` with default options, which rebuilds
hidden layers.  A refit is ``refit_``, after a start on two batches that is not counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from snn_recon_plugin import convex_init_, refit_

from .meter import Meter
from .nets import NETS

__all__ = ["ACTIONS", "run_memory"]

ACTIONS = ("step", "start", "refit")
_RATE = 1e-3  # of Adam
_WARM = (5, 64)  # steps and samples of a run that is not counted, in which modules are imported


def run_memory(cell: dict[str, Any], report: Callable[[dict[str, Any]], object]) -> None:
    """Report seconds and peak bytes of a cell's action."""
    warnings.filterwarnings("ignore")
    case, action, device = NETS[cell["net"]], cell["action"], cell["device"]
    width, steps = {} if cell["width"] is None else {"width": cell["width"]}, cell["T"]
    _act(action, case.build(_WARM[0], width=case.small).to(device), case.loader(_WARM[1], 32, _WARM[0], device), Meter(device))
    torch.manual_seed(cell["seed"])
    net = case.build(steps, **width).to(device)
    meter = Meter(device)
    result = _act(action, net, case.loader(cell["n"], cell["batch"], steps, device), meter)
    found = {"added_bytes": meter.added, "before_bytes": meter.before, "seconds": meter.seconds, "cpu_seconds": meter.cpu_seconds}
    if result is not None:
        found |= {"heldout_accuracy": result.accuracy_after, "samples": result.samples, "stages": result.seconds}
    report(found)


def _act(action: str, net: nn.Module, loader: Any, meter: Meter) -> Any:
    """Run the action in the meter, and return its report, None for a training step."""
    if action == "step":
        return _train_step(net, loader, meter)
    if action == "refit":
        batches = [batch for batch, _ in zip(loader, range(2), strict=False)]
        report = convex_init_(net, batches, hidden="rescale", progress=False)
        del batches
        with meter:
            return refit_(net, loader, report)
    with meter:
        return convex_init_(net, loader, progress=False)


def _train_step(net: nn.Module, loader: Any, meter: Meter) -> None:
    inputs, labels = next(iter(loader))
    optimizer = torch.optim.Adam(net.parameters(), lr=_RATE)
    with meter:
        nn.functional.cross_entropy(net(inputs).mean(0), labels).backward()
        optimizer.step()
