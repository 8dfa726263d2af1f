"""The README's figure and table."""

import pytest

from benchmarks import readme


def points(*tests):
    return {"points": [{"seconds": 10.0 * number, "test": test} for number, test in enumerate(tests)]}


MACHINE = {"processor": "x86_64", "cores": 2, "threads": 1, "python": "3.11", "versions": {"torch": "2"}, "date": "2026-11-28"}
CASES = {
    "training alone": points(0.1, *(0.8 + 0.01 * number for number in range(8))),
    "the one line, then training": points(0.1, 0.9, *(0.91 + 0.01 * number for number in range(8))),
    "the callback": points(0.1, *(0.91 + 0.01 * number for number in range(8))),
}


def test_the_table_has_a_row_before_after_the_line_and_after_each_epoch():
    lines = readme.table({"cases": CASES, "machine": MACHINE, "seed": 0}).splitlines()
    assert lines[2] == "| before | 10.0 % | 10.0 % | 10.0 % |"
    assert lines[3] == "| after the line |  | 90.0 % (10 s) |  |"
    assert lines[4] == "| after epoch 1 | 83.0 % (40 s) | 94.0 % (50 s) | 94.0 % (40 s) |"
    assert lines[5] == "| after epoch 2 | 87.0 % (80 s) | 98.0 % (90 s) | 98.0 % (80 s) |"


def test_the_figure_labels_each_line(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    figure = readme.draw(CASES)
    assert {text.get_text() for text in figure.axes[0].texts} == set(readme.LINES)
    assert (tmp_path / "docs" / "readme.png").stat().st_size > 10_000


def test_a_test_takes_no_time_and_reads_spike_counts():
    net = readme.Net()
    images, labels = readme.torch.rand(20, 784), readme.torch.zeros(20, dtype=readme.torch.long)
    clock = readme.Clock(images, labels)
    clock.test(net)
    clock.test(net)
    expected = (net(images)[0].sum(0).argmax(1) == labels).float().mean()
    assert [point["test"] for point in clock.points] == pytest.approx([float(expected)] * 2)
    assert clock.points[1]["seconds"] - clock.points[0]["seconds"] < clock.testing / 2
