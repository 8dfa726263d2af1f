"""Does what the pages say, in new environments: Get started with its scripts, and the landing page's lines on a newcomer's own net.

    python benchmarks/newcomer.py --root DIR        (where torchvision finds MNIST) writes benchmarks/results/newcomer.json

The form that installs a released version finds a wheel that is built here.  Installing takes as long as its downloads do.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, machine

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OWN, MARK = Path(__file__).with_name("newcomer_net.py"), "# the landing page's lines\n"
KEPT = re.compile(r"held-out accuracy|exactness|duality gap|test accuracy")


def tab(page: str, title: str, language: str) -> str:
    """The code of one tab of a page in docs/; its first one of that title."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^### {title}\n\n```{language}\n(.*?)```", text, re.DOTALL | re.MULTILINE)[0]


def command(page: str, title: str) -> str:
    """The command of a tab, without its comment."""
    return re.sub(r"\s+#.*", "", tab(page, title, "sh")).strip()


def own_script() -> str:
    """The newcomer's script with the landing page's lines; of the two calls, the one for scripts that loop over the time steps."""
    lines = [line for line in tab("index.md", "snnTorch", "python").splitlines() if "convex_init_(net, train_loader)" not in line]
    lines = [re.sub(r"^# or, .*?: (?=report = )", "", line) for line in lines]
    return OWN.read_text(encoding="utf-8").replace(MARK, "\n".join(lines) + "\n")


class Environment:
    """A new environment in a folder; steps are typed in it one after the other.

    Args:
        folder: an empty folder.
        wheels: folder with the package's wheel.
    """

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.folder = folder
        links = f"{wheels} {os.environ.get('PIP_FIND_LINKS', '')}".strip()
        path = f"{folder / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self.variables = {**os.environ, "PATH": path, "PIP_FIND_LINKS": links}
        self.variables.pop("PYTHONPATH", None)
        self.steps: list[dict[str, Any]] = []
        self.type(f"{sys.executable} -m venv venv", shown="python -m venv venv")

    def type(self, typed: str, cwd: Path | None = None, shown: str | None = None) -> None:
        """Run a command, and keep its seconds and the lines that matter."""
        began = time.perf_counter()
        done = subprocess.run(
            typed, shell=True, cwd=cwd or self.folder, env=self.variables, check=False, capture_output=True, text=True
        )
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{typed}\n{done.stdout}\n{done.stderr}")
        printed = [line.rstrip() for line in done.stdout.splitlines() if KEPT.match(line)]
        self.steps.append({"command": shown or typed, "seconds": seconds, "printed": printed})


def get_started(folder: Path, wheels: Path) -> list[dict[str, Any]]:
    """The released version, and every script of Get started."""
    environment = Environment(folder, wheels)
    environment.type(command("quickstart.md", "Released version"))
    for script in re.findall(r"\((quickstart/\w+\.py)\)", (DOCS / "quickstart.md").read_text(encoding="utf-8")):
        environment.type(f"python {DOCS / script}", shown=f"python {Path(script).name}")
    return environment.steps


def own_net(folder: Path, wheels: Path, root: str) -> list[dict[str, Any]]:
    """The checkout, and a net that the pages do not know."""
    (folder / "script.py").write_text(own_script(), encoding="utf-8")
    environment = Environment(folder, wheels)
    environment.type("pip install torchvision")  # what the script needs anyway
    environment.type(command("index.md", "Checkout"), cwd=ROOT)
    environment.type(f"python script.py {Path(root).resolve()}", shown="python script.py")
    return environment.steps


def main() -> None:
    """Both, each in an environment of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="data", help="folder of torchvision's MNIST")
    root = parser.parse_args().root
    with tempfile.TemporaryDirectory() as name:
        wheels, first, second = (Path(name) / part for part in ("wheels", "first", "second"))
        for folder in (wheels, first, second):
            folder.mkdir()
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        content = {
            "machine": machine("snntorch", "norse", "lightning"),
            "lines": own_script().split("test accuracy before")[1].split("\n", 1)[1].split("print(f")[0].splitlines(),
            "own net": own_net(second, wheels, root),
            "get started": get_started(first, wheels),
        }
    (RESULTS / "newcomer.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
