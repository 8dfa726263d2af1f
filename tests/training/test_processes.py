"""Runs of several processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .runs import assert_equal

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]
ROOT = Path(__file__).parents[2]


def in_processes(devices, folder, *words):
    """Return the results of a run in so many processes, with gloo, in an interpreter of its own; see the script."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.training.two_processes", str(devices), str(folder), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, timeout=240, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / f"{devices}.pt", weights_only=True)


@pytest.mark.parametrize("judging", ["", "validated"])
def test_two_processes_train_on_and_resume_with_the_same_bits(tmp_path, judging):
    one, two = (in_processes(devices, tmp_path, judging) for devices in (1, 2))
    assert two["ranks"] == 2
    assert two["apart"] == 0.0  # no bit differs between the ranks, after two epochs with refits
    assert two["solves"] == one["solves"] == 2
    assert two["begun"] == pytest.approx(one["begun"], abs=1e-6)  # of all samples, not of a share
    assert two["samples"] == [400, 80]  # of the refit, which takes no validation samples in several processes
    resumed = in_processes(2, tmp_path, "resumed", judging)
    assert resumed["solves"] == 1  # the start was before
    assert_equal(resumed["end"], two["end"])


def test_two_processes_decide_by_the_mean_of_their_metrics(tmp_path):
    two = in_processes(2, tmp_path, "measured")
    assert two["apart"] == 0.0
    # (-3 k + k) / 2 at the second call, of the trained weights, the third, of the average, and the fourth, after the refit.
    assert two["metrics"] == {"trained_loss": -2.0, "judged_before": -3.0, "judged_after": -4.0, "loss": -4.0, "kept": 1.0}


def test_a_metric_that_fails_in_one_process_ends_the_run_in_both(tmp_path):
    with pytest.raises(AssertionError, match=r"no number|failed in another process"):
        in_processes(2, tmp_path, "failing")
