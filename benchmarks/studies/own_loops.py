"""The user nets in their scripts' own loops after the line: an epoch without the guard, and three with it."""

from __future__ import annotations

import statistics
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from benchmarks.user_steps import with_step
from snn_recon_plugin.errors import ReconstructionError
from snn_recon_plugin.networks.libraries import reset_states
from tests.user_nets.catalogue import GROUPS
from tests.user_nets.check import SEED
from tests.user_nets.data import Samples, digits
from tests.user_nets.record import UserNet

TRAIN, VALIDATION, BATCH, GUARDED = 1_000, 200, 16, 3  # images, images that the guard compares by, images a step, epochs
OPTIMIZERS = {"Adam": partial(torch.optim.Adam, lr=1e-3), "SGD": partial(torch.optim.SGD, lr=0.1)}
LEARNS, WHOLE = 20.0, 3.0  # test of an epoch from fresh weights from which training learns at all, in %; a fall that counts, points


def cells(bench: Bench) -> Cells:
    """All classification nets that the line takes."""
    numbered = enumerate((group, entry) for group, nets in GROUPS.items() for entry in nets)
    taken = [(n, group, entry) for n, (group, entry) in numbered if entry.must == "work" and not entry.regression]
    return {f"{group} | {entry.name}": partial(measure, entry, number) for number, group, entry in taken}


def measure(entry: UserNet, number: int) -> dict[str, Any]:
    """Return the own test of a net, in %: before, after the line, and after epochs from the line and from fresh weights."""
    train, rest = digits(number, TRAIN)
    validation, test = (entry.order(rest.of(part)) for part in (slice(VALIDATION), slice(VALIDATION, None)))

    def tested(net: nn.Module) -> float:
        reset_states(net)
        return 100 * entry.test(net, entry.loader(test))

    net = build(entry)
    found = {"before": tested(net)}
    for name, make in OPTIMIZERS.items():
        train_epoch(entry, net := build(entry), train, make(net.parameters()))
        found[f"fresh, {name}"] = tested(net)
    report = entry.run(net := build(entry), entry.order(train), "progress=False")
    written, found["line"] = {name: value.clone() for name, value in net.state_dict().items()}, tested(net)
    for name, make in OPTIMIZERS.items():
        net.load_state_dict(written)
        train_epoch(entry, net, train, make(net.parameters()))
        found[f"line, {name}"] = tested(net)
    net.load_state_dict(written)
    optimizer = OPTIMIZERS["Adam"](net.parameters())
    with suppress(ReconstructionError):  # training may make a readout that can't be read
        with report.protect(optimizer, entry.loader(validation)):
            for _ in range(GUARDED):
                train_epoch(entry, net, train, optimizer)
        found["guard"] = tested(net)
    return found


def build(entry: UserNet) -> nn.Module:
    """Return the net with its script's fresh weights."""
    torch.manual_seed(SEED)
    return entry.build()


def train_epoch(entry: UserNet, net: nn.Module, train: Samples, optimizer: torch.optim.Optimizer) -> None:
    """Train by the script's own step; samples in an order that its loader needs stay together."""
    step = with_step(entry).names["train_step"]
    if type(net).train is nn.Module.train:  # else a training loop of the script's own
        net.train()
    torch.manual_seed(SEED)
    shuffled = entry.order(train.of(torch.randperm(TRAIN)))
    for part in torch.stack(torch.arange(TRAIN).split(BATCH)[: TRAIN // BATCH])[torch.randperm(TRAIN // BATCH)]:
        for batch in entry.loader(shuffled.of(part)):
            reset_states(net)  # of nets that keep their membranes, as their scripts do
            optimizer.zero_grad()
            step(net, batch).backward()
            optimizer.step()


def pages(store: Store) -> dict[str, dict[str, str]]:
    """Medians over the nets, how many fall, and the nets that fall most."""
    nets = store.named()
    rows = [row_of(nets, name, "line, an epoch", f"line, {name}", f"fresh, {name}") for name in OPTIMIZERS]
    rows.append(row_of(nets, "Adam", f"guard, {GUARDED} epochs", "guard", "fresh, Adam"))
    head = ("optimizer", "training", "nets", "before", "an epoch alone", "line", "then", "median fall", "fall", "behind")
    fallen = {name: net["line"] - net["line, Adam"] for name, net in nets.items()}
    most = sorted((name for name in nets if fallen[name] > WHOLE), key=lambda name: -fallen[name])
    listed = "; ".join(f"{name.partition(' | ')[2]} ({nets[name]['line']:.1f} to {nets[name]['line, Adam']:.1f})" for name in most)
    text = f"{markdown_table(head, rows)}\n\nBy Adam without the guard fall: {listed}.\n\n"
    return {"evidence/training.md": {"own loops": text + machines_line(nets.values())}}


def row_of(nets: dict[str, dict[str, Any]], optimizer: str, training: str, then: str, alone: str) -> tuple[str, ...]:
    """Return medians of the nets that training alone teaches something, in %."""
    learning = [net for net in nets.values() if net[alone] >= LEARNS and then in net]
    falls = [net["line"] - net[then] for net in learning]
    middle = [statistics.median(net[key] for net in learning) for key in ("before", alone, "line", then)]
    behind = sum(net[then] < net[alone] - 1 for net in learning)
    counts = (str(sum(fall > WHOLE for fall in falls)), str(behind))
    return (optimizer, training, str(len(learning)), *(f"{value:.1f}" for value in (*middle, statistics.median(falls))), *counts)


STUDY = Study(
    title="the user nets in their own loops after the line, with and without the guard",
    minutes=20,
    cells=cells,
    pages=pages,
    fields=("before", "line", "guard", *(f"{start}, {name}" for start in ("line", "fresh") for name in OPTIMIZERS)),
    packages=("snntorch", "norse", "spikingjelly"),
)
