"""Convolutional and deep nets on hard images: the line's accuracy, cost and memory, and training from it at equal budgets.

One cycle with an EMA is run with several rates for each budget, without the plugin and from the line; the best by validation data
counts.  Fluctuation-driven starts use the rate that is best without one.
An epoch of plain training counts as one.  Budgets of the line include its cost, so its training is shorter.
"""

from __future__ import annotations

import statistics
import warnings
from functools import partial
from itertools import chain, islice, product, repeat
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.image_nets import DEEP_NETS
from benchmarks.methods import CLIP, Schedule, train
from benchmarks.nets import accuracy, loss_of
from benchmarks.process import Meter, Report, in_process
from benchmarks.render import machines_line, markdown_table
from benchmarks.starts import fluctuation_driven
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Places, Study
from benchmarks.tasks import Parts, load_task
from snn_recon_plugin import ReconstructionError, convex_init_, hidden_init_
from snn_recon_plugin.demo import Data, build_network

BATCH, BUDGETS = 64, (2, 8, 1, 4)  # budgets in epochs, the most telling ones first
RATES, USUAL = (1e-2, 3e-2), 1e-3  # of one cycle: 0.003 and 0.1 were no better; Adam's default rate
DRAWN = 128  # images on which fluctuations are measured
COSTS, COST_DATA = ("tutorial 6, 50 steps",), "1,500 images"  # cost alone, on easy images
COLOUR = ("VGG-9", "ResNet-18")
FOREIGN = ("Norse, batch norm", "SpikingJelly, batch norm")  # the fluctuation-driven start is written for snnTorch
SEEDS = {"four convolutions": 3, "four convolutions, batch norm": 3}  # one of the others
HOUR = 3600.0  # that ends a process that hangs
CYCLE, FLUCTUATION, FIXED = "one cycle", "fluctuation-driven", "fixed rate"
LINE, TRAINED, DRIVEN = "line", "line, one cycle", "one firing rate"
FIRING, EPOCHS = (0.03, 0.1, 0.3), 3  # firing rates of convolutions, and epochs of training from each
FIRING_NETS = (COST_DATA, "tutorial 6", "four convolutions", "four convolutions, batch norm", "SEW", "VGG-9")
MIB = 2**20


def parts_of(net: str, places: Places) -> Parts:
    """Return the images of a net."""
    task = COST_DATA if net in COSTS else "hard colour images" if net in COLOUR else "hard images"
    return Parts(load_task(task, places), 0)


def fresh(net: str, seed: int) -> nn.Module:
    """Return a net with weights as its library draws them."""
    torch.manual_seed(seed)
    return DEEP_NETS[net]()


def name_of(method: str, net: str, budget: int, seed: int) -> str:
    """Return the name of a cell."""
    return f"{method} | {net} | {budget} epochs | seed {seed}"


def cells(bench: Bench) -> Cells:
    """The line and every method at every budget; baselines first."""
    nets = [net for net in DEEP_NETS if net not in COSTS]
    found: dict[str, Any] = {}
    for seed, budgets in product(range(3), (BUDGETS[:2], (), BUDGETS[2:])):
        for net in (net for net in nets if seed < SEEDS.get(net, 1)):
            if not budgets:
                found[name_of(FIXED, net, max(BUDGETS), seed)] = partial(measure_fixed, bench, net, seed)
            for budget, start in product(budgets, (CYCLE, *(() if net in FOREIGN else (FLUCTUATION,)))):
                found[name_of(start, net, budget, seed)] = partial(measure_cycle, bench, net, start, budget, seed)
    for seed, net in product(range(3), DEEP_NETS):
        if seed < SEEDS.get(net, 1):
            found[name_of(LINE, net, 0, seed)] = partial(measure_line, bench, net, seed)
            for budget in () if net in COSTS else BUDGETS:
                found[name_of(TRAINED, net, budget, seed)] = partial(measure_trained, bench, net, budget, seed)
    for net, rate in product(FIRING_NETS, FIRING):
        found[f"{DRIVEN} | {net} | rate {rate}"] = partial(measure_firing, bench, net, rate)
    return found


# -- baselines ------------------------------------------------------------------------------------------------------------


def measure_fixed(bench: Bench, net: str, seed: int) -> dict[str, Any]:
    """Train by Adam at its default rate; tests before training and at every budget."""
    parts, made = parts_of(net, bench.places), fresh(net, seed)
    before = accuracy(made, *parts.test)
    found = train(made, Data(*parts.train.tensors, *parts.test), Schedule(max(BUDGETS), tests=BUDGETS, batch=BATCH), USUAL, seed)
    return {"before": before, "tests": {epoch: point["test"] for epoch, point in found["epochs"].items()}}


def measure_cycle(bench: Bench, net: str, start: str, budget: int, seed: int) -> dict[str, Any]:
    """Train in one cycle with an EMA; the cost of the fluctuation-driven start is not counted."""
    rates = (rate_of(bench, net, budget, seed),) if start == FLUCTUATION else RATES
    parts, schedule, trials = parts_of(net, bench.places), Schedule(budget, cycle=True, tests=(), batch=BATCH), {}
    for rate in rates:
        made = fresh(net, seed)
        if start == FLUCTUATION:
            fluctuation_driven(made, TensorDataset(*parts.train[:DRAWN]), seed)
        found = train(made, Data(*parts.train.tensors, *parts.test), schedule, rate, seed)
        trials[rate] = found | {"validation": accuracy(made, *parts.validation.tensors)}
    best = max(trials, key=lambda rate: float(trials[rate]["validation"]))
    validation = {str(rate): trial["validation"] for rate, trial in trials.items()}
    return {"rate": best, "validation": validation, "test": trials[best]["test"], "seconds": trials[best]["cpu_seconds"]}


def rate_of(bench: Bench, net: str, budget: int, seed: int) -> float:
    """Return the best rate of one cycle at a budget."""
    measure = partial(measure_cycle, bench, net, CYCLE, budget, seed)
    return float(bench.cell(name_of(CYCLE, net, budget, seed), measure)["rate"])


# -- the line -------------------------------------------------------------------------------------------------------------


def measure_line(bench: Bench, net: str, seed: int) -> dict[str, Any]:
    """Run the line with default options, a training step and an epoch in a process of their own."""
    found, reason = in_process(run_line, net, seed, bench.places, threads=1, limit=HOUR)
    if reason:
        raise RuntimeError(reason)
    return found[-1]


def run_line(net: str, seed: int, places: Places, report: Report) -> None:
    """Report accuracy, CPU seconds and peak memory of the line, and what a step and an epoch of training take."""
    warnings.filterwarnings("ignore")
    parts, step, call = parts_of(net, places), Meter(), Meter()
    labels = torch.arange(BATCH) % 10
    convex_init_(build_network(64, 8, 10, 2), [(torch.rand(BATCH, 64), labels)], progress=False)  # imports what it needs
    made = fresh(net, seed)
    with step:
        take_step(made, torch.optim.Adam(made.parameters(), USUAL), *parts.train[:BATCH])
    data = Data(*parts.train.tensors, *parts.test)
    epoch = train(made, data, Schedule(1, cycle=True, tests=(), batch=BATCH), USUAL, seed)["cpu_seconds"]
    made = fresh(net, seed)
    found: dict[str, Any] = {"before": accuracy(made, *parts.test), "epoch_seconds": epoch, "step_memory": step.added}
    with call:
        try:
            written = convex_init_(made, batches_of(parts), seed=seed, progress=False)
            found |= {"heldout": written.accuracy_after, "kept_old": written.kept_old}
        except ReconstructionError as error:
            found["refused"] = str(error)
    found |= {"test": accuracy(made, *parts.test), "seconds": call.cpu_seconds, "memory": call.added}
    report({**found, "cost": call.cpu_seconds / epoch})


def batches_of(parts: Parts) -> DataLoader[Any]:
    """Return the loader of a user's script."""
    return DataLoader(parts.train, BATCH, shuffle=True)


def take_step(net: nn.Module, optimizer: torch.optim.Optimizer, inputs: Any, labels: Any) -> None:
    """Take a training step."""
    optimizer.zero_grad()
    loss_of(net(inputs), labels).backward()
    nn.utils.clip_grad_norm_(net.parameters(), CLIP)
    optimizer.step()


def measure_trained(bench: Bench, net: str, budget: int, seed: int) -> dict[str, Any]:
    """Run the line, and train under its protection in one cycle for what remains of the budget.

    Its rate is chosen as that of the baseline.
    """
    line = bench.cell(name_of(LINE, net, 0, seed), partial(measure_line, bench, net, seed))
    parts = parts_of(net, bench.places)
    steps = round((budget - line["cost"]) * len(batches_of(parts)))
    if "refused" in line or steps < 1:
        return {"test": None, "steps": 0}
    trials = {rate: train_from_line(net, parts, rate, steps, seed) for rate in RATES}
    best = max(trials, key=lambda rate: trials[rate]["validation"])
    validation = {str(rate): trial["validation"] for rate, trial in trials.items()}
    return {"rate": best, "validation": validation, "test": trials[best]["test"], "steps": steps}


def train_from_line(net: str, parts: Parts, rate: float, steps: int, seed: int) -> dict[str, float]:
    """Return validation and test accuracy after the line and some steps."""
    made = fresh(net, seed)
    report = convex_init_(made, batches_of(parts), seed=seed, progress=False)
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(made.parameters(), rate)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    with report.protect(optimizer, DataLoader(parts.validation, BATCH)):
        for inputs, labels in islice(chain.from_iterable(repeat(batches_of(parts))), steps):
            take_step(made, optimizer, inputs, labels)
            cycle.step()
    return {"validation": accuracy(made, *parts.validation.tensors), "test": accuracy(made, *parts.test)}


def measure_firing(bench: Bench, net: str, firing: float) -> dict[str, Any]:
    """Set all hidden layers to one firing rate without labels and solve the readout, then train in one cycle at the lower rate."""
    easy = net == COST_DATA
    parts = Parts(load_task(net, bench.places), 0) if easy else parts_of(net, bench.places)
    made = fresh("tutorial 6" if easy else net, 0)
    hidden_init_(made, batches_of(parts), rate=firing)
    convex_init_(made, batches_of(parts), hidden="keep", write="always", progress=False)
    start = accuracy(made, *parts.test)
    data, schedule = Data(*parts.train.tensors, *parts.test), Schedule(EPOCHS, cycle=True, tests=(), batch=BATCH)
    return {"before": start, "test": train(made, data, schedule, RATES[0], 0)["test"]}


# -- tables ---------------------------------------------------------------------------------------------------------------


def seeds_of(store: Store, method: str, net: str, budget: int) -> list[dict[str, Any]]:
    """Return the cells of all seeds."""
    return store.cells(name_of(method, net, budget, 0)[:-1] + "?")


def tests_of(store: Store, method: str, net: str, budget: int) -> list[float | None]:
    """Return test accuracies of a method at a budget, one a seed; None where the line takes more than the budget."""
    if method == FIXED:
        return [cell["tests"][str(budget)] for cell in seeds_of(store, FIXED, net, max(BUDGETS))]
    return [cell["test"] for cell in seeds_of(store, method, net, budget)]


def percent(tests: list[Any]) -> str:
    """Return the mean in percent, a dash where a budget is too small."""
    if None in tests:
        return "–"
    return f"{100 * statistics.mean(tests):.1f}" if tests else ""


def line_columns(store: Store, net: str) -> tuple[str, str, str]:
    """Return test accuracy before and after the line, and its cost in epochs."""
    lines = seeds_of(store, LINE, net, 0)
    before = lines or seeds_of(store, FIXED, net, max(BUDGETS))
    start = percent([cell["before"] for cell in before])
    if any("refused" in cell for cell in lines):
        return start, "refused", ""
    return start, percent([cell["test"] for cell in lines]), mean_text(lines, "cost", ".2f")


def mean_text(found: list[dict[str, Any]], field: str, form: str, unit: float = 1.0) -> str:
    """Return a mean over seeds as text, empty without a seed."""
    return format(statistics.mean(cell[field] for cell in found) / unit, form) if found else ""


def best_baseline(store: Store, net: str, budget: int) -> str:
    """Return the best of the baselines' means at a budget."""
    found = (tests_of(store, method, net, budget) for method in (CYCLE, FLUCTUATION, FIXED))
    return max(map(percent, found), key=lambda text: float(text or 0))


def summary(store: Store) -> str:
    """One row a net: the line, its cost, and the best baseline beside it at 2 and 8 epochs."""
    rows = []
    for net in DEEP_NETS:
        values = ((best_baseline(store, net, budget), percent(tests_of(store, TRAINED, net, budget))) for budget in (2, 8))
        rows.append((net, *line_columns(store, net), *(text for pair in values for text in pair)))
    rows = [row for row in rows if any(row[1:])]
    heads = [f"{what}, {budget} epochs" for budget in (2, 8) for what in ("best baseline", "from the line")]
    return markdown_table(("net", "before", "after the line", "cost, epochs", *heads), rows)


def cost_table(store: Store) -> str:
    """One row a net: what the line takes, beside an epoch and a step of training."""
    rows = []
    for net in DEEP_NETS:
        found = seeds_of(store, LINE, net, 0)
        if not found:
            continue
        seconds = [mean_text(found, field, ".1f") for field in ("epoch_seconds", "seconds")]
        memory = [mean_text(found, field, ",.0f", MIB) for field in ("step_memory", "memory")]
        reported = percent([cell["heldout"] for cell in found if "heldout" in cell])
        rows.append((net, *line_columns(store, net), reported, *seconds, *memory))
    heads = ("in the report", "an epoch, CPU s", "the line, CPU s", "a step, MiB", "the line, MiB")
    return markdown_table(("net", "before", "after the line", "cost, epochs", *heads), rows)


def budget_table(store: Store) -> str:
    """One row a net and method, one column a budget."""
    rows = []
    for net, method in product([net for net in DEEP_NETS if net not in COSTS], (FIXED, CYCLE, FLUCTUATION, TRAINED)):
        values = [percent(tests_of(store, method, net, budget)) for budget in sorted(BUDGETS)]
        if any(values):
            rows.append((net, method, *values, str(len(tests_of(store, method, net, 2)))))
    return markdown_table(("net", "method", *(f"budget {budget}" for budget in sorted(BUDGETS)), "seeds"), rows)


def firing_table(store: Store) -> str:
    """One row a net, a column for each firing rate: the start, and after training."""
    rows = []
    for net in FIRING_NETS:
        found = [store.cells(f"{DRIVEN} | {net} | rate {rate}") for rate in FIRING]
        if all(found):
            rows.append((net, *(f"{100 * cell['before']:.1f} → {100 * cell['test']:.1f}" for (cell,) in found)))
    return markdown_table(("net", *(f"rate {rate}" for rate in FIRING)), rows)


def pages(store: Store) -> dict[str, dict[str, str]]:
    """A summary for users, and all figures."""
    full = {"deep cost": cost_table(store), "deep budgets": budget_table(store), "deep firing": firing_table(store)}
    full |= {"deep setting": machines_line(store.cells())}
    return {"hidden.md": {"deep summary": summary(store)}, "evidence/hidden_deep.md": full}


STUDY = Study(
    title="convolutional and deep nets: the line, its cost, and training from it at equal budgets",
    minutes=180,
    cells=cells,
    pages=pages,
    fields=(
        *("rate", "validation", "before", "test", "tests", "seconds", "epoch_seconds", "cost", "memory", "step_memory"),
        *("heldout", "kept_old", "refused", "steps"),
    ),
    packages=("snntorch", "norse", "spikingjelly"),
    needs=("mnist",),
)
