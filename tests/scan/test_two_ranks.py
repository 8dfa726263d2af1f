"""Faster steps under DistributedDataParallel: both ranks train as without, and hold the same weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def trained(store, how):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.scan.two_ranks", str(store)]
    ranks = [
        subprocess.Popen([*command, str(rank), how], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    found = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    return [float(text) for text in found]


@pytest.mark.slow
def test_two_ranks_train_as_without(tmp_path):
    plain, fast = trained(tmp_path / "plain", "plain"), trained(tmp_path / "fast", "fast")
    assert plain[0] == plain[1]
    assert fast[0] == fast[1]
    assert fast[0] == pytest.approx(plain[0], rel=1e-6)
