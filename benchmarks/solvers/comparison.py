"""Tables of docs/evidence/solver*.md that compare peers: seconds to the gaps, and ratios of the fastest peer to ours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.store import Store

from .cell import TARGETS
from .peers import PEERS, refusal
from .problems import strengths_of
from .tables import Cells, seconds, table

__all__ = ["SPARSE", "fastest_table", "headline", "load", "problem_table", "ratio_table"]

SPARSE = "ABCDEF"
# Sizes of the default program, each with the beginnings of its problems' names.
DEFAULT = {
    "G, n=5,000": ("G-filtered-5k", "G-spikes-5k"),
    "G, n=60,000": ("G-filtered-60k", "G-spikes-60k"),
    "G, C=100": ("G-counts",),
}
_KEYS = [f"{target:g}" for target in TARGETS]


def load(path: Path, threads: int = 2) -> Cells:
    """Return the cells by problem, penalty, strength and peer; of repeated ones the fastest."""
    cells: Cells = {}
    for cell in Store(path).cells():
        key = cell["problem"], cell["penalty"], cell["strength"], cell["peer"]
        if cell["threads"] == threads and cell["peer"] in PEERS and (key not in cells or _last(cell) < _last(cells[key])):
            cells[key] = cell
    return cells


def _last(cell: dict[str, Any]) -> float:
    value = cell["seconds_to"].get(_KEYS[-1])
    return math.inf if value is None else float(value)


def problem_table(cells: Cells, problem: str, penalty: str, clock: str = "seconds_to") -> str:
    """Return a row a peer: seconds to the gaps for each strength, and the most memory."""
    chosen = {key[2:]: cell for key, cell in cells.items() if key[:2] == (problem, penalty)}
    if not chosen:
        return ""
    first = next(iter(chosen.values()))
    program = first["loss"], penalty, first["C"]
    strengths = [value for value in strengths_of(penalty) if any(strength == value for strength, _ in chosen)]
    rows = []
    for peer in (peer for peer in PEERS if any(name == peer for _, name in chosen) and refusal(peer, *program) is None):
        found = [chosen.get((value, peer)) for value in strengths]
        peak = max((cell["peak_mib"] or 0.0 for cell in found if cell), default=0.0)
        rows.append((peer, *(_times(cell, clock) for cell in found), f"{peak:.0f}" if peak else "–"))
    if not rows:
        return ""
    size = f"n={first['n']}, P={first['P']}, C={first['C']}, {first['loss']}"
    head = ("", *(f"strength {value:g}" for value in strengths), "peak MiB")
    return f"**{problem}, {penalty}** ({first['about']}; {size})\n\n{table(head, rows)}"


def _times(cell: dict[str, Any] | None, clock: str) -> str:
    if cell is None:
        return "not run"
    times = [seconds(cell[clock].get(key)) for key in _KEYS]
    if any(time != "–" for time in times):
        return " / ".join(times)
    return str(cell["outcome"]) if cell["outcome"] != "reached" else "not reached"


def excess_times(cells: Cells, key: tuple[str, str, float], peer: str) -> dict[str, float | None]:
    """Return the seconds until the objective is within each gap of the best lower bound that any peer proved for the program."""
    rivals = [cell for name, cell in cells.items() if name[:3] == key and cell["trajectory"]]
    bound = max(point["dual"] for cell in rivals for point in cell["trajectory"])
    cell = cells[(*key, peer)]
    result: dict[str, float | None] = {}
    for name, target in zip(_KEYS, TARGETS, strict=True):
        near = [p["seconds"] for p in cell["trajectory"] if p["objective"] - bound <= (1 + 1e-4) * target * cell["zero_loss"]]
        result[name] = min(near, default=None)
    return result


def best_times(cells: Cells, program: tuple[str, str, float], target: str, measure: str) -> tuple[float | None, dict[str, float]]:
    """Return our seconds to a gap, and those of the peers that reached it.

    A peer's are interpolated between its settings, in its favour, if the measure is the certificate in wall-clock seconds.
    """
    times: dict[str, float] = {}
    for key, cell in cells.items():
        if key[:3] == program and cell["trajectory"]:
            kind = "seconds_to_least" if measure == "seconds_to" and key[3] != "ours" else measure
            value = (excess_times(cells, program, key[3]) if measure == "excess" else cell.get(kind, {})).get(target)
            if value is not None:
                times[key[3]] = value
    return times.pop("ours", None), times


def ratio_rows(cells: Cells, label: str, problems: Iterable[str], measures: dict[str, str]) -> list[tuple[Any, ...]]:
    """Return for each gap and measure the geometric mean of fastest peer over ours, and how many programs it is of."""
    names = tuple(problems)
    tried = {key[:3] for key in cells if key[0].startswith(names) and key[3] != "ours"}
    programs = sorted({key[:3] for key, cell in cells.items() if cell["trajectory"]} & tried)
    rows = []
    for (measure, about), target in itertools.product(measures.items(), _KEYS):
        logs, alone, beaten = [], 0, 0
        for program in programs:
            own, peers = best_times(cells, program, target, measure)
            if own is not None and peers:
                logs.append(math.log(min(peers.values()) / own))
            alone += own is not None and not peers
            beaten += own is None and bool(peers)
        mean = f"{math.exp(sum(logs) / len(logs)):.2g}" if logs else "–"
        rows.append((label, target, about, mean, len(logs), alone, beaten))
    return rows


def ratio_table(by_threads: dict[int, Cells]) -> str:
    """Return the ratios of all families of problems."""
    sparse = {"seconds_to": "certificate of the point", "excess": "distance to the best known bound"}
    rows = [row for names in ("AB", SPARSE) for row in ratio_rows(by_threads[2], ", ".join(names), names, sparse) if row[4]]
    for threads, cells in by_threads.items():
        clocks = {"seconds_to": f"wall-clock, {threads} threads", "cpu_to": f"CPU, {threads} threads"}
        for label, names in DEFAULT.items():
            if any(key[0].startswith(names) for key in cells):
                rows += ratio_rows(cells, label, names, clocks)
    head = ("problems", "relative gap", "measured by", "fastest peer / ours", "programs", "ours alone", "a peer alone")
    return table(head, rows)


def fastest_table(cells: Cells) -> str:
    """Return our seconds to the smallest gap, and those of the fastest peer, for every program."""
    rows = []
    for program in sorted({key[:3] for key in cells if not key[0].startswith("growth")}, key=lambda p: (p[0], p[1], -p[2])):
        own, peers = best_times(cells, program, _KEYS[-1], "seconds_to")
        if own is not None and peers:
            best = min(peers, key=lambda peer: peers[peer])
            rows.append(
                (
                    f"{program[0]}, {program[1]}, {program[2]:g}",
                    seconds(own),
                    best,
                    seconds(peers[best]),
                    f"{peers[best] / own:.2g}",
                )
            )
        elif own is not None:
            rows.append((f"{program[0]}, {program[1]}, {program[2]:g}", seconds(own), "none reached it", "–", "–"))
    return table(("program", "ours, s", "fastest peer", "its s", "times our"), rows)


def headline(by_threads: dict[int, Cells]) -> str:
    """Return a line on the sparse programs and on each size of the default program, with the ratio at the smallest gap."""
    lines = []
    for label, names in {
        "Sparse penalties (A to F)": tuple(SPARSE),
        **{f"Default program ({label})": names for label, names in DEFAULT.items()},
    }.items():
        # Sizes that take long are measured in one thread, in CPU seconds.
        cells, clock, about = by_threads[2], "seconds_to", "wall-clock, 2 threads"
        if not any(key[0].startswith(names) for key in cells):
            cells, clock, about = by_threads[1], "cpu_to", "CPU seconds, 1 thread"
        _, gap, _, mean, count, alone, beaten = ratio_rows(cells, "", names, {clock: ""})[-1]
        if count:
            programs = f"{count} program{'' if count == 1 else 's'}"
            others = f"; ours alone reached it on {alone} more, a peer alone on {beaten}" if alone or beaten else ""
            lines.append(f"- {label}: the fastest peer takes {mean} times as long to a gap of {gap} ({programs}, {about}{others}).")
    return "\n".join(lines)
