"""Would 40 steps of the script's own training, tried from three written readouts, choose one that an epoch keeps?

Nets of the study own_loops that lose more than three points in an epoch of Adam without the guard.  Readouts are written whole, by
a half and by a quarter; what is left after 40 steps on 200 validation images chooses one.  Results: results/rehearsal.jsonl.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from snntorch import utils
from torch import nn

from benchmarks.studies.own_loops import BATCH, OPTIMIZERS, TRAIN, VALIDATION, build
from benchmarks.study import machine
from benchmarks.user_steps import with_step
from tests.user_nets.catalogue import GROUPS
from tests.user_nets.check import SEED
from tests.user_nets.data import digits
from tests.user_nets.record import UserNet

RESULTS = Path(__file__).parent / "results"
FACTORS, STEPS = (1.0, 0.5, 0.25), 40


def main() -> None:
    """Run the nets, and write a line for each."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    kept = [json.loads(line) for line in (RESULTS / "own_loops.jsonl").read_text().splitlines()]
    last = {cell["name"]: cell for cell in kept if "line, Adam" in cell}
    fallen = [name for name, cell in last.items() if cell["line"] - cell["line, Adam"] > 3 and cell["fresh, Adam"] >= 20]
    numbered = enumerate((group, entry) for group, nets in GROUPS.items() for entry in nets)
    entries = {f"{group} | {entry.name}": (number, entry) for number, (group, entry) in numbered}
    with (RESULTS / "rehearsal.jsonl").open("w") as out:
        for name in fallen:
            found = {"name": name, "machine": machine("snntorch", "norse"), **measure(*entries[name])}
            print(found, flush=True)
            out.write(json.dumps(found) + "\n")


def measure(number: int, entry: UserNet) -> dict[str, object]:
    """Return accuracies in %, each for the three factors: at the start, after 40 steps on validation images, and after an epoch."""
    train, rest = digits(number, TRAIN)
    validation, test = (entry.order(rest.of(part)) for part in (slice(VALIDATION), slice(VALIDATION, None)))
    report = entry.run(net := build(entry), entry.order(train), "progress=False")
    written = {key: value.clone() for key, value in net.state_dict().items()}
    readout, step = net.get_submodule(report.readout.name), with_step(entry).names["train_step"]
    found: dict[str, list[float]] = {"start": [], "after 40 steps": [], "after an epoch": []}
    for factor in FACTORS:
        net.load_state_dict(written)
        with torch.no_grad():
            for parameter in readout.parameters():
                parameter.mul_(factor)
        found["start"].append(100 * entry.test(net, entry.loader(test)))
        optimizer = OPTIMIZERS["Adam"](net.parameters())
        if type(net).train is nn.Module.train:
            net.train()
        torch.manual_seed(SEED)
        shuffled = entry.order(train.of(torch.randperm(TRAIN)))
        parts = torch.stack(torch.arange(TRAIN).split(BATCH)[: TRAIN // BATCH])[torch.randperm(TRAIN // BATCH)]
        for count, part in enumerate(parts, 1):
            for batch in entry.loader(shuffled.of(part)):
                utils.reset(net)
                optimizer.zero_grad()
                step(net, batch).backward()
                optimizer.step()
            if count == STEPS:
                found["after 40 steps"].append(100 * entry.test(net, entry.loader(validation)))
                if type(net).train is nn.Module.train:
                    net.train()
        found["after an epoch"].append(100 * entry.test(net, entry.loader(test)))
    return found


if __name__ == "__main__":
    main()
