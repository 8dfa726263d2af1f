"""The study of scale: its data, clocks, cells, peers, tables, plan and figure, at tiny sizes."""

import json
import math
import subprocess
import sys

import pytest
import torch

from benchmarks.scale import __main__ as study
from benchmarks.scale import cell as process
from benchmarks.scale import render, tables
from benchmarks.scale.data import planted_spikes
from benchmarks.scale.floor import floor_seconds, run_floor
from benchmarks.scale.memory import ACTIONS, run_memory
from benchmarks.scale.meter import Meter
from benchmarks.scale.nets import NETS
from benchmarks.scale.plan import COLUMNS, GPU, OUTPUTS, ROWS, make_plans
from benchmarks.scale.solver import TOL, _loss_and_slope, measure
from benchmarks.store import Store
from snn_recon_plugin.convex import make_loss

from ..training.runs import MARKS

pytestmark = MARKS

SMALL = {"n": 400, "P": 30, "C": 4, "device": "cpu", "limit": 20.0, "seed": 0, "threads": 1}


def solved(peer, loss, **changes):
    """Records of a small solve."""
    found = []
    cell = {**SMALL, "peer": peer, "loss": loss, **changes}
    measure(cell, *planted_spikes(cell["n"], cell["P"], cell["C"], 0), found.append)
    return found


# ---- data and clocks


def test_planted_spikes_are_the_first_rows_of_more():
    spikes, labels = planted_spikes(500, 40, 5, 3)
    assert spikes.dtype is torch.uint8
    assert set(spikes.unique().tolist()) == {0, 1}
    assert 0.05 < float(spikes.float().mean()) < 0.4
    assert int(torch.bincount(labels, minlength=5).min()) > 20
    assert not torch.equal(spikes, planted_spikes(500, 40, 5, 4)[0])


def test_a_meter_counts_memory_and_leaves_out_pauses():
    with Meter() as meter:
        kept = torch.ones(2**22)  # 16 MiB
        meter.pause()
        torch.ones(2**24)
        meter.resume()
    assert 15 * 2**20 < meter.added < 40 * 2**20
    assert meter.seconds > 0
    del kept


def test_what_was_freed_before_does_not_hide_memory():
    torch.ones(2**23)
    with Meter() as meter:
        torch.ones(2**22)
    assert meter.added > 15 * 2**20


# ---- solves


@pytest.mark.parametrize(
    ("loss", "peer"), [("squared_hinge", "linear_svc"), pytest.param("cross_entropy", "logistic", marks=pytest.mark.slow)]
)
def test_all_peers_reach_the_gap_of_one_program(loss, peer):
    for name in ("ours", "lbfgs", peer):
        record = solved(name, loss)[-1]
        assert record["outcome"] == "reached", name
        assert record["relative_gap"] <= TOL * 1.001
        assert record["seconds"] > 0


@pytest.mark.parametrize("loss", ["squared_hinge", "cross_entropy"])
def test_the_objective_of_l_bfgs_is_the_package_s(loss):
    scores, labels = torch.randn(50, 4, dtype=torch.float64, requires_grad=True), torch.arange(50) % 4
    own = make_loss(loss)
    expected = own.value(scores, own.prepare(labels, 4)).mean()
    (slope,) = torch.autograd.grad(expected, scores)
    value, found = _loss_and_slope(loss, scores.detach().clone(), labels)
    assert float(value) == pytest.approx(float(expected.detach()))
    assert torch.allclose(found, slope)


def test_a_solve_out_of_time_is_not_reached():
    records = solved("lbfgs", "cross_entropy", limit=0.0)
    assert len(records) == 1
    assert records[0]["outcome"] == "not reached"


# ---- memory of nets


def run_actions(net, actions):
    """Records of some actions of a small net."""
    found = []
    for action in actions:
        cell = {"net": net, "action": action, "T": 6, "n": 200, "batch": 64, "width": NETS[net].small, "device": "cpu", "seed": 0}
        run_memory(cell, found.append)
    return found


@pytest.mark.slow
def test_a_training_step_keeps_every_step():
    cell = {"net": "dense", "action": "step", "n": 64, "batch": 64, "width": 200, "device": "cpu", "seed": 0}
    found = []
    for steps in (20, 80):
        run_memory({**cell, "T": steps}, found.append)
    assert found[1]["added_bytes"] > 2 * found[0]["added_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
def test_all_actions_of_a_net(net):
    found = run_actions(net, ACTIONS)
    assert all(record["seconds"] > 0 for record in found)
    assert found[1]["heldout_accuracy"] > 0.2
    assert found[1]["samples"] == 200


# ---- cells


def test_names_of_cells_are_unique():
    for part in study.PARTS:
        cells = list(study.list_cells(part))
        assert len({study.name_of(cell) for cell in cells}) == len(cells)
    assert any(cell.get("n") == 1_000_000 for cell in study.list_cells("largest"))
    assert all(cell["threads"] == 2 for cell in study.list_cells("largest"))


def test_a_finished_cell_is_not_run_again(tmp_path, monkeypatch):
    run = []
    monkeypatch.setattr(study, "run_cell", lambda cell: run.append(study.name_of(cell)) or {**cell, "outcome": "done"})
    for _ in range(2):
        study.main(["--results", str(tmp_path / "cells.jsonl"), "--only", "floor", "dense-step-T25-"])
    assert run == ["floor-1t", "memory-dense-step-T25-n128-1t"]
    study.main(["--results", str(tmp_path / "cells.jsonl"), "--only", "floor", "--again"])
    assert len(run) == 3


@pytest.mark.slow
def test_a_cell_runs_in_a_process_of_its_own():
    cell = next(cell for cell in study.list_cells("usual", shrink=100) if cell["kind"] == "floor")
    record = study.run_cell(cell)
    assert record["outcome"] == "done"
    assert record["bytes_per_second"] > 1e6
    assert record["machine"]["threads"] == 1


def test_the_end_of_a_process_is_recorded(monkeypatch):
    def late(*args, **options):
        raise subprocess.TimeoutExpired("cell", 1, output=b'{"outcome": "not reached", "relative_gap": 0.5}\n')

    cell = next(cell for cell in study.list_cells("usual") if cell["kind"] == "solver")
    monkeypatch.setattr(study.subprocess, "run", late)
    record = study.run_cell(cell)
    assert (record["outcome"], record["relative_gap"]) == ("killed at the time limit", 0.5)
    for status, told, outcome in ((1, "MemoryError: no", "failed: MemoryError: no"), (-9, "", "killed, mostly for lack of memory")):
        done = subprocess.CompletedProcess("cell", status, "", told)
        monkeypatch.setattr(study.subprocess, "run", lambda *args, done=done, **options: done)
        assert study.run_cell(cell)["outcome"] == outcome


def test_the_process_prints_json(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cell", json.dumps({"kind": "floor", "device": "cpu", "shrink": 100})])
    process.main()
    assert set(json.loads(capsys.readouterr().out)["flops"]) == {"float32", "float64", "bfloat16"}


# ---- floor, exponents and plan

RATES = {"bytes_per_second": 1e9, "flops": {"float32": 1e10}}


def record(n=1000, P=100, C=10, seconds=1.0, peer="ours", **changes):
    about = {"processor": "x", "cores": 2, "threads": 1, "python": "3", "versions": {}, "date": "2026-01-01", "accelerator": None}
    solve = {
        "kind": "solver",
        "loss": "squared_hinge",
        "peer": peer,
        "outcome": "reached",
        "threads": 1,
        "device": "cpu",
        "seed": 0,
    }
    sizes = {
        "n": n,
        "P": P,
        "C": C,
        "seconds": seconds,
        "cpu_seconds": seconds,
        "products": 50.0,
        "added_bytes": 160 * n * C,
        "features_bytes": n * P,
    }
    return {**solve, **sizes, "machine": about, **changes}


def test_the_floor_is_the_slower_of_memory_and_arithmetic():
    assert floor_seconds(record(C=1), RATES) == pytest.approx(50 * 1e5 / 1e9)
    assert floor_seconds(record(C=100), RATES) == pytest.approx(50 * 2 * 1e7 / 1e10)


def test_rates_of_this_machine():
    found = []
    run_floor({"device": "cpu", "shrink": 64}, found.append)
    assert all(rate > 0 for rate in found[0]["flops"].values())


def test_exponents_of_power_laws():
    cells = [record(n=n, seconds=n**0.8) for n in (1000, 10_000, 100_000)]
    cells += [record(P=P, seconds=1000**0.8 * (P / 100) ** 1.5) for P in (200, 400)]
    found = tables.exponents(cells, "squared_hinge", "ours", lambda cell: cell["seconds"])
    assert found == pytest.approx({"n": 0.8, "P": 1.5})
    assert "0.80 | 1.50" in tables.growth_text(cells)


def test_the_plan_scales_the_measured_solve():
    cpu, one, eight = make_plans(record(seconds=2.0), RATES)
    assert cpu.seconds / 2.0 == pytest.approx(ROWS * COLUMNS * OUTPUTS / (1000 * 100 * 10))
    assert one.floor == pytest.approx(50 * 2 * ROWS * COLUMNS * OUTPUTS / GPU["tf32"])
    assert eight.floor == pytest.approx(one.floor / 8)
    assert eight.exchanged > 0
    assert one.scores == pytest.approx(20 * 8 * ROWS * OUTPUTS)
    assert one.blocks == math.ceil(one.scores / (GPU["memory"] - one.spikes))


# ---- pages


def memory_record(net, action, T, n, size):
    return {**record(), "kind": "memory", "net": net, "action": action, "T": T, "n": n, "added_bytes": size * 2**20}


def test_tables_mark_what_is_below_the_training_step():
    cells = [memory_record("dense", "step", 100, 128, 50), memory_record("dense", "start", 100, 2000, 60)]
    cells.append(memory_record("dense", "refit", 100, 2000, 20))
    assert tables.memory_table(cells, (100,), (2000,)).endswith("| 100 | 50 | 60 | **20** |")
    assert tables.memory_table([], (100,), (2000,)) == tables.NOT_RUN


def test_a_table_of_solves_names_what_was_not_reached():
    cells = [record(), record(peer="lbfgs", outcome="not reached"), {**record(), "kind": "floor", **RATES}]
    text = tables.solver_table(cells, "squared_hinge")
    assert "| 1,000 | 100 | 10 | 1 | not reached |" in text
    assert tables.solver_table(cells, "cross_entropy") == tables.NOT_RUN


def test_peers_are_compared_on_the_programs_that_both_reached():
    cells = [record(n=n, seconds=2.0) for n in (100, 200)] + [record(n=100, seconds=1.0, peer="lbfgs")]
    cells.append(record(n=200, seconds=1.0, peer="lbfgs", outcome="not reached"))
    assert tables.lead_text(cells) == "- squared hinge: our solver takes 2 times as long as torch L-BFGS, over 1 programs."


def test_ranks_are_compared(tmp_path):
    path = tmp_path / "ranks.json"
    assert tables.rank_table(path) == tables.NOT_RUN
    common = {"equal_bits": True, "messages": 1300, "messages_seconds": 1.0}
    common["stages"] = {"reconstruct": 3.0, "calibrate": 1.0, "solve": 2.0}
    cases = {f"exact, start, {ranks}": {"ranks": ranks, "seconds": 12.0 / ranks, **common} for ranks in (1, 2)}
    path.write_text(json.dumps({"cases": cases}), encoding="utf-8")
    assert tables.rank_table(path).endswith("| exact, start | 12.0 | 6.0 | 4.0 | 1,300 (1.0 s) | 0.50 | yes |")


def test_both_pages_are_written(tmp_path, monkeypatch):
    store = Store(tmp_path / "cells.jsonl")
    cells = [record(), {**record(), "kind": "floor", **RATES}, memory_record("dense", "step", 100, 128, 50)]
    for number, cell in enumerate(cells):
        store.add(str(number), cell)
    for name in ("DOC", "FULL"):
        page = tmp_path / name
        page.write_text(getattr(render, name).read_text(encoding="utf-8"), encoding="utf-8")
        monkeypatch.setattr(render, name, page)
    monkeypatch.setattr(render, "FIGURE", tmp_path / "scale.png")
    render.main(store.path)
    page = (tmp_path / "DOC").read_text(encoding="utf-8")
    assert "No figure on this page is from a GPU" in page
    assert "| 8 H100 |" in page
    assert (tmp_path / "scale.png").stat().st_size > 5000
