"""Runs of several processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .runs import assert_equal


def in_processes(devices, folder, *words):
    """What became of a run in so many processes, with gloo, in an interpreter of its own; see the script."""
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, "-W", "ignore", str(script), str(devices), str(folder), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, env=environment, timeout=240, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / f"{devices}.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_write_what_one_does(tmp_path):
    one, two = (in_processes(devices, tmp_path) for devices in (1, 2))
    assert two["ranks"] == 2
    assert two["apart"] == 0.0  # no bit differs between the ranks, after two epochs with refits
    assert two["solves"] == one["solves"] == 3
    for name in ("net.fc1.weight", "net.fc2.weight", "net.fc2.bias"):
        torch.testing.assert_close(two["start"][name], one["start"][name], rtol=0, atol=1e-6)
    resumed = in_processes(2, tmp_path, "resumed")
    assert resumed["solves"] == 1  # the start and a refit were before
    assert_equal(resumed["end"], two["end"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_solve_one_program_together(tmp_path):
    """Each with half of the samples; the solution is that of one process with all."""
    one, two = (in_processes(devices, tmp_path, "still") for devices in (1, 2))
    assert two["apart"] == 0.0
    assert two["solves"] == one["solves"] == 1
    primal, gap, before, samples, held = two["last"]
    assert (samples, held) == (400, 80)
    assert gap <= 1e-9
    assert primal == pytest.approx(one["last"][0], rel=1e-6)
    assert before == pytest.approx(one["last"][2], rel=0.3)  # of other held-out samples
    assert not torch.equal(two["end"]["net.fc2.weight"], two["start"]["net.fc2.weight"])
    torch.testing.assert_close(two["end"]["net.fc2.weight"], one["end"]["net.fc2.weight"], rtol=1e-4, atol=1e-6)
    found, expected = (run["end"]["net.fc2.bias"] - run["end"]["net.fc2.bias"].mean() for run in (two, one))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # softmax does not see a shift of all


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_decide_by_the_mean_of_what_their_judges_say(tmp_path):
    two = in_processes(2, tmp_path, "judged")
    assert two["apart"] == 0.0
    assert two["judged"] == [-6.0, -7.0]  # (-3 k + k) / 2 at the sixth call, of the average, and the seventh, after the refit
    assert two["kept"] == 1.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_judge_that_fails_in_one_process_ends_the_run_in_both(tmp_path):
    with pytest.raises(AssertionError, match=r"no judgement|failed in another process"):
        in_processes(2, tmp_path, "failing")
