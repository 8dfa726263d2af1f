"""Tests of one file of the package, nearest first, until a budget of CPU time is spent: ``make quick FILE=...``.

The nearest tests are those of the mirrored name, then those of other files that import the file, then those of the files
that import it.  They are collected one test file after another, so nothing is imported that the budget does not reach.
"""

from __future__ import annotations

import ast
import difflib
import math
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = "snn_recon_plugin"
BUDGET = 10.0  # CPU seconds, imports included, after which no further test begins
EXAMPLE = f"type e.g. make quick FILE={PACKAGE}/convex/path.py"


def module_of(path: Path) -> str:
    """Return the dotted name of a file that is given from the checkout's root."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


@cache
def names_in(root: Path, path: Path) -> set[str]:
    """Return the dotted names that a file imports or holds as text, such as the target of a monkeypatch."""
    own, found = module_of(path).split("."), set[str]()
    for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            above = own[: len(own) - node.level + (path.name == "__init__.py")] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(f"{PACKAGE}."):
            found |= {node.value, node.value.rpartition(".")[0]}
    return found


def nearest_tests(root: Path, file: Path, levels: float = math.inf) -> Iterator[Path]:
    """Yield test files from the checkout's root, nearest first and small ones before large ones.

    ``levels`` is the number of steps from the file to one that imports it and is imported by a test.
    """
    tests = [path.relative_to(root) for path in sorted((root / "tests").rglob("test_*.py"))]
    sources = [path.relative_to(root) for path in sorted((root / PACKAGE).rglob("*.py"))]
    names = {path: names_in(root, path) for path in (*tests, *sources)}
    mirrored = Path("tests", *file.parts[1:-1], f"test_{file.name}")
    seen, level = set[Path](), [file]
    while level and levels > 0:
        targets = {module_of(path) for path in level}
        near = [path for path in tests if (names[path] & targets or path == mirrored) and path not in seen]
        near.sort(key=lambda path: (path != mirrored, (root / path).stat().st_size))
        yield from near
        seen |= {*near, *level}
        levels -= 1
        level = [path for path in sources if names[path] & targets and path not in seen]


class Budget:
    """Plugin that stops pytest once the CPU time is spent."""

    spent = False

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.session = session

    def pytest_runtest_logfinish(self) -> None:
        if time.process_time() > BUDGET:
            self.spent, self.session.shouldstop = True, "the budget is spent"


def main(name: str) -> int:
    """Run the tests; return 0 unless one fails."""
    root = Path(__file__).resolve().parents[1]
    file = Path(name)
    files = {str(path.relative_to(root)): path for path in (root / PACKAGE).rglob("*.py")}
    if str(file) not in files:
        close = difflib.get_close_matches(name, files, 1)
        print(f"{name!r} is no file of the package: {f'did you mean {close[0]}?' if close else EXAMPLE}")
        return 2
    budget, done = Budget(), 0
    for test in nearest_tests(root, file):
        if budget.spent:
            break
        code = pytest.main(["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", str(root / test)], plugins=[budget])
        if budget.session.testsfailed or (code not in (0, 5) and not budget.spent):
            return int(code)
        done += 1
    print(f"{done} test files of {name}, {time.process_time():.0f} s of CPU time")
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) == 2 else ""))
