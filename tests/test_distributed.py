"""Processes that share the rows find the solution of one process with all rows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from snn_recon_plugin.convex import Features, Problem, Shards, solve
from snn_recon_plugin.distributed import SINGLE_PROCESS
from snn_recon_plugin.errors import DataError, OptionError, ProcessError, ReconstructionError, SolverError

from . import distributed_worker
from .distributed_worker import CASES, PARTS, everything, solved


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, distributed_worker.__file__]
    running = [
        subprocess.Popen([*command, str(rank), str(folder)], env=environment, cwd=Path.cwd(), stderr=subprocess.PIPE, text=True)
        for rank in range(len(PARTS))
    ]
    try:
        said = [process.communicate(timeout=240)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * len(PARTS), said
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(len(PARTS))]


@pytest.fixture(scope="module")
def alone():
    return everything(Features, slice(0, 90))


@pytest.mark.slow
def test_all_processes_have_the_same_bits(found):
    (first, *_), *others = found
    for other, *_ in others:
        for case in CASES:
            assert torch.equal(first[case][0], other[case][0])
            assert torch.equal(first[case][1], other[case][1])
            assert first[case][2] == other[case][2]
        assert first["path"] == other["path"]
        assert torch.equal(first["weighted"], other["weighted"])


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "penalty", "spikes"), CASES)
def test_they_find_the_solution_of_one_process(found, alone, loss, penalty, spikes):
    weight, bias, certificate, outcome = found[0][0][loss, penalty, spikes]
    expected, expected_bias, other, reached = alone[loss, penalty, spikes]
    assert outcome == reached == "CONVERGED"
    assert certificate.primal == pytest.approx(other.primal, rel=1e-8)
    assert certificate.gap >= -1e-12
    torch.testing.assert_close(weight, expected, rtol=1e-3, atol=1e-5 * max(1.0, float(expected.abs().max())))
    torch.testing.assert_close(bias, expected_bias, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_path_uses_the_held_out_rows_of_all(found, alone):
    for now, expected in zip(found[1][0]["path"], alone["path"], strict=True):
        assert now == pytest.approx(expected, rel=1e-5)
    assert found[1][0]["best"] == alone["best"]
    torch.testing.assert_close(found[2][0]["weighted"], alone["weighted"], rtol=1e-5, atol=1e-7)
    assert found[2][0]["margins"] == pytest.approx(alone["margins"], rel=1e-6)
    assert found[2][0]["accuracy"] == pytest.approx(alone["accuracy"], abs=1e-12)


@pytest.mark.slow
def test_sums_and_maxima_of_all_processes_and_what_rank_0_collects(found):
    size = len(PARTS)
    for *_, exchanged in found:
        for name, count in (("short", 5), ("long", 2**18)):
            total, largest = exchanged[name]
            assert torch.equal(total, torch.arange(float(count)) * sum(range(1, size + 1)))
            assert torch.equal(largest, torch.arange(float(count)) * size)
    assert [exchanged["collected"] for *_, exchanged in found] == [[*range(size)], *[[]] * (size - 1)]


@pytest.mark.slow
def test_an_error_of_one_process_is_raised_in_all(found):
    raised = [errors for _, errors, _ in found]

    def kinds(name):
        return [errors[name][0] for errors in raised]

    assert kinds("nan") == ["SolverError", "DataError", "SolverError", "SolverError"]
    assert all("NaN" in errors["nan"][1] for errors in raised)
    assert "process 1" in raised[0]["nan"][1]
    assert kinds("labels") == ["DataError", "SolverError", "SolverError", "SolverError"]
    assert [set(kinds(name)) for name in ("width", "bias")] == [{"DataError"}] * 2
    assert [set(kinds(name)) for name in ("kinks", "solver")] == [{"OptionError"}] * 2
    assert {errors["alike"] for errors in raised} == {raised[0]["alike"]}
    assert "ranks: 0 in process 0, 1 in process 1" in raised[0]["alike"][1]
    assert {errors["time"] for errors in raised} == {"TIME_LIMIT"}  # rank 0's clock counts


@pytest.fixture
def group_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(("loss", "penalty", "spikes"), CASES[:3])
def test_a_group_of_one_process_finds_the_same_bits(group_of_one, loss, penalty, spikes):
    def shared(matrix, column):
        return Features(matrix, column, shards=Shards())

    one, other = (solved(made, slice(0, 90), loss, penalty, spikes) for made in (shared, Features))
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)
    assert one.certificate == other.certificate


def test_one_process_passes_values_on(group_of_one):
    value = torch.randn(3)
    for shards in (Shards(), SINGLE_PROCESS):
        for result in (shards.sum(value), shards.max(value), shards.broadcast(value)):
            assert torch.equal(result, value)
        assert all(map(torch.equal, shards.sum_pair(value[None], value[:1]), (value[None], value[:1])))
        assert torch.equal(shards.sum(value, once=torch.ones(3, dtype=torch.float64)), value + 1)
        assert shards.broadcast_number(2.0) == 2.0
        shards.check_equal("anything", 1)
        shards.check_device(value)
        with pytest.raises(ZeroDivisionError), shards.share_errors():
            raise ZeroDivisionError


@pytest.mark.parametrize(("own", "other", "raised"), [
    (None, None, None),
    (DataError("a", "b", "c"), None, DataError),
    (ValueError("own"), DataError("a", "b", "c"), ValueError),
    (None, DataError("a", "b", "c"), SolverError),
    (None, ValueError("its own"), ProcessError),
    (DataError("a", "b", "c"), ValueError("its own"), ProcessError),
])  # fmt: skip
def test_an_error_in_one_process_is_raised_in_all(own, other, raised):
    """A solve that was refused anywhere is refused everywhere; where a process is gone, none goes on."""

    class Two(Shards):
        def __init__(self):
            pass

        def gather(self, value):
            return [value, None if other is None else (isinstance(other, ReconstructionError), str(other))]

    def work():
        with Two().share_errors(ends=True):
            if own is not None:
                raise own

    if raised is None:
        work()
    else:
        with pytest.raises(raised) as caught:
            work()
        assert type(caught.value) is raised


@pytest.mark.parametrize("solver", ["clarabel", "scs"])
def test_solvers_of_one_process_refuse_shared_rows(group_of_one, solver):
    problem = Problem(Features(torch.eye(3), shards=Shards()), torch.tensor([0, 1, 2]), loss="squared")
    with pytest.raises(OptionError, match="rows spread over processes") as caught:
        solve(problem, solver=solver)
    assert "newton" in caught.value.fix


def test_what_shared_rows_do_not_allow_is_refused(group_of_one, monkeypatch):
    with pytest.raises(OptionError, match="which has kinks"):
        Problem(Features(torch.eye(3), shards=Shards()), torch.tensor([0, 1, 2]), loss="hinge")
    monkeypatch.setattr(dist, "get_backend", lambda group: "nccl")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(DataError, match="features on cpu"):
        Shards().check_device(torch.zeros(2, 2))


def test_a_process_without_a_group_has_no_rows_to_share():
    with pytest.raises(OptionError, match="init_process_group"):
        Shards()
