"""The page "The solver by itself": its code runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "solver.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
SPREAD = [block for block in BLOCKS if block.startswith("# torchrun")]


def test_its_blocks_in_order(capsys):
    code = "\n".join(block for block in BLOCKS if block not in SPREAD)
    exec(compile(code, "solver", "exec"), {"__name__": "solver"})
    first, second = capsys.readouterr().out.splitlines()
    assert ": reached)" in first
    assert float(first.split()[-1]) > 0.95
    assert float(second.split()[-1]) > 0.85


@pytest.mark.slow
def test_rows_spread_over_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SPREAD[0], encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    subprocess.run(command, check=True, timeout=300, capture_output=True, cwd=PAGE.parents[1])
