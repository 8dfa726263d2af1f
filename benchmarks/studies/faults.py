"""Faults planted in a commit, one at a time, to see whether its own tests find them.

The test files that found the fault in earlier commits run first, then those nearest to it, then all others, up to the first
failure; the test that fails must pass without the fault.  Slow tests are left out, and those of the studies, the pages and other
environments.  A run measures the commit that is checked out; a fault that no longer applies ends it with its name.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.faults import FAULTS, FIRST, Fault
from benchmarks.quick import nearest_tests
from benchmarks.render import ROOT, machines_line, markdown_table
from benchmarks.store import RESULTS, Store
from benchmarks.study import Bench, Cells, Study

KEPT = ("79cd86d", "5103952", "a023db6")  # a commit with a larger suite, and later ones with smaller suites
LATER = ("d16c2cb", "26cf5d0")  # commits in which all faults were planted
LEFT_OUT = ("tests/benchmarks/", "tests/test_docs.py", "tests/ecosystem/", "tests/alone/")
NEAR = 4  # test files that are nearest to a fault
TIME_LIMIT = 7200  # seconds of a run: a fault may make a loop endless
FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)


def git(*words: str) -> bytes:
    """Return what git prints; nothing outside a repository."""
    return subprocess.run(["git", *words], cwd=ROOT, check=False, capture_output=True).stdout


@cache
def checkout(commit: str) -> tuple[Path, Any]:
    """Copy the files of a commit into a folder, which is removed at exit; the repository does not change."""
    folder = tempfile.TemporaryDirectory()
    subprocess.run(["tar", "-x", "-C", folder.name], input=git("archive", commit), check=True)
    return Path(folder.name), folder


def all_tests(root: Path) -> list[str]:
    """Return the test files of a checkout."""
    paths = [str(path.relative_to(root)) for path in sorted((root / "tests").rglob("test_*.py"))]
    return [path for path in paths if not path.startswith(LEFT_OUT)]


def first_failure(root: Path, tests: Sequence[str]) -> str | None:
    """Run tests in order, and return the first one that fails."""
    if not tests:
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    found = FAILED.findall(ran.stdout)
    if ran.returncode not in (0, 5) and not found:  # 5: all tests are slow ones
        raise RuntimeError((ran.stdout + ran.stderr)[-2000:])
    return found[0] if found else None


def measure(bench: Bench, commit: str, fault: Fault) -> dict[str, Any]:
    """Plant a fault, and look for a test that finds it."""
    root, _ = checkout(commit)
    path, every = fault.find(root), all_tests(root)
    before = path.read_bytes()
    earlier = [cell["by"].partition("::")[0] for cell in bench.store.cells(f"* | {fault.name}") if cell["by"]]
    nearest = [str(test) for test in nearest_tests(root, path.relative_to(root), levels=1)]
    near = [test for test in dict.fromkeys((*earlier, *nearest)) if test in every][:NEAR]
    try:
        fault.plant(path)
        by = first_failure(root, near) or first_failure(root, [test for test in every if test not in near])
    finally:
        path.write_bytes(before)
    if by is not None and first_failure(root, [by]):
        raise RuntimeError(f"{by} fails without any fault")
    return {"found": by is not None, "by": by}


def cells(bench: Bench) -> Cells:
    """The first faults in the kept commits, and every fault in later ones and in the one that is checked out."""
    commits = dict.fromkeys((*KEPT, *LATER, git("rev-parse", "--short=7", "HEAD").decode().strip()))
    return {
        f"{commit} | {fault.name}": partial(measure, bench, commit, fault)
        for commit in commits
        if commit
        for fault in (FIRST if commit in KEPT else FAULTS)
    }


def pages(store: Store) -> dict[str, dict[str, str]]:
    """One row for each measured fault, and one column a commit: the file of the test that finds it."""
    commits = list(dict.fromkeys([*KEPT, *LATER, *(name.partition(" | ")[0] for name in store.named())]))
    found = {fault: [store.named().get(f"{commit} | {fault.name}", {}) for commit in commits] for fault in FAULTS}
    rows = [(fault.name, fault.room, *map(_text, each)) for fault, each in found.items() if any(each)]
    rows.append(("found", "", *(str(sum(cell.get("found", False) for cell in each)) for each in zip(*found.values(), strict=True))))
    table = markdown_table(("fault", "room", *(f"found at {commit}" for commit in commits)), rows)
    return {"evidence/tests.md": {"planted faults": f"{table}\n\n{machines_line(store.cells())}", "fuzz": fuzz_table()}}


def fuzz_table() -> str:
    """Return what came of random cases, without and with interrupts."""
    rows = []
    for run, found in json.loads((RESULTS / "fuzz.json").read_text()).items():
        endings = (str(found["endings"].get(kind, 0)) for kind in ("written", "refused", "fault"))
        each = found["seconds of all cases"] / found["cases"]
        rows.append((run, f"{found['cases']:,}", *endings, str(len(found["violations"])), f"{each:.2f}", found["date"]))
    heads = ("run", "cases", "written", "refused", "ended by the fault", "violations", "seconds a case", "date")
    return markdown_table(heads, rows)


def _text(cell: dict[str, Any]) -> str:
    """Return the file of the test; empty without a result."""
    if not cell:
        return ""
    return f"`{cell['by'].partition('::')[0].rpartition('/')[2]}`" if cell["found"] else "not found"


STUDY = Study(
    title="planted faults, and which of them the tests find",
    minutes=60,
    cells=cells,
    pages=pages,
    fields=("found", "by"),
    packages=("pytest", "snntorch", "norse", "lightning"),
)
