"""Tables of the scale study's pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.render_docs import markdown_table
from benchmarks.store import Store

from .floor import floor_seconds, seconds_of
from .nets import NETS
from .plan import Plan
from .solver import PEERS

__all__ = ["Cells", "exponents", "growth_text", "lead_text", "load", "memory_table", "plan_table", "rank_table", "solver_table"]

Cells = list[dict[str, Any]]
NOT_RUN = "Not run yet."
PEER_NAMES = {"ours": "ours", "lbfgs": "torch L-BFGS", "logistic": "LogisticRegression", "linear_svc": "LinearSVC"}
_PROGRAM = ("loss", "n", "P", "C", "threads")
LOSS_NAMES = {"squared_hinge": "squared hinge", "cross_entropy": "cross-entropy"}


def load(path: Path) -> Cells:
    """Return the records of the study."""
    return Store(path).cells()


def find(cells: Cells, **wanted: Any) -> dict[str, Any] | None:
    """Return the first record with such values, on a CPU unless another device is asked for."""
    wanted = {"device": "cpu", **wanted}
    return next((cell for cell in cells if all(cell.get(key) == value for key, value in wanted.items())), None)


def memory_table(cells: Cells, steps: Sequence[int], images: Sequence[int]) -> str:
    """Return peak memory in MiB: a row a net and number of steps, with the training step and each start and refit."""
    rows = []
    for net, case in NETS.items():
        for T in steps:
            step = find(cells, kind="memory", net=net, action="step", T=T)
            others = [find(cells, kind="memory", net=net, action=a, T=T, n=n) for n in images for a in ("start", "refit")]
            if step is None or "added_bytes" not in step:
                continue
            least = step["added_bytes"]
            rows.append([case.title, str(T), _mib(step), *(_marked(other, least) for other in others)])
    head = ["net", "T", "training step", *(f"{a}, {n:,} images" for n in images for a in ("start", "refit"))]
    return markdown_table(head, rows) if rows else NOT_RUN


def _marked(cell: dict[str, Any] | None, step: float) -> str:
    """Return the memory, in bold if it is below that of the training step."""
    text = _mib(cell)
    return f"**{text}**" if cell is not None and cell.get("added_bytes", step) < step else text


def _mib(cell: dict[str, Any] | None) -> str:
    return "" if cell is None or "added_bytes" not in cell else f"{cell['added_bytes'] / 2**20:,.0f}"


def solver_table(cells: Cells, loss: str, threads: int = 1, device: str = "cpu") -> str:
    """Return a row a size: seconds and MiB of each peer, and the products and the floor of ours."""
    found = [c for c in cells if c["kind"] == "solver" and (c["loss"], c["threads"], c["device"]) == (loss, threads, device)]
    rates = find(cells, kind="floor", threads=threads, device=device)
    peers = [peer for peer in PEERS if any(cell["peer"] == peer for cell in found)]
    rows = []
    for n, P, C in sorted({(cell["n"], cell["P"], cell["C"]) for cell in found}):
        at = {peer: find(found, n=n, P=P, C=C, peer=peer, device=device) for peer in peers}
        ours = at.get("ours")
        floor = "" if ours is None or "products" not in ours or rates is None else _seconds(floor_seconds(ours, rates))
        products = "" if ours is None or "products" not in ours else f"{ours['products']:.0f}"
        values = [text(at[peer]) for text in (_spent, _mib) for peer in peers]
        rows.append([f"{n:,}", f"{P:,}", f"{C:,}", *values, products, floor])
    names = [PEER_NAMES[peer] for peer in peers]
    head = ["n", "P", "C", *(f"{name}, s" for name in names), *(f"{name}, MiB" for name in names), "products of ours", "floor, s"]
    return markdown_table(head, rows) if rows else NOT_RUN


def _spent(cell: dict[str, Any] | None) -> str:
    """Return the seconds, or why there are none."""
    if cell is None:
        return ""
    outcome = str(cell["outcome"])
    return _seconds(seconds_of(cell)) if outcome == "reached" else outcome.split(",", maxsplit=1)[0].split(":", maxsplit=1)[0]


def _seconds(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def lead_text(cells: Cells) -> str:
    """Return how long our solver takes against each peer, the geometric mean over the programs that both reached."""
    parts = []
    reached = [c for c in cells if c["kind"] == "solver" and c["outcome"] == "reached" and c["device"] == "cpu"]
    for loss, peer in ((loss, peer) for loss in LOSS_NAMES for peer in PEERS if peer != "ours"):
        theirs = [cell for cell in reached if (cell["loss"], cell["peer"]) == (loss, peer)]
        pairs = [(cell, find(reached, peer="ours", **{key: cell[key] for key in _PROGRAM})) for cell in theirs]
        ratios = [seconds_of(ours) / seconds_of(cell) for cell, ours in pairs if ours is not None]
        if ratios:
            mean, count = float(np.exp(np.mean(np.log(ratios)))), len(ratios)
            taken = f"our solver takes {mean:.2g} times as long as {PEER_NAMES[peer]}"
            parts.append(f"- {LOSS_NAMES[loss]}: {taken}, over {count} programs.")
    return "\n".join(parts) or NOT_RUN


def exponents(cells: Cells, loss: str, peer: str, value: Callable[[dict[str, Any]], float]) -> dict[str, float]:
    """Return the exponents in n, P and C of a power law through the records that differ in that size alone."""
    found = [c for c in cells if c["kind"] == "solver" and c["outcome"] == "reached" and c["device"] == "cpu" and c["threads"] == 1]
    found = [cell for cell in found if (cell["loss"], cell["peer"]) == (loss, peer)]
    slopes = {}
    for size in ("n", "P", "C"):
        others = [other for other in ("n", "P", "C") if other != size]
        groups: dict[tuple[int, ...], list[tuple[float, float]]] = {}
        for cell in found:
            groups.setdefault(tuple(cell[other] for other in others), []).append((cell[size], value(cell)))
        points = max(groups.values(), key=len, default=[])
        if len(points) > 2 or (len(points) == 2 and size == "C"):
            slopes[size] = float(np.polyfit(*np.log(np.array(points)).T, 1)[0])
    return slopes


def growth_text(cells: Cells) -> str:
    """Return the fitted exponents of seconds, by loss and peer."""
    rows = []
    for loss, peer in ((loss, peer) for loss in LOSS_NAMES for peer in PEERS):
        slopes = exponents(cells, loss, peer, seconds_of)
        if slopes:
            rows.append([LOSS_NAMES[loss], PEER_NAMES[peer], *(f"{slopes[s]:.2f}" if s in slopes else "" for s in ("n", "P", "C"))])
    return markdown_table(["loss", "solver", "n", "P", "C"], rows) if rows else NOT_RUN


def plan_table(plans: Iterable[Plan]) -> str:
    """Return a row a machine."""
    rows = [
        [
            plan.name,
            _time(plan.floor),
            _time(plan.seconds),
            _time(plan.exchanged) if plan.devices > 1 else "",
            f"{plan.spikes / 1e9:.1f}",
            f"{plan.scores / 1e9:.0f}",
            str(plan.blocks) if plan.devices else "",
        ]
        for plan in plans
    ]
    head = ["machine", "at its limits", "expected", "sums over GPUs", "spikes, GB each", "scores, GB each", "blocks of outputs"]
    return markdown_table(head, rows)


def _time(seconds: float) -> str:
    """Return seconds, minutes or hours."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{_seconds(seconds / size)} {unit}"
    return f"{_seconds(seconds)} s"


def rank_table(path: Path) -> str:
    """Return the seconds of starts and refits by number of ranks, a row each."""
    if not path.exists():
        return NOT_RUN
    cases: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cases"]
    worlds = sorted({case["ranks"] for case in cases.values()})
    rows = []
    for name in dict.fromkeys(key.rpartition(", ")[0] for key in cases):
        runs = [cases[f"{name}, {world}"] for world in worlds]
        seconds = [run["seconds"] for run in runs]
        alike = "yes" if all(run["equal_bits"] for run in runs) else "no"
        alone = sum(runs[-1]["stages"].get(stage, 0.0) for stage in ("reconstruct", "calibrate"))
        messages = f"{runs[-1]['messages']:,} ({runs[-1]['messages_seconds']:.1f} s)"
        ratio = f"{seconds[-1] / seconds[0]:.2f}"
        rows.append([name, *(f"{each:.1f}" for each in seconds), f"{alone:.1f}", messages, ratio, alike])
    numbers = [f"{world} rank{'s' * (world > 1)}, s" for world in worlds]
    head = ["readout, solve", *numbers, "in rank 0 alone, s", "messages", "ratio", "equal bits in all ranks"]
    return markdown_table(head, rows)
