"""Several processes that share the samples write what one process with all of them writes, bit for bit the same in all."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from snn_recon_plugin.stages.stream import share_split, split_samples

from .ranks_worker import CASES, COUNT, STEPS, TIMEOUT


def start(world, folder, how=""):
    command = [sys.executable, "-W", "ignore", "-m", "tests.stages.ranks_worker"]
    options = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "cwd": Path(__file__).parents[2], "stderr": subprocess.PIPE}
    return [subprocess.Popen([*command, str(rank), str(world), str(folder), how], text=True, **options) for rank in range(world)]


def found_in(world, folder):
    running = start(world, folder)
    try:
        said = [process.communicate(timeout=450)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * world, said
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return found_in(1, tmp_path_factory.mktemp("one"))[0]


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    return found_in(request.param, tmp_path_factory.mktemp("ranks"))


def without_seconds(report):
    trace = [{**point, "seconds": None} for point in report["program"]["trace"]]
    return {**report, "seconds": None, "program": {**report["program"], "trace": trace}}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CASES, *STEPS, "one line", "uneven", "trained", "finished"])
def test_all_ranks_have_the_same_bits_and_the_same_report(ranks, name):
    first, *others = (found[name] for found in ranks)
    for other in others:
        assert all(torch.equal(first["weights"][key], other["weights"][key]) for key in first["weights"])
        assert str(without_seconds(other["report"])) == str(without_seconds(first["report"]))  # by text, in which NaN is NaN


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_they_write_what_one_process_writes(ranks, one, name):
    (found, report), (expected, known) = ((run[name]["weights"], run[name]["report"]) for run in (ranks[0], one))
    refined = known["exactness"]["refined"]
    for key in ("fc1.weight", "fc1.bias"):  # chosen on the same samples by rank 0
        assert torch.equal(found[key], expected[key])
    # A maximum over time is refined by steps in single precision, which amplify rounding: to 0.2 or 0.6 % of a readout's norm.
    biases = (each["fc2.bias"] - each["fc2.bias"].mean() for each in (found, expected))  # softmax does not see a shift of all
    for own, whole in ((found["fc2.weight"], expected["fc2.weight"]), biases):
        assert float((own - whole).norm()) <= (1.5e-2 if refined else 1e-5) * float(whole.norm())
    for key in ("samples", "active_neurons", "loss", "outcome", "solver"):
        assert report["program"][key] == known["program"][key]
    assert report["after"]["samples"] == known["after"]["samples"]
    if name != "exact, fewer":  # the network is run on all of the last batch's samples in one process
        for part, key in product(("before", "after"), ("accuracy", "metrics")):
            assert report[part][key] == pytest.approx(known[part][key], abs=1e-6)
        for key in ("accuracy_written", "imbalance"):
            assert report[key] == pytest.approx(known[key], abs=1e-6)
        assert report["after"]["linear_accuracy"] == pytest.approx(known["after"]["linear_accuracy"], abs=1e-6)
        assert report["before"]["loss"] == pytest.approx(known["before"]["loss"], abs=1e-6)
    assert report["program"]["strength"] == pytest.approx(known["program"]["strength"], rel=1e-12)
    for part, key in (("after", "loss"), ("before", "compared"), ("solved", "compared")):
        assert report[part][key] == pytest.approx(known[part][key], abs=1e-3 if refined else 1e-6)
    assert report["kept_old"] is known["kept_old"]
    assert report["certificate"]["primal"] == pytest.approx(known["certificate"]["primal"], rel=1e-6)


@pytest.mark.slow
def test_the_one_line_counts_the_samples_of_all(ranks):
    for name, count in (("one line", COUNT), ("uneven", COUNT if len(ranks) == 4 else 585)):
        report = ranks[0][name]["report"]
        assert (report["program"]["samples"], report["after"]["samples"]) == (count, count // 5)
        assert report["layers"][0]["witnesses"] is not None  # rank 0 rebuilt the hidden layer, on samples of all ranks
        assert report["after"]["accuracy"] > report["before"]["accuracy"] + 0.3
        assert report["exactness"]["samples"] == count


@pytest.mark.slow
def test_validation_samples_of_all_ranks_judge(ranks):
    report = ranks[0]["finished"]["report"]
    assert (report["judged_on"], report["after"]["samples"], report["program"]["samples"]) == ("validation samples", 150, COUNT)
    rebuilt = ranks[0]["exact, validation"]["report"]
    assert (rebuilt["after"]["samples"], rebuilt["program"]["samples"]) == (150, COUNT)


@pytest.mark.slow
@pytest.mark.parametrize("readout", STEPS)
def test_ranks_whose_batches_differ_in_steps(ranks, readout):
    report = ranks[0][readout]["report"]
    assert (report["readout"]["kind"], report["program"]["samples"]) == (readout, 180)
    assert (report["num_steps"], report["least_steps"]) == (12, 6)
    assert report["accuracy_written"] > 0.6
    assert report["certificate"]["reached"]


@pytest.mark.slow
def test_processes_that_differ_are_refused_in_all(ranks):
    first, *others = (found["refused"] for found in ranks)
    for other in others:
        for name in ("seed", "net", "a class", "hinge"):  # the same error everywhere
            assert other[name][:2] == first[name][:2]
    assert all(kept for found in ranks for *_, kept in found["refused"].values())
    assert "option seed: 0 in process 0, 1 in process 1" in first["seed"][1]
    assert "checksum of the network's parameters" in first["net"][1]
    assert f"a single class, 0, in all {20 * len(ranks)} labels" in first["a class"][1]
    assert "kinks" in first["hinge"][1]
    assert first["no rows"][0] == "SolverError"
    assert "an error in process 1: Found: an empty loader" in first["no rows"][1]
    assert others[0]["no rows"][0] == "DataError"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_a_rank_that_leaves_in_a_start_ends_the_others_within_the_timeout(tmp_path, how):
    running = start(3, tmp_path, how)
    try:
        said = {rank: running[rank].communicate(timeout=TIMEOUT + 60)[1] for rank in (0, 2)}
        assert all(running[rank].returncode == 1 for rank in said)
        assert running[1].poll() == (3 if how == "dies" else None)
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert all("a process that does not answer" in text and "pass a longer timeout=" in text for text in said.values())


# -- one process ---------------------------------------------------------------------------------------------------------------
def shares_of(numbers, used, seed):
    """Return the part of each of the ranks that hold samples of these numbers, and the places of its samples."""
    everything = torch.cat(numbers).sort().values
    return [share_split(own, everything, 0.2, seed, used) for own in numbers]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_split_their_samples_as_one_process_would(world):
    """Some samples were left out, as ignored labels are, and some chose hidden rows."""
    everything = torch.arange(100)[torch.arange(100) % 7 != 3]
    used = everything[:40][split_samples(40, 0.2, 5).fitted]
    expected = split_samples(len(everything), 0.2, 5, torch.searchsorted(everything, used))
    numbers = [everything[everything % world == rank] for rank in range(world)]
    splits, places = zip(*shares_of(numbers, used, 5), strict=True)
    held = torch.cat([own[split.heldout] for own, split in zip(numbers, splits, strict=True)]).sort().values
    fitted = torch.cat([own[split.fitted] for own, split in zip(numbers, splits, strict=True)])
    assert torch.equal(held, everything[expected.heldout])
    assert torch.equal(fitted.sort().values, everything[expected.fitted])
    assert not bool(torch.isin(held, used).any())
    assert torch.equal(torch.cat(places).sort().values, torch.arange(len(everything)))
    assert torch.equal(everything[expected.fitted][torch.cat([split.places for split in splits])], fitted)


def test_samples_that_chose_rows_but_were_not_captured_do_not_count():
    ((split, _),) = shares_of([torch.arange(0, 40, 2)], torch.tensor([0, 1, 2, 3]), 0)
    assert not bool(torch.isin(split.heldout, torch.tensor([0, 1])).any())
    assert len(split.heldout) == 4
