"""Time and memory against samples, neurons, classes and steps; the same with several processes.

Each cell runs in a process of its own; ranks are wall-clock seconds, so the cores must be free.  Cells of a GPU are listed where
there is one.  The two largest programs take 12 GiB of memory and up to an hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.memory import ACTIONS, BATCH, NETS, measure_memory
from benchmarks.process import Report, in_process
from benchmarks.ranks import KINDS, SOLVES, measure_ranks
from benchmarks.render import machines_line, markdown_table
from benchmarks.solvers.measure import Task, outcome_of, solve_task
from benchmarks.solvers.problems import planted_spikes
from benchmarks.solvers.tables import seconds as digits
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study, machine
from snn_recon_plugin.plots import BLUE, GREEN, ORANGE

TOL, STRENGTH, SEED, LIMIT = 1e-4, 1e-3, 0, 300.0  # the limit is that of a solve, seconds
HOURS = 2 * 3600.0  # that end a process that hangs
STEPS, IMAGES = (25, 100, 250, 1000), (2_000, 10_000)
SIZES = (
    *((n, 1_000, 10) for n in (1_000, 10_000, 20_000, 100_000)),
    *((20_000, P, C) for P, C in ((250, 10), (4_000, 10), (1_000, 100))),
)
LARGEST = ((1_000_000, 1_000, 10), (200_000, 4_096, 1_000))
LOSSES = {"squared_hinge": "squared hinge", "cross_entropy": "cross-entropy"}
PEERS = {"ours": "ours", "lbfgs": "torch L-BFGS"}
COPIED, SIDE, TIMES = 2**26, 2048, 20  # float32 values copied; rows and columns of a product; the fastest of so many
RANKS = (1, 2)
DRAWN = ("dense", "conv", "recurrent")
LINES = {"step": (ORANGE, "training step"), "start": (BLUE, "start"), "refit": (GREEN, "refit")}
APART = 1.45  # least ratio of the heights of two labels
PACKAGES = ("snntorch", "norse")


def alone(kind: str, work: Callable[..., None], *arguments: Any, **about: Any) -> dict[str, Any]:
    """Return what a piece of work reports from a process of one thread."""
    found, reason = in_process(work, *arguments, threads=1, limit=HOURS)
    return {"kind": kind, "threads": 1, **about, "outcome": reason or "done", **(found[-1] if found else {})}


def measure_rates(device: str, report: Report) -> None:
    """Report bytes a second of a copy, read and written, and operations a second of a product in each precision."""

    def fastest(action: Callable[[], object]) -> float:
        spent = []
        for _ in range(TIMES):
            began = time.perf_counter()
            action()
            if device != "cpu":
                torch.cuda.synchronize()
            spent.append(time.perf_counter() - began)
        return min(spent)

    source = torch.ones(COPIED, device=device)
    target, rates = torch.empty_like(source), {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        square = torch.randn(SIDE, SIDE, device=device).to(dtype)
        rates[str(dtype).removeprefix("torch.")] = 2 * SIDE**3 / fastest(partial(torch.matmul, square, square))
    report({"bytes_per_second": 8 * COPIED / fastest(partial(target.copy_, source)), "flops": rates})


def measure_solve(loss: str, size: tuple[int, int, int], peer: str, threads: int, device: str) -> dict[str, Any]:
    """Solve a made program: spikes as bytes, with labels of a planted readout, and ridge."""
    rows, columns, outputs = size
    task = Task("", loss, outputs, rows, columns, partial(planted_spikes, rows, columns, outputs))
    options = {"threads": threads, "device": device, "targets": (TOL,), "limit": LIMIT if threads == 1 else HOURS / 2}
    found = solve_task(task, "ridge", STRENGTH, {"lbfgs": "torch_lbfgs_10"}.get(peer, peer), **options)
    last = found["trajectory"][-1] if found["trajectory"] else {}
    kept = {key: last[key] for key in ("seconds", "added_bytes", "products", "relative_gap") if key in last}
    return {
        **{"kind": "solver", "loss": loss, "n": rows, "P": columns, "C": outputs, "peer": peer, "threads": threads},
        **{"device": device, "outcome": outcome_of(found["trajectory"], found["reason"], options["limit"], TOL)},
        **{"features_bytes": rows * columns, "cpu_seconds": last.get("cpu"), **kept},
        "machine": {**machine(*PACKAGES), "threads": threads},
    }


def cells(bench: Bench) -> Cells:
    """Rates of the machine, memory of nets, solves and ranks; small ones first."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}

    def memory(net: str, action: str, steps: int, images: int, device: str = "cpu") -> None:
        about = {"net": net, "action": action, "T": steps, "n": images, "device": device}
        name = f"memory-{net}-{action}-T{steps}-n{images}{'-cuda' * (device != 'cpu')}"
        found[name] = partial(alone, "memory", measure_memory, net, action, steps, images, device, **about)

    def solves(size: tuple[int, int, int], loss: str, peer: str, threads: int = 1, device: str = "cpu") -> None:
        name = f"solver-{loss}-n{size[0]}-P{size[1]}-C{size[2]}-{peer}-{threads}t{'-cuda' * (device != 'cpu')}"
        found[name] = partial(measure_solve, loss, size, peer, threads, device)

    found["floor"] = partial(alone, "floor", measure_rates, "cpu", device="cpu")
    for steps, net in product(STEPS, NETS):
        memory(net, "step", steps, BATCH)
        for images, action in product(IMAGES, ("start", "refit")):
            # Of the nets that take longest, few images show how memory grows with the steps.
            if images == IMAGES[0] or (net != "conv" and steps <= 250):
                memory(net, action, steps, images)
    for which in product(SIZES, LOSSES, PEERS):
        solves(*which)
    for kind, solve, world in product(KINDS, SOLVES, RANKS):
        found[f"ranks {kind}, {solve}, {world}"] = partial(measure_ranks, kind, solve, world, bench.places.need("mnist"))
    for size in LARGEST:
        solves(size, "squared_hinge", "ours", threads=2)
    if torch.cuda.is_available():
        for steps, action in product(STEPS[:2], ACTIONS):
            memory("dense", action, steps, IMAGES[1], "cuda")
        for which in product(((60_000, 1_000, 10), LARGEST[1]), LOSSES, PEERS):
            solves(*which, device="cuda")
    return found


def find(store: Store, **wanted: Any) -> list[dict[str, Any]]:
    """Return the cells with such values, on a CPU unless another device is asked for."""
    wanted = {"device": "cpu", **wanted}
    return [cell for cell in store.cells() if all(cell.get(key) == value for key, value in wanted.items())]


def cpu_seconds(cell: dict[str, Any]) -> float:
    """Return CPU seconds of a single thread, which other processes disturb less, else those of the clock."""
    return float(cell["cpu_seconds"] if cell["threads"] == 1 else cell["seconds"])


def memory_table(store: Store, steps: Sequence[int], images: Sequence[int]) -> str:
    """Return peak memory in MiB: a row a net and number of steps, in bold what is below the training step."""
    rows = []
    for (net, case), T in product(NETS.items(), steps):
        least = find(store, kind="memory", net=net, action="step", T=T)[0]["added_bytes"]
        values = [f"{least / 2**20:,.0f}"]
        for n, action in product(images, ("start", "refit")):
            sizes = [cell["added_bytes"] for cell in find(store, kind="memory", net=net, action=action, T=T, n=n)]
            values.append("".join(f"**{size / 2**20:,.0f}**" if size < least else f"{size / 2**20:,.0f}" for size in sizes))
        rows.append((case.title, str(T), *values))
    head = ("net", "T", "training step", *(f"{action}, {n:,} images" for n, action in product(images, ("start", "refit"))))
    return markdown_table(head, rows)


def solver_table(store: Store, loss: str, threads: int = 1) -> str:
    """Return a row a size: seconds and MiB of each peer, and the products and the floor of ours.

    A product reads the features once and takes n P C multiply-adds; the floor is the slower of the two at the machine's rates.
    """
    found = find(store, kind="solver", loss=loss, threads=threads)
    peers = [peer for peer in PEERS if any(cell["peer"] == peer for cell in found)]
    rates = find(store, kind="floor", threads=threads)
    rows = []
    for n, P, C in sorted({(cell["n"], cell["P"], cell["C"]) for cell in found}):
        at = {cell["peer"]: cell for cell in found if (cell["n"], cell["P"], cell["C"]) == (n, P, C)}
        spent = [digits(cpu_seconds(at[peer])) if at[peer]["outcome"] == "reached" else at[peer]["outcome"] for peer in peers]
        memory = [f"{at[peer]['added_bytes'] / 2**20:,.0f}" for peer in peers]
        products, floor = at["ours"]["products"], ""
        if rates:
            arithmetic = 2 * n * P * C / max(rates[0]["flops"].values())
            floor = digits(products * max(at["ours"]["features_bytes"] / rates[0]["bytes_per_second"], arithmetic))
        rows.append((f"{n:,}", f"{P:,}", f"{C:,}", *spent, *memory, f"{products:.0f}", floor))
    names = [PEERS[peer] for peer in peers]
    head = ("n", "P", "C", *(f"{name}, s" for name in names), *(f"{name}, MiB" for name in names), "products of ours", "floor, s")
    return markdown_table(head, rows)


def solves_of(store: Store, loss: str, peer: str) -> dict[tuple[int, int, int], float]:
    """Return the seconds of a peer's solves in one thread that reached the gap, by n, P and C."""
    found = find(store, kind="solver", loss=loss, peer=peer, threads=1, outcome="reached")
    return {(cell["n"], cell["P"], cell["C"]): cpu_seconds(cell) for cell in found}


def lead_text(store: Store) -> str:
    """Return how long our solver takes against its peer, the geometric mean over the programs that both reached."""
    parts = []
    for loss, label in LOSSES.items():
        ours, theirs = (solves_of(store, loss, peer) for peer in PEERS)
        ratios = [ours[size] / theirs[size] for size in ours.keys() & theirs.keys()]
        mean = float(np.exp(np.mean(np.log(ratios))))
        taken = f"our solver takes {mean:.2g} times as long as {PEERS['lbfgs']}"
        parts.append(f"- {label}: {taken}, over {len(ratios)} programs.")
    return "\n".join(parts)


def growth_table(store: Store) -> str:
    """Return the exponents of a power law through the seconds of solves that differ in one size alone."""
    rows = []
    for (loss, label), (peer, name) in product(LOSSES.items(), PEERS.items()):
        found, slopes = solves_of(store, loss, peer), []
        for place, least in ((0, 3), (1, 3), (2, 2)):
            groups: dict[tuple[int, ...], list[tuple[float, float]]] = {}
            for size, value in found.items():
                groups.setdefault(size[:place] + size[place + 1 :], []).append((size[place], value))
            points = np.log(np.array(max(groups.values(), key=len)))
            slopes.append(f"{np.polyfit(points[:, 0], points[:, 1], 1)[0]:.2f}" if len(points) >= least else "")
        rows.append((label, name, *slopes))
    return markdown_table(("loss", "solver", "n", "P", "C"), rows)


def rank_table(store: Store) -> str:
    """Return the seconds of starts and refits by number of ranks, a row each."""
    rows = []
    for kind, solve in product(KINDS, SOLVES):
        runs = [store[f"ranks {kind}, {solve}, {world}"] for world in RANKS]
        seconds, last = [run["seconds"] for run in runs], runs[-1]
        alone = sum(last["stages"].get(stage, 0.0) for stage in ("reconstruct", "calibrate"))
        messages = f"{last['messages']:,} ({last['messages_seconds']:.1f} s)"
        times = (*(f"{each:.1f}" for each in seconds), f"{alone:.1f}", messages, f"{seconds[-1] / seconds[0]:.2f}")
        rows.append((f"{kind}, {solve}", *times, "yes" if all(run["equal_bits"] for run in runs) else "no"))
    numbers = [f"{world} rank{'s' * (world > 1)}, s" for world in RANKS]
    head = ("readout, solve", *numbers, "in rank 0 alone, s", "messages", "ratio", "equal bits in all ranks")
    return markdown_table(head, rows)


def pages(store: Store) -> dict[str, dict[str, str]]:
    """A summary, and all measurements."""
    setting = f"Seed {SEED}, ridge strength {STRENGTH:g}, gap {TOL:g}. {machines_line(store.cells())}"
    short = {
        "memory": memory_table(store, STEPS[1:], IMAGES[:1]),
        "lead": lead_text(store),
        "growth": growth_table(store),
        "ranks": rank_table(store),
        "setting": setting,
    }
    full = {
        "memory": memory_table(store, STEPS, IMAGES),
        "squared hinge": solver_table(store, "squared_hinge"),
        "cross-entropy": solver_table(store, "cross_entropy"),
        "largest": solver_table(store, "squared_hinge", threads=2),
        "setting": setting,
    }
    blocks = {"scale.md": short, "evidence/scale.md": full}
    return {page: {f"scale {name}": text for name, text in texts.items()} for page, texts in blocks.items()}


def figures(store: Store) -> dict[str, Figure]:
    """Peak memory against time steps, a panel a net."""
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    for axes, net in zip(figure.subplots(1, len(DRAWN), sharey=True), DRAWN, strict=True):
        _draw_net(axes, store, net)
        axes.set_title(NETS[net].title, fontsize=10)
        axes.set_xlabel("time steps T")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("peak memory, MiB")
    return {"scale.png": figure}


def _draw_net(axes: Axes, store: Store, net: str) -> None:
    ends: list[tuple[float, float, str, str]] = []
    for action, (colour, label) in LINES.items():
        images = {} if action == "step" else {"n": IMAGES[0]}
        found = sorted(find(store, kind="memory", net=net, action=action, **images), key=lambda cell: cell["T"])
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
    title="time and memory against samples, neurons, classes, steps and processes",
    minutes=120,
    cells=cells,
    pages=pages,
    figures=figures,
    fields=(
        *("kind", "net", "action", "T", "n", "P", "C", "loss", "peer", "threads", "device", "outcome"),
        *("seconds", "cpu_seconds", "added_bytes", "heldout_accuracy", "samples"),
        *("products", "relative_gap", "features_bytes", "bytes_per_second", "flops"),
        *("ranks", "stages", "messages", "messages_seconds", "equal_bits"),
    ),
    packages=PACKAGES,
    needs=("mnist",),
)
