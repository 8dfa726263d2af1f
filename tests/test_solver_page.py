"""The code of the pages "The solver alone" and "Large data and several processes" runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
GUIDE, API, OTHER = ((DOCS / page).read_text(encoding="utf-8") for page in ("solver.md", "api/convex.md", "scale.md"))
BLOCKS, OTHERS = (re.findall(r"```python\n(.*?)```", page, re.DOTALL) for page in (GUIDE + API, OTHER))
SPREAD = [block for block in (*BLOCKS, *OTHERS) if block.startswith("# torchrun")]


def test_its_blocks_in_order(capsys):
    code = "\n".join(block for block in BLOCKS if block not in SPREAD)
    exec(compile(code, "solver", "exec"), {"__name__": "solver"})
    first, second = capsys.readouterr().out.splitlines()
    assert ": reached)" in first
    assert float(first.split()[-1]) > 0.95
    assert float(second.split()[-1]) > 0.85


def test_all_ways_to_use_several_processes_have_a_script():
    assert [script in BLOCKS for script in SPREAD] == [True, False, False]


@pytest.mark.slow
@pytest.mark.parametrize("script_text", SPREAD, ids=["solver", "lightning", "line"])
def test_rows_spread_over_processes(tmp_path, script_text):
    script = tmp_path / "script.py"
    script.write_text(script_text, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    subprocess.run(command, check=True, timeout=300, capture_output=True, cwd=DOCS.parent)
