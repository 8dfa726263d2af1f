"""The user nets in their scripts' own loops: epochs after the line with and without the guard, and the finish after own epochs."""

from __future__ import annotations

import math
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
from snn_recon_plugin import refit_
from snn_recon_plugin.errors import ReconstructionError
from snn_recon_plugin.networks.libraries import reset_states
from tests.user_nets.catalogue import GROUPS
from tests.user_nets.check import SEED
from tests.user_nets.data import Samples, digits
from tests.user_nets.record import TYPED, UserNet

TRAIN, VALIDATION, BATCH, GUARDED = 1_000, 200, 16, 3  # training images, validation images, images a step, epochs
OPTIMIZERS = {"Adam": partial(torch.optim.Adam, lr=1e-3), "SGD": partial(torch.optim.SGD, lr=0.1)}
LEARNS, WHOLE = 20.0, 3.0  # test of an epoch from fresh weights from which training learns at all, in %; a fall that counts, points
MOMENTS = (0, 1, 3, 8)  # own epochs after which the line and the finish are called
TRAINED, FINISH, LINE = "trained", "finish", "line"
FUNCTIONS = {FINISH: "refit_", LINE: "convex_init_"}
AFTER = " | finish"  # end of the names of cells with own epochs first
ENOUGH = 500  # test samples below which nets are judged together


def cells(bench: Bench) -> Cells:
    """All classification nets that the line takes: epochs after the line, and the line and the finish after epochs."""
    numbered = enumerate((group, entry) for group, nets in GROUPS.items() for entry in nets)
    taken = [(n, group, entry) for n, (group, entry) in numbered if entry.must == "work" and not entry.regression]
    found = {f"{group} | {entry.name}": partial(measure, entry, number) for number, group, entry in taken}
    return found | {f"{group} | {entry.name}{AFTER}": partial(measure_finish, entry, number) for number, group, entry in taken}


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


def measure_finish(entry: UserNet, number: int) -> dict[str, Any]:
    """Return the own test in %, of the trained net and after the line or the finish with validation samples, after own epochs."""
    train, rest = digits(number, TRAIN)
    validation, test = (entry.order(rest.of(part)) for part in (slice(VALIDATION), slice(VALIDATION, None)))
    net = build(entry)
    optimizer = OPTIMIZERS["Adam"](net.parameters())
    tests, refused = dict[str, float](), dict[str, str]()
    for epoch in range(MOMENTS[-1] + 1):
        if epoch:
            train_epoch(entry, net, train, optimizer, epoch - 1)
        for way in (TRAINED, *FUNCTIONS) if epoch in MOMENTS else ():
            copied = build(entry)
            copied.load_state_dict(net.state_dict())
            try:
                if way != TRAINED:
                    call(entry, way, copied, entry.order(train), validation)
            except ReconstructionError as error:  # the trained net stays
                refused[f"{way}, {epoch}"] = str(error)
            reset_states(copied)
            tests[f"{way}, {epoch}"] = 100 * entry.test(copied, entry.loader(test))
    return {"tests": tests, "refused": refused, "samples": len(test.labels)}


def call(entry: UserNet, way: str, net: nn.Module, train: Samples, validation: Samples) -> None:
    """Call the line or the finish with the options of the script's line, and validation samples."""
    typed = entry.line("val_loader=val_loader, fit_val=True, progress=False").replace("convex_init_", FUNCTIONS[way], 1)
    loaders = {"loader": entry.loader(train), "val_loader": entry.loader(validation)}
    eval(typed, {**TYPED, "refit_": refit_, **entry.names, "net": net, **loaders})


def build(entry: UserNet) -> nn.Module:
    """Return the net with its script's fresh weights."""
    torch.manual_seed(SEED)
    return entry.build()


def train_epoch(entry: UserNet, net: nn.Module, train: Samples, optimizer: torch.optim.Optimizer, epoch: int = 0) -> None:
    """Train by the script's own step; samples in an order that its loader needs stay together."""
    step = with_step(entry).names["train_step"]
    if type(net).train is nn.Module.train:  # else a training loop of the script's own
        net.train()
    torch.manual_seed(SEED + epoch)
    shuffled = entry.order(train.of(torch.randperm(TRAIN)))
    for part in torch.stack(torch.arange(TRAIN).split(BATCH)[: TRAIN // BATCH])[torch.randperm(TRAIN // BATCH)]:
        for batch in entry.loader(shuffled.of(part)):
            reset_states(net)  # of nets that keep their membranes, as their scripts do
            optimizer.zero_grad()
            step(net, batch).backward()
            optimizer.step()


def pages(store: Store) -> dict[str, dict[str, str]]:
    """Medians over the nets, how many fall, and the nets that fall most."""
    nets = {name: net for name, net in store.named().items() if not name.endswith(AFTER)}
    rows = [row_of(nets, name, "line, an epoch", f"line, {name}", f"fresh, {name}") for name in OPTIMIZERS]
    rows.append(row_of(nets, "Adam", f"guard, {GUARDED} epochs", "guard", "fresh, Adam"))
    head = ("optimizer", "training", "nets", "before", "an epoch alone", "line", "then", "median fall", "fall", "behind")
    fallen = {name: net["line"] - net["line, Adam"] for name, net in nets.items()}
    most = sorted((name for name in nets if fallen[name] > WHOLE), key=lambda name: -fallen[name])
    listed = "; ".join(f"{name.partition(' | ')[2]} ({nets[name]['line']:.1f} to {nets[name]['line, Adam']:.1f})" for name in most)
    text = f"{markdown_table(head, rows)}\n\nBy Adam without the guard fall: {listed}.\n\n"
    finish = finish_table(store.cells(f"*{AFTER}"))
    return {"evidence/training.md": {"own loops": text + machines_line(nets.values())}, "evidence/finish.md": {"own loops": finish}}


def finish_table(nets: list[dict[str, Any]]) -> str:
    """Return medians over the nets that learn, gains, and how many nets a call lowers by more than its test's error."""
    learning = [net for net in nets if net["tests"][f"{TRAINED}, {MOMENTS[-1]}"] >= LEARNS]
    large, small = ([net for net in learning if (net["samples"] >= ENOUGH) == enough] for enough in (True, False))
    if not learning:
        return "Not measured yet."
    rows = []
    for epochs in MOMENTS:
        tests = {way: [net["tests"][f"{way}, {epochs}"] for net in learning] for way in (TRAINED, *FUNCTIONS)}
        row = [str(epochs), *(f"{statistics.median(found):.1f}" for found in tests.values())]
        for way in FUNCTIONS:
            gains = [after - before for before, after in zip(tests[TRAINED], tests[way], strict=True)]
            refused = sum(f"{way}, {epochs}" in net["refused"] for net in learning)
            groups = [[net] for net in large] + ([small] if small else [])
            lowered = sum(is_lowered(group, way, epochs) for group in groups)
            row += [f"{statistics.median(gains):+.1f}", f"{min(gains):+.1f}", str(lowered), str(refused)]
        rows.append(tuple(row))
    parts = (f"{way}: {what}" for way in FUNCTIONS for what in ("median gain", "lowest", "lowered", "refused"))
    heads = ("own epochs", TRAINED, *(f"{way} (`{name}`)" for way, name in FUNCTIONS.items()), *parts)
    pooled = f", and {len(small)} with fewer than {ENOUGH} count as one" if small else ""
    counts = f"{len(learning)} of {len(nets)} nets learn. {len(large)} are judged one by one{pooled}."
    return f"{markdown_table(heads, rows)}\n\n{counts} {machines_line(nets)}"


def is_lowered(nets: list[dict[str, Any]], way: str, epochs: int) -> bool:
    """Return True if the pooled accuracy falls by more than twice its standard error, sqrt(p (1 - p) / n) at the mean p of both."""
    samples = sum(net["samples"] for net in nets)
    before, after = (
        sum(net["samples"] * net["tests"][f"{each}, {epochs}"] for net in nets) / (100 * samples) for each in (TRAINED, way)
    )
    middle = (before + after) / 2
    return before - after > 2 * math.sqrt(middle * (1 - middle) / samples)


def row_of(nets: dict[str, dict[str, Any]], optimizer: str, training: str, then: str, alone: str) -> tuple[str, ...]:
    """Return medians of the nets that training alone teaches something, in %."""
    learning = [net for net in nets.values() if net[alone] >= LEARNS and then in net]
    falls = [net["line"] - net[then] for net in learning]
    middle = [statistics.median(net[key] for net in learning) for key in ("before", alone, "line", then)]
    behind = sum(net[then] < net[alone] - 1 for net in learning)
    counts = (str(sum(fall > WHOLE for fall in falls)), str(behind))
    return (optimizer, training, str(len(learning)), *(f"{value:.1f}" for value in (*middle, statistics.median(falls))), *counts)


STUDY = Study(
    title="the user nets in their own loops: the line, the guard and the finish",
    minutes=90,
    cells=cells,
    pages=pages,
    fields=(
        "before",
        "line",
        "guard",
        "tests",
        "refused",
        "samples",
        *(f"{start}, {name}" for start in ("line", "fresh") for name in OPTIMIZERS),
    ),
    packages=("snntorch", "norse", "spikingjelly"),
)
