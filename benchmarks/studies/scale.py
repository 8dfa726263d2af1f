"""Peak memory of a training step, a start and a refit of four nets, against time steps and images.

Each cell runs in a process of its own, with one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.memory import BATCH, NETS, measure_memory
from benchmarks.process import in_process
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from snn_recon_plugin.report.figures import BLUE, GREEN, ORANGE

STEPS, IMAGES = (25, 100, 250, 1000), (2_000, 10_000)
HOUR = 3600.0  # that ends a process that hangs
DRAWN = ("dense", "conv", "recurrent")
LINES = {"step": (ORANGE, "training step"), "start": (BLUE, "start"), "refit": (GREEN, "refit")}
APART = 1.45  # least ratio of the heights of two labels


def measure(net: str, action: str, steps: int, images: int) -> dict[str, Any]:
    """Return seconds and peak bytes of an action of a net."""
    found, reason = in_process(measure_memory, net, action, steps, images, threads=1, limit=HOUR)
    if reason:
        raise RuntimeError(reason)
    return {"net": net, "action": action, "T": steps, "n": images, **found[-1]}


def cells(bench: Bench) -> Cells:
    """Every action of every net; of those that take longest, few images show how memory grows with the steps."""
    del bench
    wanted = [(net, "step", steps, BATCH) for steps, net in product(STEPS, NETS)]
    for steps, net, images, action in product(STEPS, NETS, IMAGES, ("start", "refit")):
        if images == IMAGES[0] or (net != "conv" and steps <= 250):
            wanted.append((net, action, steps, images))
    return {f"{net}-{action}-T{steps}-n{n}": partial(measure, net, action, steps, n) for net, action, steps, n in wanted}


def memory_table(store: Store, steps: Sequence[int], images: Sequence[int]) -> str:
    """Return peak memory in MiB: a row a net and number of steps, in bold what is below the training step."""
    rows = []
    for (net, case), T in product(NETS.items(), steps):
        least = store[f"{net}-step-T{T}-n{BATCH}"]["added_bytes"]
        values = [f"{least / 2**20:,.0f}"]
        for n, action in product(images, ("start", "refit")):
            sizes = [cell["added_bytes"] for cell in store.cells(f"{net}-{action}-T{T}-n{n}")]
            values.append("".join(f"**{size / 2**20:,.0f}**" if size < least else f"{size / 2**20:,.0f}" for size in sizes))
        rows.append((case.title, str(T), *values))
    head = ("net", "T", "training step", *(f"{action}, {n:,} images" for n, action in product(images, ("start", "refit"))))
    return markdown_table(head, rows)


def pages(store: Store) -> dict[str, dict[str, str]]:
    """All measurements."""
    memory = memory_table(store, STEPS, IMAGES)
    return {"evidence/scale.md": {"scale memory": memory, "scale setting": machines_line(store.cells())}}


def figures(store: Store) -> dict[str, Figure]:
    """Peak memory against time steps, a panel a net."""
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    for axes, net in zip(figure.subplots(1, len(DRAWN)), DRAWN, strict=True):
        _draw_net(axes, store, net)
        axes.set_title(NETS[net].title, fontsize=10)
        axes.set(xlabel="time steps T", ylabel="peak memory, MiB", ylim=(10, 10_000))
        axes.spines[["top", "right"]].set_visible(False)
    return {"scale.png": figure}


def _draw_net(axes: Axes, store: Store, net: str) -> None:
    ends: list[tuple[float, float, str, str]] = []
    for action, (colour, label) in LINES.items():
        found = [store[f"{net}-{action}-T{T}-n{BATCH if action == 'step' else IMAGES[0]}"] for T in STEPS]
        points = [(cell["T"], cell["added_bytes"] / 2**20) for cell in found]
        axes.loglog(*zip(*points, strict=True), color=colour, marker="o", markersize=3)
        ends.append((*reversed(points[-1]), label, colour))
    height = 0.0
    for memory, steps, label, colour in sorted(ends):
        height = max(memory, APART * height)
        axes.annotate(label, (steps, height), xytext=(6, -3), textcoords="offset points", color=colour, fontsize=10)
    axes.set_xlim(20, 9_000)  # labels are to the right of the lines
    axes.set_xticks(STEPS, [str(T) for T in STEPS])
    axes.minorticks_off()


STUDY = Study(
    title="peak memory of a training step, a start and a refit",
    minutes=60,
    cells=cells,
    pages=pages,
    figures=figures,
    fields=("net", "action", "T", "n", "added_bytes", "seconds", "cpu_seconds", "heldout_accuracy", "samples"),
    packages=("snntorch", "norse"),
)
