"""Seconds and peak memory of a piece of work, and what a process reports."""

import torch

from benchmarks.process import Meter, in_process


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


def test_a_process_reports_until_it_fails():
    found, reason = in_process(_work, 3, threads=1, limit=100.0)
    assert found == [{"number": number} for number in range(3)]
    assert reason == "failed: ValueError: no more"


def _work(count, report):
    for number in range(count):
        report({"number": number})
    raise ValueError("no more")
