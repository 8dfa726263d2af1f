"""Plant each fault in a copy of a commit, and run that commit's own tests until one fails.

cd benchmarks && python -m planted_faults --commit 79cd86d            all faults that have no result yet
cd benchmarks && python -m planted_faults --commit HEAD --only NAME   one of them, again

The tests nearest to the fault come first, then its room's, then the end-to-end tests, then all others.  Slow tests are left out,
and those of the studies, the pages and other environments.  A fault that no longer applies ends the run with its name.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import resource
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from common import RESULTS, machine, run_all
from quick import nearest_tests

from .catalogue import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
RESULT = RESULTS / "planted_faults.json"
LEFT_OUT = ("tests/benchmarks", "tests/test_docs.py", "tests/ecosystem", "tests/alone")
NO_FAULT = "no fault"  # the suite must pass without any
TIME_LIMIT = 2400  # seconds of a run: a fault may make a loop endless
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


def checkout(commit: str, folder: Path) -> None:
    """Copy the files of a commit into a folder; the repository does not change."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)


def groups(root: Path, file: Path | None) -> dict[str, list[Path]]:
    """Return the test files by group, in the order in which they run, each once."""
    every = [path.relative_to(root) for path in sorted((root / "tests").rglob("test_*.py"))]
    every = [path for path in every if not str(path).startswith(LEFT_OUT)]
    room = "tests" if file is None else f"tests/{file.parts[1]}/"
    found = {
        "quick": [] if file is None else [path for path in nearest_tests(root, file, levels=1) if path in every],
        "room": [path for path in every if str(path).startswith(room)],
        "end to end": [path for path in every if str(path).startswith("tests/end_to_end/")],
        "rest": every,
    }
    done = set[Path]()
    for name, paths in found.items():
        found[name] = [path for path in paths if path not in done]
        done |= set(paths)
    return found


def run_tests(root: Path, paths: list[Path]) -> str | None:
    """Run test files in order up to the first failure; return the failing test, None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *map(str, paths)]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    try:
        ran = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return f"none ended within {TIME_LIMIT} s"
    if ran.returncode in (0, 5):  # 5: no test is left
        return None
    failed = _FAILED.findall(ran.stdout)
    return str(failed[0]) if failed else (ran.stdout + ran.stderr).strip()[-300:]


def first_failure(root: Path, file: Path | None) -> tuple[str, str] | tuple[None, None]:
    """Return the group and the name of the first test that fails; twice None if all pass."""
    for group, paths in groups(root, file).items():
        failed = run_tests(root, paths) if paths else None
        if failed is not None:
            return group, failed
    return None, None


def look_for(fault: Fault | None, root: Path) -> dict[str, Any]:
    """Plant a fault, or none, and run tests until one fails."""
    path, began = None if fault is None else fault.find(root), cpu_seconds()
    file = None if path is None else path.relative_to(root)
    before = b"" if path is None else path.read_bytes()
    try:
        if fault is not None and path is not None:
            fault.plant(path)
        group, failed = first_failure(root, file)
    finally:
        if path is not None:
            path.write_bytes(before)
    return {
        "file": None if file is None else str(file),
        "found": failed is not None,
        "by": failed,
        "group": group,
        "cpu_seconds": round(cpu_seconds() - began, 1),
        "date": datetime.date.today().isoformat(),
    }


def cpu_seconds() -> float:
    """Return the CPU time of all test processes so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def name_of(commit: str, fault: str) -> str:
    """Return the name of a result."""
    return f"{commit} | {fault}"


def main() -> int:
    """Run the faults of one commit that have no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="HEAD", help="whose package and tests are used; default HEAD")
    parser.add_argument("--only", default="", metavar="TEXT", help="run the faults whose names hold this, again")
    options = parser.parse_args()
    name = ["git", "rev-parse", "--short=7", options.commit]
    commit = subprocess.run(name, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        checkout(commit, root)
        for fault in FAULTS:
            fault.find(root)
        cases = {name_of(commit, fault.name): partial(look_for, fault, root) for fault in FAULTS if options.only in fault.name}
        head = {"machine": machine("pytest", "snntorch", "norse", "lightning")}
        sound = name_of(commit, NO_FAULT)
        failed = run_all(RESULT, head, {sound: partial(look_for, None, root)})["cases"][sound]["by"]
        if failed is not None:
            raise SystemExit(f"{failed} fails without any fault; remove {sound!r} from {RESULT} once it passes")
        content = run_all(RESULT, head, cases, again=cases if options.only else ())
    found = [content["cases"][case]["found"] for case in cases]
    print(f"{commit}: {sum(found)} of {len(found)} faults found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
