"""The first steps after a start, by optimizer, schedule and protection: how far test accuracy falls below that of the written net.

    python benchmarks/handover_steps.py --root DIR                      writes benchmarks/results/handover_steps.json

784-1000-10 on 10,000 images of MNIST, batch 128, three epochs.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import torch
from common import RESULTS, machine, run_all
from time_to_accuracy import SAMPLES, Module, load, train
from torch import nn

EPOCHS = 3
STEPS = EPOCHS * -(-SAMPLES // 128)
OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, 5e-4),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, 5e-4, weight_decay=0.01),
}
SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "constant": lambda optimizer: None,
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], STEPS),
}
PROTECTIONS: dict[str, dict[str, Any]] = {
    "none": {"protect": 0, "average": None},
    "default": {},
}


class Scheduled(Module):
    """With an optimizer and a schedule by name."""

    optimizer, schedule = "Adam", "constant"

    def configure_optimizers(self) -> Any:
        made = OPTIMIZERS[self.optimizer](self.net.parameters())
        schedule = SCHEDULES[self.schedule](made)
        return made if schedule is None else {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data, validation = load(options.root, SAMPLES)
    head = {"machine": machine("snntorch", "lightning"), "samples": SAMPLES, "epochs": EPOCHS, "seed": 0}
    cases: dict[str, Any] = {}
    for names in product(OPTIMIZERS, SCHEDULES, PROTECTIONS):

        def case(names: tuple[str, str, str] = names) -> dict[str, Any]:
            optimizer, schedule, protection = names
            kind = type("Case", (Scheduled,), {"optimizer": optimizer, "schedule": schedule})
            chosen = {"initializer": {"hidden": "reconstruct"}, "every_n_epochs": 0, "at_end": False}
            found = train(data, validation, "784-1000-10", {**chosen, **PROTECTIONS[protection]}, EPOCHS, 0, 5e-4, kind)
            return {"optimizer": optimizer, "schedule": schedule, "protection": protection, **found}

        cases[", ".join(names)] = case
    run_all(RESULTS / "handover_steps.json", head, cases)


if __name__ == "__main__":
    main()
