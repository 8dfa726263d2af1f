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
    resumed = in_processes(2, tmp_path, "resumed", judging)
    assert resumed["solves"] == 1  # the start was before
    assert_equal(resumed["end"], two["end"])


@pytest.mark.parametrize(
    ("kind", "label", "devices"), [("", "exact", 2), ("", "exact", 4), ("maximum", "majorised", 2), ("spiking", "surrogate", 2)]
)
def test_processes_share_the_samples_of_a_start_and_of_a_refit(tmp_path, kind, label, devices):
    """Training moves nothing in between; both solutions are those of one process with all samples."""
    one, more = (in_processes(count, tmp_path, "still", kind) for count in (1, devices))
    assert more["ranks"] == devices
    assert more["apart"] == 0.0
    assert more["solves"] == one["solves"] == 2
    assert more["rebuilt"]
    assert more["label"] == one["label"] == label
    assert more["begun"] == pytest.approx(one["begun"], abs=1e-6)
    primal, gap, samples, held = more["last"]
    assert (samples, held) == (400, 80)
    assert gap <= 1e-9
    assert primal == pytest.approx(one["last"][0], rel=1e-6)
    for when in ("start", "end"):
        found, expected = more[when], one[when]
        for name in ("net.fc1.weight", "net.fc1.bias"):
            assert torch.equal(found[name], expected[name])  # rank 0 chose them, on the same samples
        torch.testing.assert_close(found["net.fc2.weight"], expected["net.fc2.weight"], rtol=1e-6, atol=2e-6)
        biases = [run["net.fc2.bias"] - run["net.fc2.bias"].mean() for run in (found, expected)]
        torch.testing.assert_close(*biases, rtol=1e-6, atol=2e-6)  # softmax does not see a shift of all


def test_two_processes_decide_by_the_mean_of_their_metrics(tmp_path):
    two = in_processes(2, tmp_path, "measured")
    assert two["apart"] == 0.0
    # (-3 k + k) / 2 at the second call, of the trained weights, and the third, after the refit.
    assert two["metrics"] == {"trained_loss": -2.0, "judged_before": -2.0, "judged_after": -3.0, "loss": -3.0, "kept": 1.0}


def test_a_metric_that_fails_in_one_process_ends_the_run_in_both(tmp_path):
    with pytest.raises(AssertionError, match=r"no number|failed in another process"):
        in_processes(2, tmp_path, "failing")
