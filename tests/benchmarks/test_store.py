"""Results of a study: lines that survive an interrupt, and lines that are no cells."""

import pytest

from benchmarks.store import Store


def test_a_study_is_read_again_as_it_was_written_and_the_last_line_of_a_cell_counts(tmp_path):
    store = Store(tmp_path / "study.jsonl")
    assert store.cells() == []
    assert store.add("b-1", {"test": 0.5, "seeds": (0, 1)}) == {"test": 0.5, "seeds": [0, 1]}
    for test in (0.5, 0.75):
        store.add("a-1", {"test": test})
    again = Store(store.path)
    assert again.cells() == [{"test": 0.75}, {"test": 0.5, "seeds": [0, 1]}]
    assert again.cells("b-*") == [again["b-1"]]


@pytest.mark.parametrize("line", ['{"name": "a", "te', '{"test": 0.5}', "[1, 2]", "3"])
def test_a_line_that_is_no_cell_is_named(tmp_path, line):
    path = tmp_path / "study.jsonl"
    path.write_text('{"name": "a"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 2 of .*study\.jsonl: found .*, needed .*: delete it"):
        Store(path)


def test_a_cell_of_other_fields_is_named(tmp_path):
    path = tmp_path / "study.jsonl"
    path.write_text('{"name": "b", "test": 1.0, "machine": {}, "version": 1}\n{"name": "a", "tset": 0.5}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 2 of .*cell 'a' has the unknown fields tset: delete it, or add them"):
        Store(path, fields=("test",))


def test_an_unknown_field_is_refused_before_it_is_written(tmp_path):
    store = Store(tmp_path / "study.jsonl", fields=("test",))
    with pytest.raises(ValueError, match="unknown fields seconds"):
        store.add("a", {"seconds": 1.0})
    assert not store.path.exists()
