"""Types what docs/quickstart.md says, in a new environment: its commands, then its blocks of Python as one script; with times.

    python benchmarks/newcomer.py                       writes benchmarks/results/newcomer.json

Installing takes as long as its downloads do.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, machine

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = "python script.py"


def parts(page: str) -> tuple[list[str], str]:
    """The page's commands, without comments, and its Python."""
    shell = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    commands = [re.sub(r"\s+#.*", "", line).strip() for line in shell.splitlines() if line.strip()]
    return commands, "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))


def run(command: str, environment: dict[str, str], folder: Path) -> dict[str, Any]:
    """What a command took and printed."""
    began = time.perf_counter()
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout}\n{done.stderr}")
    return {"command": command, "seconds": time.perf_counter() - began, "printed": done.stdout.splitlines()}


def main() -> None:
    """All of it."""
    commands, script = parts((ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "script.py").write_text(script, encoding="utf-8")
        environment = {**os.environ, "PATH": f"{folder / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        environment.pop("PYTHONPATH", None)
        steps = [run(f"{sys.executable} -m venv venv", environment, folder)]
        steps[0]["command"] = "python -m venv venv"
        steps += [run(command, environment, ROOT) for command in commands]
        steps.append(run(SCRIPT, environment, folder))
    for step in steps[:-1]:
        del step["printed"]
    said = [line for line in steps[-1]["printed"] if "of the others are right" in line or line.startswith("duality gap")]
    steps[-1]["printed"] = said
    content = {"machine": machine("snntorch", "lightning"), "steps": steps}
    (RESULTS / "newcomer.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
