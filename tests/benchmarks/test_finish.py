"""The study of the finish: a cell of a small net, and tables and figure of made results."""

import pytest
import torch

from benchmarks import tasks
from benchmarks.finish_cases import Case
from benchmarks.nets import dense
from benchmarks.store import Store
from benchmarks.studies import finish
from benchmarks.studies.finish import CHECKED, CYCLE, FINISH, FIXED, LINE, SHOWN, STUDY, TRAINED, WAYS
from benchmarks.study import Bench, Places
from snn_recon_plugin.demo import Data

NET = "tutorial 5"
MACHINE = {"processor": "made", "cores": 2, "threads": 1, "python": "3.11", "versions": {"torch": "2.0"}, "date": "2026-12-04"}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "finish.jsonl", STUDY.fields)


def made(trained, ways, seconds=10.0):
    """What is found at a moment: test and reported accuracy of each way, and what was written."""
    found = {
        way: {"test": test, "reported": test + 0.01, "seconds": 4.0, "written": written} for way, (test, written) in ways.items()
    }
    return {"seconds": seconds, TRAINED: {"test": trained}, **found}


def run_of(name, schedule, seed, moments):
    content = {"rate": 1e-3, "epoch_seconds": 5.0, "moments": moments, "machine": MACHINE}
    return f"{name} | {schedule} | seed {seed}", content


def test_a_cell_has_the_trained_net_and_every_way_at_every_moment(store, monkeypatch):
    labels = torch.arange(300) % 3
    inputs = 0.2 * torch.rand(300, 12, generator=torch.Generator().manual_seed(0))
    inputs[torch.arange(300), labels] = 1.0
    monkeypatch.setitem(tasks.TASKS, "rows of a bright pixel", lambda places: Data(inputs, labels, inputs[:90], labels[:90]))
    case = Case("rows of a bright pixel", lambda data: dense(12, 24, 3, steps=5), epochs=(0, 1), cycle=2, batch=32, rate=1e-2)
    monkeypatch.setattr(finish, "CASES", {"small": case})
    monkeypatch.setattr(finish, "RATES", (1e-3, 1e-2))
    cells = finish.cells(Bench(Places(), store, STUDY))
    assert list(cells)[:3] == ["small | fixed rate | seed 0", "small | one cycle | rate", "small | one cycle | seed 0"]
    fixed, cycle = (cells[f"small | {schedule} | seed 0"]() for schedule in (FIXED, CYCLE))
    assert list(fixed["moments"]) == ["0", "1"]
    assert list(cycle["moments"]) == ["2"]
    assert cycle["rate"] == store["small | one cycle | rate"]["rate"]
    for moment in (*fixed["moments"].values(), *cycle["moments"].values()):
        assert list(moment) == ["seconds", TRAINED, *WAYS]
        assert all(moment[way]["written"] in ("kept", "rebuilt", "not written") for way in WAYS)
        assert all(moment[way]["test"] >= moment[TRAINED]["test"] - 0.05 for way in WAYS)
    for run in (fixed, cycle):
        store.add("small | fixed rate | seed 0", run)  # the store takes all fields


def test_without_results_the_pages_say_so(store):
    texts = [text for sections in finish.pages(store).values() for text in sections.values()]
    assert set(texts) == {"Not measured yet."}
    assert finish.figures(store) == {}


def test_tables_count_what_was_rebuilt_and_seeds_without_the_line(store):
    first = {FINISH: (0.97, "kept"), f"{FINISH}, {CHECKED}": (0.98, "kept"), LINE: (0.975, "rebuilt")}
    second = {FINISH: (0.95, "not written"), f"{FINISH}, {CHECKED}": (0.98, "kept")}
    for seed, ways in enumerate((first, second)):
        store.add(*run_of(NET, FIXED, seed, {"1": made(0.95 - 0.02 * seed, ways)}))
    row = f"| {NET} | 1 | 94.0 | 96.0 (1 not written) | 98.0 | 97.5 (1 rebuilt, 1 seed) |  | 2 |"
    assert row in finish.accuracy_table(store)
    assert "| 1 | 1 | +2.0 (+2.0) | +4.0 (+4.0) | +2.5 (+2.5) |  |" in finish.summary(store)
    assert f"| {NET} | 1 | +1.0 | +1.0 | +1.0 |  |" in finish.report_table(store)
    assert f"| {NET} | 5.0 | 0.80 | 0.80 | 0.80 |  |" in finish.seconds_table(store)
    heads = finish.accuracy_table(store).splitlines()[0]
    assert heads.count("`refit_`") == heads.count("`convex_init_`") == 2
    assert f"| {NET}, 1 epoch | 94.0 | 98.0 | 0.8 |" in finish.headline(store)


def test_a_refused_call_leaves_the_trained_net(store):
    refused = {"test": 0.1, "seconds": 1.0, "written": "refused: Found: a silent layer"}
    store.add(*run_of(NET, FIXED, 0, {"0": {"seconds": 0.0, TRAINED: {"test": 0.1}, FINISH: refused}}))
    assert f"| {NET} | 0 | 10.0 | 10.0 (1 refused) |  |  |  | 1 |" in finish.accuracy_table(store)
    assert f"| {NET} | 0 |  |  |  |  |" in finish.report_table(store)


def test_the_headline_and_the_figure_show_the_finish_with_validation(store):
    ways = dict.fromkeys(WAYS, (0.9, "kept"))
    for name in {*SHOWN, *finish.PANELS}:
        store.add(*run_of(name, FIXED, 0, {str(epochs): made(0.8, ways, 5.0 * epochs) for epochs in (0, 1, 2, 4, 8)}))
        store.add(*run_of(name, CYCLE, 0, {"8": made(0.85, ways)}))
    rows = finish.headline(store).splitlines()[2:]
    assert [row.split(" | ")[1:3] for row in rows] == [["80.0", "90.0"]] * len(SHOWN)
    (figure,) = finish.figures(store).values()
    for axes in figure.axes:
        alone, behind = axes.get_lines()
        assert list(alone.get_xdata()) == [5.0, 10.0, 20.0, 40.0]
        assert list(behind.get_xdata()) == [9.0, 14.0, 24.0, 44.0]
