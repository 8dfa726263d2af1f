"""How near the minimum of the user's own training loss the readout is when training takes over, for each loss, on the digits.

The gradient of the loss in the readout's weight and bias, by autograd through the network, after initialisation as a share of that
at the default initialisation.  What is left at the chosen strength is the penalty's own gradient.

Run: python benchmarks/handover.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import snntorch.functional as SF
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from benchmarks.common import RESULTS, machine
from snn_recon_plugin import ConvexInitializer
from snn_recon_plugin.demo import Data, build_network, load_digits_data

STEPS, HIDDEN, CLASSES, SEED = 20, 256, 10, 0
Value = Callable[[Tensor, Tensor], Tensor]


def losses() -> dict[str, tuple[Any, Value]]:
    """The loss to pass, and its value for membranes over time as in a training loop."""
    weight = torch.linspace(0.5, 2.0, CLASSES)
    return {
        "nn.CrossEntropyLoss()": (nn.CrossEntropyLoss(), lambda mem, y: F.cross_entropy(mem.mean(0), y)),
        "nn.CrossEntropyLoss(weight=...)": (
            nn.CrossEntropyLoss(weight=weight),
            lambda mem, y: F.cross_entropy(mem.mean(0), y, weight=weight),
        ),
        "nn.NLLLoss()": (nn.NLLLoss(), lambda mem, y: F.nll_loss(mem.mean(0).log_softmax(1), y)),
        "nn.MSELoss()": (nn.MSELoss(), lambda mem, y: F.mse_loss(mem.mean(0), F.one_hot(y, CLASSES).float())),
        "SF.ce_rate_loss()": (SF.ce_rate_loss(), SF.ce_rate_loss()),
        "SF.ce_count_loss()": (SF.ce_count_loss(), SF.ce_count_loss()),
        "SF.mse_count_loss(0.8, 0.2)": (SF.mse_count_loss(0.8, 0.2), SF.mse_count_loss(0.8, 0.2)),
        "SF.mse_membrane_loss()": (SF.mse_membrane_loss(), SF.mse_membrane_loss()),
    }


def gradient(net: nn.Module, value: Value, data: Data) -> float:
    """Norm of the loss's gradient in the readout, on all training images."""
    net.zero_grad()
    value(net(data.train_inputs), data.train_labels).backward()
    return float(torch.cat([parameter.grad.flatten() for parameter in net.get_submodule("fc2").parameters()]).norm())


def run_case(loss: Any, value: Value, data: Data, strength: float | str) -> dict[str, Any]:
    """One initialisation of a fresh net."""
    torch.manual_seed(SEED)
    net = build_network(64, HIDDEN, CLASSES, STEPS)
    before = gradient(net, value, data)
    initializer = ConvexInitializer(loss=loss, fit_loss="same", strength=strength, seed=SEED)
    report = initializer.initialize(net, [(data.train_inputs, data.train_labels)])
    with torch.no_grad():
        accuracy = float((net(data.test_inputs).mean(0).argmax(1) == data.test_labels).double().mean())
    return {
        "readout": report.readout_kind,
        "exactness": report.exactness.label,
        "strength": report.strength,
        "relative_gap": report.certificate.relative_gap,
        "gradient_before": before,
        "gradient_after": gradient(net, value, data),
        "test_after": accuracy,
    }


def main() -> None:
    """Runs all losses and writes the json."""
    data = load_digits_data()
    cases = {
        name: {str(strength): run_case(loss, value, data, strength) for strength in ("auto", 1e-6)}
        for name, (loss, value) in tqdm(losses().items())
    }
    text = json.dumps({"machine": machine("snntorch"), "seed": SEED, "cases": cases}, indent=1)
    (RESULTS / "handover.json").write_text(text + "\n", encoding="utf-8")
    for name, runs in cases.items():
        shares = ", ".join(f"{key}: {run['gradient_after'] / run['gradient_before']:.1e}" for key, run in runs.items())
        print(f"{name:<34} {runs['auto']['readout']:<20} {shares}")


if __name__ == "__main__":
    main()
