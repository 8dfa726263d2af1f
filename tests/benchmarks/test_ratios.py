"""The quick check: what grew beyond the tolerance is named."""

from benchmarks import ratios


def test_what_grew_is_named():
    text, grown = ratios.compare({"start": 2.0, "refit": 1.0}, {"start": 2.5, "refit": 1.1, "new": 3.0})
    assert grown == ["start"]
    assert "| start | 2 | 2.5 | GREW |" in text
    assert "| new | not stored | 3 |  |" in text
