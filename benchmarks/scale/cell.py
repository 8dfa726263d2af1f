"""A process of the scale study: ``python -m scale.cell JSON`` measures one cell and prints each result so far as json."""

from __future__ import annotations

import json
import sys
from typing import Any

from .floor import run_floor
from .memory import run_memory
from .solver import run_solver

KINDS = {"memory": run_memory, "solver": run_solver, "floor": run_floor}


def main() -> None:
    """Run the cell of the command line."""
    cell: dict[str, Any] = json.loads(sys.argv[1])
    KINDS[cell["kind"]](cell, lambda found: print(json.dumps(found), flush=True))


if __name__ == "__main__":
    main()
