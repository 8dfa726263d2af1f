"""Tables that compare peers: seconds to the gaps, and ratios of the fastest peer to ours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.render import markdown_table
from benchmarks.solvers.measure import times_to
from benchmarks.solvers.peers import PEERS
from benchmarks.solvers.problems import strengths_of
from benchmarks.solvers.program import TARGETS
from benchmarks.store import Store

SPARSE = "ABCE"
# Sizes of the default program, each with the beginnings of its problems' names.
DEFAULT = {
    "G, n=5,000": ("G-filtered-5k", "G-spikes-5k"),
    "G, n=60,000": ("G-filtered-60k", "G-spikes-60k"),
    "G, C=100": ("G-counts",),
}
Program = tuple[str, str, float]  # problem, penalty and strength
Cells = Mapping[tuple[str, str, float, str], dict[str, Any]]  # by program and peer
_KEYS = [f"{target:g}" for target in TARGETS]
_LAST = _KEYS[-1]


def load(store: Store, threads: int) -> Cells:
    """Return the solves of so many threads, with the seconds to each gap."""
    found = (cell for cell in store.cells() if cell.get("threads") == threads and "peer" in cell)
    return {
        (cell["problem"], cell["penalty"], cell["strength"], cell["peer"]): {**cell, **times_to(cell["trajectory"], cell["limit"])}
        for cell in found
    }


def seconds(value: float | None) -> str:
    """Two digits, or a dash if the gap was not reached."""
    if value is None:
        return "–"
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def problem_table(cells: Cells, problem: str, penalty: str, about: str, clock: str = "seconds_to") -> str:
    """Return a row a peer: seconds to the gaps for each strength, and the most memory."""
    chosen = {key[2:]: cell for key, cell in cells.items() if key[:2] == (problem, penalty)}
    if not chosen:
        return ""
    strengths = [value for value in strengths_of(penalty) if any(strength == value for strength, _ in chosen)]
    rows = []
    for peer in (peer for peer in PEERS if any(name == peer for _, name in chosen)):
        found = [chosen.get((value, peer)) for value in strengths]
        peak = max((cell["peak_mib"] or 0.0 for cell in found if cell), default=0.0)
        rows.append((peer, *(_times(cell, clock) for cell in found), f"{peak:.0f}" if peak else "–"))
    head = ("", *(f"strength {value:g}" for value in strengths), "peak MiB")
    cell = next(iter(chosen.values()))
    size = f"n={cell['n']}, P={cell['P']}, C={cell['C']}, {cell['loss']}"
    return f"**{problem}, {penalty}** ({about}; {size})\n\n{markdown_table(head, rows)}"


def _times(cell: dict[str, Any] | None, clock: str) -> str:
    if cell is None:
        return "not run"
    times = [seconds(cell[clock][key]) for key in _KEYS]
    if any(time != "–" for time in times):
        return " / ".join(times)
    return str(cell["outcome"]) if cell["outcome"] != "reached" else "not reached"


def excess_times(cells: Cells, program: Program, peer: str) -> dict[str, float | None]:
    """Return the seconds until the objective is within each gap of the best lower bound that any peer proved for the program."""
    bound = max(point["dual"] for key, cell in cells.items() if key[:3] == program for point in cell["trajectory"])
    cell = cells[(*program, peer)]
    result: dict[str, float | None] = {}
    for name, target in zip(_KEYS, TARGETS, strict=True):
        near = [p["seconds"] for p in cell["trajectory"] if p["objective"] - bound <= (1 + 1e-4) * target * cell["zero_loss"]]
        result[name] = min(near, default=None)
    return result


def best_times(cells: Cells, program: Program, target: str, measure: str) -> tuple[float | None, dict[str, float]]:
    """Return our seconds to a gap, and those of the peers that reached it.

    A peer's are interpolated between its settings, in its favour, if the measure is the certificate in wall-clock seconds.
    """
    times: dict[str, float] = {}
    for key, cell in cells.items():
        if key[:3] == program and cell["trajectory"]:
            kind = "seconds_to_least" if measure == "seconds_to" and key[3] != "ours" else measure
            value = (excess_times(cells, program, key[3]) if measure == "excess" else cell[kind])[target]
            if value is not None:
                times[key[3]] = value
    return times.pop("ours", None), times


def ratio_rows(cells: Cells, label: str, problems: Iterable[str], measures: dict[str, str]) -> list[tuple[str, ...]]:
    """Return for each gap and measure the geometric mean of fastest peer over ours, and how many programs it is of."""
    names = tuple(problems)
    tried = {key[:3] for key in cells if key[0].startswith(names) and key[3] != "ours"}
    programs = sorted({key[:3] for key, cell in cells.items() if cell["trajectory"]} & tried)
    rows: list[tuple[str, ...]] = []
    for (measure, about), target in itertools.product(measures.items(), _KEYS):
        pairs = [best_times(cells, program, target, measure) for program in programs]
        logs = [math.log(min(peers.values()) / own) for own, peers in pairs if own is not None and peers]
        mean = f"{math.exp(sum(logs) / len(logs)):.2g}" if logs else "–"
        alone = sum(own is not None and not peers for own, peers in pairs)
        beaten = sum(own is None and bool(peers) for own, peers in pairs)
        rows.append((label, target, about, mean, str(len(logs)), str(alone), str(beaten)))
    return rows


def ratio_table(by_threads: dict[int, Cells]) -> str:
    """Return the ratios of all families of problems."""
    sparse = {"seconds_to": "certificate of the point", "excess": "distance to the best known bound"}
    rows = [row for names in ("AB", SPARSE) for row in ratio_rows(by_threads[2], ", ".join(names), names, sparse)]
    for threads, cells in by_threads.items():
        clocks = {"seconds_to": f"wall-clock, {threads} threads", "cpu_to": f"CPU, {threads} threads"}
        for label, names in DEFAULT.items():
            if any(key[0].startswith(names) for key in cells):
                rows += ratio_rows(cells, label, names, clocks)
    head = ("problems", "relative gap", "measured by", "fastest peer / ours", "programs", "ours alone", "a peer alone")
    return markdown_table(head, rows)


def fastest_table(cells: Cells) -> str:
    """Return our seconds to the smallest gap, and those of the fastest peer, for every program."""
    rows = []
    for program in sorted({key[:3] for key in cells if not key[0].startswith("growth")}, key=lambda p: (p[0], p[1], -p[2])):
        own, peers = best_times(cells, program, _LAST, "seconds_to")
        if own is None:
            continue
        best = min(peers, key=lambda peer: peers[peer], default="none reached it")
        theirs = (seconds(peers[best]), f"{peers[best] / own:.2g}") if peers else ("–", "–")
        rows.append((f"{program[0]}, {program[1]}, {program[2]:g}", seconds(own), best, *theirs))
    return markdown_table(("program", "ours, s", "fastest peer", "its s", "times our"), rows)


def headline(by_threads: dict[int, Cells]) -> str:
    """Return a line on the sparse programs and on each size of the default program, with the ratio at the smallest gap."""
    families = {"Sparse penalties (A, B, C, E)": tuple(SPARSE)}
    families |= {f"Default program ({label})": names for label, names in DEFAULT.items()}
    lines = []
    for label, names in families.items():
        # Sizes that take long are measured in one thread, in CPU seconds.
        cells, clock, about = by_threads[2], "seconds_to", "wall-clock, 2 threads"
        if not any(key[0].startswith(names) for key in cells):
            cells, clock, about = by_threads[1], "cpu_to", "CPU seconds, 1 thread"
        _, gap, _, mean, count, alone, beaten = ratio_rows(cells, "", names, {clock: ""})[-1]
        if count != "0":
            more = f"; ours alone reached it on {alone} more, a peer alone on {beaten}" if (alone, beaten) != ("0", "0") else ""
            ratio = f"the fastest peer takes {mean} times as long to a gap of {gap}"
            lines.append(f"- {label}: {ratio} ({count} programs, {about}{more}).")
    return "\n".join(lines)
