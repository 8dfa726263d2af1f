"""Tables of docs/evidence/solver*.md about the package's solver alone, and the path with held-out choice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .cell import GOAL

__all__ = ["Cells", "choice_table", "floor_table", "growth_table", "memory_table", "path_table", "seconds", "share_table", "table"]

Cells = dict[tuple[str, str, float, str], dict[str, Any]]
NOT_RUN = "Not run yet."
_LAST = f"{GOAL:g}"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def seconds(value: float | None) -> str:
    """Two digits, or a dash if the gap was not reached."""
    if value is None:
        return "–"
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def growth_table(cells: Cells) -> str:
    """Seconds of ours to the smallest gap, and the exponents of power laws fitted to them."""
    parts = []
    for size in ("n", "P"):
        found = sorted((c for key, c in cells.items() if key[0].startswith(f"growth-{size.lower()}")), key=lambda cell: cell[size])
        times = [(cell[size], cell["seconds_to"].get(_LAST), cell["peak_mib"]) for cell in found]
        done = [(value, time) for value, time, _ in times if time]
        if times:
            rows = [(value, seconds(time), f"{peak or 0:.0f}") for value, time, peak in times]
            parts.append(table((size, "seconds to 1e-6", "peak MiB"), rows))
        if len(done) > 1:
            slope = np.polyfit(*np.log(np.array(done).T), 1)[0]
            other = f"P={found[0]['P']}" if size == "n" else f"n={found[0]['n']}"
            parts.append(f"Seconds grow as {size}^{slope:.2f} ({other}, group_l1, strength 1e-3, {found[0]['about']}).")
    return "\n\n".join(parts) or NOT_RUN


def floor_table(path: Path, cells: Cells) -> str:
    """One product with the features and one with their transpose: 4nPC flop, 4nP bytes read once or 8nP in two passes."""
    if not path.exists():
        return NOT_RUN
    rows = []
    for shape in json.loads(path.read_text(encoding="utf-8"))["shapes"]:
        if shape["problem"].startswith("growth"):
            continue
        n, columns, outputs, pair = shape["n"], shape["P"], shape["C"], shape["pair_seconds"]
        rate, speed, copy = 4 * n * columns * outputs / pair, 8 * n * columns / pair, shape["copy_bytes_per_second"]
        programs = ((shape["problem"], *rest) for rest in (("group_l1", 1e-3), ("l1", 1e-3), ("ridge", 1e-2)))
        ours = next((cells[key]["seconds_to"].get(_LAST) for p in programs if (key := (*p, "ours")) in cells), None)
        values = (f"{1e3 * pair:.3g}", f"{rate / 1e9:.3g}", f"{100 * rate / shape['gemm_flops']:.0f} %", f"{speed / 1e9:.3g}")
        pairs = "–" if ours is None else f"{ours / pair:.0f}"
        rows.append((shape["problem"], n, columns, outputs, *values, f"{100 * speed / copy:.0f} %", pairs))
    head = (
        "",
        "n",
        "P",
        "C",
        "ms",
        "GFLOP/s",
        "of a large product's",
        "GB/s, two passes",
        "of the copy's",
        "ours to 1e-6 in pairs",
    )
    return table(head, rows)


def path_table(path: Path) -> str:
    """A path against the single hardest of its solves."""
    if not path.exists():
        return NOT_RUN
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for name, case in content["cases"].items():
        span = f"{content['count']}, {case['strengths'][0]:.2g} to {case['strengths'][1]:.2g}"
        ratio = f"{case['seconds'] / case['hardest']:.2g}"
        reached = "yes" if case["reached"] else "NO"
        rows.append((name.replace("-", ", "), span, seconds(case["seconds"]), seconds(case["hardest"]), ratio, reached))
    head = ("program", "strengths", "path, s", "hardest solve from zero, s", "path / hardest", "all reached")
    often = sorted({case.get("times", 1) for case in content["cases"].values()})
    about = f"Relative gap {content['tol']:g}; the hardest is the slowest of the three smallest strengths. "
    return f"{table(head, rows)}\n\n{about}Each is the fastest of {' or '.join(map(str, often))} runs."


def memory_table(path: Path) -> str:
    """Peak memory of the largest programs."""
    if not path.exists():
        return NOT_RUN
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for case in content["cases"].values():
        sizes = [f"{case[f'{key}_bytes'] / 2**20:.0f}" for key in ("features", "taken", "process")]
        rows.append((case["dtype"], case["penalty"], seconds(case["seconds"]), f"{case['relative_gap']:.1e}", *sizes))
    case = next(iter(content["cases"].values()))
    size = f"n={case['n']}, P={case['P']}, C={case['C']}, cross-entropy, strength {case['strength']:g}"
    head = ("features", "penalty", "s", "gap", "features, MiB", "taken besides, MiB", "process, MiB")
    return f"{table(head, rows)}\n\n{size}, asked for a gap of {content['tol']:g}."


def share_table(path: Path) -> str:
    """Shares of the CPU time of solves of the default program."""
    if not path.exists():
        return NOT_RUN
    content = json.loads(path.read_text(encoding="utf-8"))
    rows, parts = [], list(next(iter(content["cases"].values()))["shares"])
    for name, case in content["cases"].items():
        shares = [case["shares"][part] for part in parts]
        shown = [f"{100 * share:.0f} %" for share in (*shares, max(0.0, 1 - sum(shares)))]
        alone = f"{100 * case['products_alone'] / case['cpu']:.0f} %"
        rows.append((name.replace("/", ", "), seconds(case["cpu"]), f"{case['products']:.0f}", alone, case["steps"], *shown))
    head = ("program", "CPU s", "products", "products alone", "steps", *parts, "rest")
    about = "A product is of all features with the weights of all outputs. Products alone: the time of as many products in float32"
    return f"{table(head, rows)}\n\nThreads: {content['threads']}. {about}, as a share of the solve's."


def choice_table(folder: Path) -> str:
    """Paths with held-out choice, for each number of threads that was measured."""
    parts = []
    for path in sorted(folder.glob("choice*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = []
        for name, case in content["cases"].items():
            task, method, tol = name.split("/")
            result = f"{case['strength']:.2g}", f"{case['relative_gap']:.1e}", f"{100 * case['accuracy']:.1f}"
            rows.append((task, method, tol, case["strengths"], seconds(case["seconds"]), seconds(case["cpu"]), *result))
        head = ("program", "method", "tol", "strengths", "s", "CPU s", "chosen", "gap", "training accuracy, %")
        parts.append(f"Threads: {content['threads']}.\n\n{table(head, rows)}")
    return "\n\n".join(parts) or NOT_RUN
