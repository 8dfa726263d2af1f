"""What the native solver takes beyond the features, measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from snn_recon_plugin.convex import memory_bound

SAMPLES, FEATURES, CLASSES = 10_000, 1_000, 10
MEASURE = """
import json, pathlib, sys
import torch
from snn_recon_plugin.convex import Design, Problem, memory_bound, solve

dtype, penalty = getattr(torch, sys.argv[1]), sys.argv[2]
n, p, c = map(int, sys.argv[3:6])

def resident(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

def program(n, p):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(c, (n,), generator=generator)
    features = torch.empty(n, p, dtype=dtype)
    for start in range(0, n, 1000):
        raw = torch.rand(min(1000, n - start), p, generator=generator)
        features[start : start + 1000] = (raw < 0.3).to(dtype)
    return features, labels

def run(features, labels):
    problem = Problem(Design(features), labels, penalty=penalty, strength=3e-4, num_outputs=c)
    return solve(problem, tol=1e-3)

run(*program(300, 64))  # libraries load and threads start
features, labels = program(n, p)
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
found = run(features, labels)
print(json.dumps({
    "taken": resident("VmHWM") - before,
    "bound": memory_bound(n, p, c, features.dtype),
    "active": found.trace[-1].active,
    "reached": found.certificate.reached,
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from Linux's /proc")
@pytest.mark.parametrize(("dtype", "penalty"), [("bool", "group_l1"), ("uint8", "l1"), ("float32", "l1"), ("float32", "group_l1")])
def test_the_peak_stays_below_what_is_stated(dtype, penalty):
    arguments = [dtype, penalty, str(SAMPLES), str(FEATURES), str(CLASSES)]
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    assert seen["reached"]
    assert seen["active"] > FEATURES / 2  # or the copy of the active columns would be small anyway
    assert 0 < seen["taken"] <= seen["bound"]


def test_spikes_take_fewer_copies():
    """The bound of large programs is mostly that of the copies: of bool features one in bfloat16 and none in float32."""
    shape = (1_000_000, 1_000, 10)
    spikes, single, double = (memory_bound(*shape, dtype) for dtype in (torch.bool, torch.float32, torch.float64))
    assert spikes < 6e9 < single < 9e9 < double
    assert memory_bound(60_000, 4_096, 10, torch.float32) + 60_000 * 4_096 * 4 < 6 * 2**30
