"""Cells of the study: one json for each task, net, width, method and seed; what has its json is not run again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine
from torch import nn

from snn_recon_plugin.demo import Data

from .methods import SLOPE, STARTS, TRAININGS, start
from .nets import NETS
from .training import Schedule, train, tune

__all__ = ["FOLDER", "Cell", "load_cells", "run_cell"]

FOLDER = RESULTS / "temporal"
TUNINGS = {  # their epochs don't count
    "tuning": Schedule(1),
    "tuning-cycle": Schedule(1, cycle=True),
    "tuning-sharp": Schedule(1, cycle=True, slope=SLOPE),
}
TUNING_SEED = 1000  # of no other run


@dataclass(frozen=True)
class Cell:
    """One run of the study."""

    task: str
    net: str
    hidden: int
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Stem of its json."""
        return f"{self.task}-{self.net}-{self.hidden}-{self.method}-{self.seed}"


def run_cell(cell: Cell, data: Data, folder: Path = FOLDER, again: bool = False) -> dict[str, Any] | None:
    """Run a cell and write its json; None if it has one and is not repeated."""
    path = folder / f"{cell.name}.json"
    if path.exists() and not again:
        return None
    about = {**asdict(cell), "machine": machine("snntorch", "norse"), "samples": [len(data.train_labels), len(data.test_labels)]}
    content = {**about, **_measure(cell, data, folder)}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


def _measure(cell: Cell, data: Data, folder: Path) -> dict[str, Any]:
    def make() -> nn.Module:
        torch.manual_seed(cell.seed)
        return NETS[cell.net](data.train_inputs.shape[2], cell.hidden, int(data.train_labels.max()) + 1)

    if cell.method in STARTS:
        return start(make(), data, STARTS[cell.method], cell.seed)
    if cell.method in TUNINGS:
        return tune(make, data, TUNINGS[cell.method], cell.seed)
    schedule = TRAININGS[cell.method]
    return train(make(), data, schedule, _tuned_rate(cell, schedule, data, folder), cell.seed)


def _tuned_rate(cell: Cell, schedule: Schedule, data: Data, folder: Path) -> float:
    """Learning rate of all seeds of a training, tuned once; delete the json of the tuning to repeat that."""
    method = next(name for name, short in TUNINGS.items() if short == replace(schedule, epochs=short.epochs))
    tuning = replace(cell, method=method, seed=TUNING_SEED)
    run_cell(tuning, data, folder)
    return float(load_cells(folder, tuning.name)[tuning]["rate"])


def load_cells(folder: Path = FOLDER, names: str = "*") -> dict[Cell, dict[str, Any]]:
    """Results whose json has a name that matches, all by default, tunings included."""
    contents = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{names}.json")))
    return {Cell(**{field.name: content[field.name] for field in fields(Cell)}): content for content in contents}
