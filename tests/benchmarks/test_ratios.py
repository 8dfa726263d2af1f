"""The quick check: what grew beyond the tolerance is named."""

import pytest

from benchmarks import ratios


def test_what_grew_is_named():
    text, grown = ratios.compare({"start": 2.0, "refit": 1.0}, {"start": 2.5, "refit": 1.1, "new": 3.0})
    assert grown == ["start"]
    assert "| start | 2 | 2.5 | GREW |" in text
    assert "| new | not stored | 3 |  |" in text


@pytest.mark.slow
def test_every_ratio_is_measured():
    found = {**ratios.measure_net(), **ratios.measure_solver()}
    assert len(found) == 6
    assert all(value > 0 for value in found.values())


def test_ratios_that_are_not_stored_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(ratios, "PATH", tmp_path / "ratios.json")
    monkeypatch.setattr(ratios, "measure", lambda: {"start": 2.0})
    with pytest.raises(SystemExit, match="pass --store"):
        ratios.main([])
    assert ratios.main(["--store"]) == 0
    monkeypatch.setattr(ratios, "measure", lambda: {"start": 3.0})
    assert ratios.main([]) == 1
