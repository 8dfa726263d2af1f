"""Seconds and peak memory of a piece of work, and the exponents that are fitted to them."""

import torch

from benchmarks.process import Meter, in_process
from benchmarks.store import Store
from benchmarks.studies.scale import growth_table


def test_a_meter_counts_memory_and_leaves_out_pauses():
    torch.ones(2**23)  # freed memory must not hide new memory
    with Meter() as meter:
        kept = torch.ones(2**22)  # 16 MiB
        meter.pause()
        torch.ones(2**24)
        meter.resume()
    assert 15 * 2**20 < meter.added < 40 * 2**20
    assert meter.seconds > 0
    del kept


def test_exponents_of_power_laws(tmp_path):
    store = Store(tmp_path / "cells.jsonl")
    common = {"kind": "solver", "outcome": "reached", "threads": 1, "device": "cpu"}
    for loss in ("squared_hinge", "cross_entropy"):
        for peer in ("ours", "lbfgs"):
            for n, P in ((1000, 100), (10_000, 100), (100_000, 100), (1000, 200), (1000, 400)):
                about = {"loss": loss, "peer": peer, "n": n, "P": P, "C": 10, "cpu_seconds": n**0.8 * (P / 100) ** 1.5}
                store.add(f"{loss} {peer} {n} {P}", {**common, **about})
    assert growth_table(store).splitlines()[2] == "| squared hinge | ours | 0.80 | 1.50 |  |"


def test_a_process_reports_until_it_fails():
    found, reason = in_process(_work, 3, threads=1, limit=100.0)
    assert found == [{"number": number} for number in range(3)]
    assert reason == "failed: ValueError: no more"


def _work(count, report):
    for number in range(count):
        report({"number": number})
    raise ValueError("no more")
