"""What the studies share: where results lie, what they depend on, and a json that survives an interrupt."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

import snn_recon_plugin
from snn_recon_plugin import ConvexInitializer
from snn_recon_plugin.demo import Data

if TYPE_CHECKING:
    from tests.user_nets.record import Reading, UserNet

RESULTS = Path(__file__).resolve().parent / "results"


def machine(*packages: str) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {
            **{name: importlib.metadata.version(name) for name in ("torch", "numpy", *packages)},
            "snn-recon-plugin": snn_recon_plugin.__version__,
        },
        "date": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    """Return the processor's name, on Linux with family and model: runs on different ones must not be compared."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in path.read_text(encoding="utf-8").split("\n\n")[0].splitlines())
    found = {key.strip(): value.strip() for key, _, value in lines}
    name, family, model = (found.get(key, "") for key in ("model name", "cpu family", "model"))
    return f"{name} ({family}, {model})" if name else platform.machine()


def initialise(idiom: UserNet, reading: Reading, data: Data, seed: int, **options: Any) -> dict[str, Any]:
    """One net of its default initialisation, initialised in place; its test accuracies by its own output before and after."""
    torch.manual_seed(seed)
    net = idiom.build(reading.output)
    inputs, tests = (part.reshape(-1, *idiom.shape) for part in (data.train_inputs, data.test_inputs))
    before = _accuracy(idiom.scores, net, reading, tests, data.test_labels)
    initializer = ConvexInitializer(forward=idiom.forward, readout=reading.kind, seed=seed, **options)
    report = initializer.initialize(net, DataLoader(TensorDataset(inputs, data.train_labels), 128))
    return {
        "test_before": before,
        "test_after": _accuracy(idiom.scores, net, reading, tests, data.test_labels),
        "test_linear": _accuracy(idiom.linear_scores, net, reading, tests, data.test_labels),
        "report": report.to_dict(),
    }


def _accuracy(
    scores: Callable[[nn.Module, Reading, Tensor], Tensor], net: nn.Module, reading: Reading, inputs: Tensor, labels: Tensor
) -> float:
    """Share of the inputs whose largest score is that of the right class."""
    predicted = torch.cat([scores(net, reading, part).argmax(1) for part in inputs.split(1000)])
    return float((predicted == labels).double().mean())


def run_all(
    path: Path, head: dict[str, Any], cases: dict[str, Callable[[], dict[str, Any]]], again: Iterable[str] = ()
) -> dict[str, Any]:
    """Runs the cases that the json does not hold yet and writes it after each one, so that an interrupted run goes on.

    Args:
        path: the json.
        head: what all cases share, such as the seed; results under another seed are thrown away.
        cases: for each name what runs it; results of other names stay.
        again: names that are run even where there is a result.

    Returns:
        The json's content, its cases in the order of ``cases``, others behind them.
    """
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    keep = all(stored.get(key) == value for key, value in head.items() if key != "machine")
    done = {name: result for name, result in stored.get("cases", {}).items() if keep and name not in set(again)}
    left = [name for name in cases if name not in done]
    path.parent.mkdir(exist_ok=True)
    content = {**head, "cases": done}
    with tqdm(left, disable=None) as bar:
        for name in bar:
            bar.set_postfix_str(name)
            done[name] = cases[name]()
            others = {name: result for name, result in done.items() if name not in cases}
            content["cases"] = {**{other: done[other] for other in cases if other in done}, **others}
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content
