"""The study of sequences: its tasks, nets, trainings, cells, page and figures."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.store import Store
from benchmarks.temporal.cells import TUNING_SEED, Cell, load_cells, run_cell
from benchmarks.temporal.layer_figure import draw_layer, record_spikes, recurrent_matrix, sort_neurons
from benchmarks.temporal.methods import COUNTS, STARTS, applies, start
from benchmarks.temporal.nets import NETS, accuracy, is_recurrent
from benchmarks.temporal.render import draw, lines_of
from benchmarks.temporal.tables import NOT_RUN, by_run, count_table, kind_table, start_table, training_table
from benchmarks.temporal.tasks import Places, delayed_match, load_task, speech, spike_timing
from benchmarks.temporal.training import LOOKS, RATES, Average, Schedule, split_for_tuning, train, tune
from snn_recon_plugin.demo import Data

RECURRENT = [name for name in NETS if is_recurrent(name)]


@pytest.fixture(scope="module")
def small():
    """Two classes: a channel that spikes early, or one that does; 300 to train, 100 to test."""
    labels = torch.arange(400) % 2
    inputs = torch.zeros(400, 6, 4)
    inputs[torch.arange(400), 1, labels] = 2.0
    inputs += 0.2 * torch.rand(inputs.shape, generator=torch.Generator().manual_seed(0))
    return Data(inputs[:300], labels[:300], inputs[300:], labels[300:])


def make_net(name, inputs=4, hidden=12, classes=2, seed=0):
    torch.manual_seed(seed)
    return NETS[name](inputs, hidden, classes)


# ---- tasks


def test_spike_timing_hides_the_class_in_the_times():
    data = spike_timing(Places())
    assert (data.train_inputs.sum(1) == 1).all()  # each channel of each sample: averages over time say nothing
    preferred = torch.stack([data.train_inputs[data.train_labels == label].mean(0) for label in range(10)])
    near = torch.einsum("ntc,ktc->nk", data.test_inputs, preferred.log1p())
    assert float((near.argmax(1) == data.test_labels).float().mean()) > 0.9


def test_delayed_match_compares_two_cues():
    data = delayed_match(Places())
    by_cue = data.train_inputs.unflatten(2, (4, 5)).sum(3)  # (n, T, cue)
    first = by_cue[:, 2:6].sum(1)
    later = by_cue[:, 14:].sum(1)
    decoded = (first.argmax(1) == later.argmax(1)).long()
    assert float((decoded == data.train_labels).float().mean()) > 0.97
    rates = torch.stack([data.train_inputs[data.train_labels == label].mean((0, 1)) for label in (0, 1)])
    assert float((rates[0] - rates[1]).abs().max()) < 0.02


@pytest.mark.parametrize("task", ["digits", "timing", "match"])
def test_a_task_is_the_same_each_time(task):
    one, two = (load_task(task, Places()) for _ in range(2))
    assert torch.equal(one.train_inputs, two.train_inputs)
    assert one.train_inputs.shape[1:] == one.test_inputs.shape[1:]
    assert one.train_labels.unique().tolist() == one.test_labels.unique().tolist()


def test_spoken_digits_are_counted_in_bins_of_15_ms(tmp_path):
    stored = {"ptr": [0, 3, 5], "times": [0, 14, 15, 899, 2000], "units": [3, 3, 3, 69, 69], "y": [7, 19], "test": [False, True]}
    np.savez(tmp_path / "ende.npz", **{key: np.array(value) for key, value in stored.items()})
    data = speech(Places(speech=str(tmp_path)))
    assert data.train_inputs.shape == (1, 60, 70)
    assert data.train_inputs.nonzero().tolist() == [[0, 0, 3], [0, 1, 3]]
    assert data.train_inputs[0, 0, 3] == 2
    assert data.test_inputs.nonzero().tolist() == [[0, 59, 69]]
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([7], [19])


@pytest.mark.parametrize(("task", "option"), [("rows", "--root"), ("speech", "--speech")])
def test_missing_data_name_the_option(task, option):
    with pytest.raises(SystemExit, match=option):
        load_task(task, Places())


# ---- nets and methods


@pytest.mark.parametrize("name", NETS)
def test_nets_return_membranes_of_all_steps(name, small):
    net = make_net(name)
    assert net(small.test_inputs).shape == (6, 100, 2)
    assert torch.equal(net(small.test_inputs), make_net(name)(small.test_inputs))


def test_long_trainings_are_for_small_data(small):
    many = replace(small, train_labels=torch.zeros(10_000))
    assert applies("train-long", RECURRENT[0], small)
    assert not applies("train-long", RECURRENT[0], many)


def test_an_option_that_the_package_lacks_is_left_out(small, monkeypatch):
    monkeypatch.setitem(STARTS, "keep", {"hidden": "keep", "unheard_of": True})
    assert not applies("keep", RECURRENT[0], small)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name.startswith("snntorch") else pytest.mark.slow) for name in NETS]
)
def test_a_start_is_measured_by_the_net_itself(name, small):
    net = make_net(name, hidden=30)
    found = start(net, small, STARTS["rescale"], seed=0)
    assert found["test"] == accuracy(net, small.test_inputs, small.test_labels) > 0.9
    assert found["seconds"] > 0 < found["cpu_seconds"]


def test_a_refused_start_keeps_its_reason(small):
    broken = replace(small, train_inputs=torch.full_like(small.train_inputs, torch.nan))
    found = start(make_net(RECURRENT[0]), broken, STARTS["keep"], seed=0)
    assert "NaN" in found["refused"]
    assert found["test"] < 0.9


# ---- trainings


@pytest.mark.parametrize("cycle", [False, True])
def test_a_training_is_tested_on_its_way(small, cycle):
    found = train(make_net("snntorch-feedforward"), small, Schedule(6, cycle), rate=2e-2, seed=0)
    assert list(found["epochs"]) == ["1", "5", "6"]  # those of LOOKS, and the last
    assert LOOKS[:2] == (1, 5)
    assert found["epochs"]["1"]["seconds"] < found["epochs"]["6"]["seconds"] == found["seconds"]
    assert found["test"] > 0.9


def test_the_average_stands_in_for_a_while_only():
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 1.0)
    average = Average(layer, span=10)
    for value in (2.0, 4.0):
        torch.nn.init.constant_(layer.weight, value)
        average.update()
    with average.swapped():
        assert layer.weight.item() == pytest.approx(3.0)  # the first steps: their plain mean
    assert layer.weight.item() == 4.0


@pytest.mark.slow
def test_rates_are_tuned_on_training_data_alone(small, monkeypatch):
    monkeypatch.setattr("temporal.training.TUNING_STEPS", 30)
    poisoned = replace(small, test_inputs=torch.full_like(small.test_inputs, torch.nan))
    found = tune(lambda: make_net("snntorch-feedforward"), poisoned, Schedule(1), seed=0)
    assert list(found["validation"]) == [str(rate) for rate in RATES]
    assert found["validation"][str(found["rate"])] == max(found["validation"].values()) > 0.9
    parts = split_for_tuning(small, seed=0)
    assert (len(parts.train_labels), len(parts.test_labels)) == (240, 60)
    together = torch.cat([parts.train_inputs, parts.test_inputs]).flatten(1).sum(1).sort().values
    torch.testing.assert_close(together, small.train_inputs.flatten(1).sum(1).sort().values)


# ---- cells


@pytest.mark.slow
def test_a_cell_is_run_once_and_repeated_if_asked(small, tmp_path):
    cell = Cell("digits", "snntorch-feedforward", 12, "keep", 0)
    store = Store(tmp_path / "cells.jsonl")
    first = run_cell(cell, small, store)
    assert run_cell(cell, small, store) is None
    assert load_cells(store.path) == {cell: first}
    assert run_cell(cell, small, store, again=True)["test"] == first["test"]
    assert {"machine", "samples", "seed"} <= set(first)


@pytest.mark.slow
def test_all_seeds_of_a_training_share_one_tuning(small, tmp_path, monkeypatch):
    monkeypatch.setattr("temporal.training.TUNING_STEPS", 4)
    store = Store(tmp_path / "cells.jsonl")
    for seed in (0, 1):
        run_cell(Cell("digits", "snntorch-feedforward", 12, "train", seed), small, store)
    by_method = {(cell.method, cell.seed): content for cell, content in load_cells(store.path).items()}
    assert set(by_method) == {("tuning", TUNING_SEED), ("train", 0), ("train", 1)}
    assert {content["rate"] for content in by_method.values()} == {by_method["tuning", TUNING_SEED]["rate"]}


# ---- page and figures


def made_results():
    """Results of made-up accuracies: two seeds of a start, one of a training."""
    results = {Cell("digits", "snntorch-recurrent", 256, "rescale", seed): result(0.8 + seed / 10, 10 + seed) for seed in (0, 1)}
    points = {"1": result(0.5, 3), "5": result(0.7, 15), "20": result(0.9, 60)}
    results[Cell("digits", "snntorch-recurrent", 256, "train", 0)] = {**points["20"], "epochs": points}
    results[Cell("digits", "snntorch-recurrent", 256, "tuning", TUNING_SEED)] = {"rate": 2e-3, "cpu_seconds": 20}
    results[Cell("digits", "snntorch-feedforward", 256, "rescale", 0)] = {**result(0.1, 1), "refused": "no"}
    return results


def result(test, seconds):
    return {"test": test, "cpu_seconds": seconds}


def test_tables_have_means_over_seeds_and_name_refusals():
    starts, trainings = start_table(made_results()), training_table(made_results())
    assert "| digits | snntorch-recurrent | 256 | 85.0 (10 s) |  | 2 |" in starts
    assert "| digits | snntorch-feedforward | 256 | refused |  | 1 |" in starts
    assert "| 50.0 (3 s) | 70.0 (15 s) | 90.0 (60 s) | fixed 0.002 | 20 | 1 |" in trainings
    assert start_table({}) == training_table({}) == NOT_RUN


def test_the_table_of_starts_has_epochs_of_training_that_take_as_long():
    start = {Cell("digits", "snntorch-recurrent", 256, "auto", 0): result(0.9, 7.5)}
    assert "| 90.0 (8 s) | 2.5 |" in start_table(made_results() | start)  # an epoch of the training takes 3 s


def test_numbers_of_candidates_are_compared_where_all_were_run():
    runs = {method: Cell("digits", "snntorch-recurrent", 256, method, 0) for method in COUNTS}
    results = {cell: result(0.9, 2) for cell in runs.values()}
    assert "| digits | snntorch-recurrent | 256 |" + 4 * " 90.0 (2 s) |" + " 1 |" in count_table(results)
    del results[runs["six"]]
    assert count_table(results) == NOT_RUN


def test_the_figure_has_a_line_a_training_and_a_dot_a_start(tmp_path):
    runs = by_run(made_results(), ("rescale", "train"))
    lines = lines_of(runs["digits", "snntorch-recurrent", 256])
    assert {method: len(seconds) for method, seconds, _ in lines} == {"rescale": 1, "train": 3}
    assert lines_of(runs["digits", "snntorch-feedforward", 256]) == []
    shown = {replace(cell, task="rows"): content for cell, content in made_results().items()}
    draw(shown, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_neurons_are_sorted_by_group_and_then_by_time():
    spikes = torch.zeros(1, 4, 5)
    for neuron, step in enumerate((3, 0, 2, 1)):  # the last neuron is silent
        spikes[0, step, neuron] = 1
    assert sort_neurons(spikes, {"clock": [0, 2], "gates": []}) == {"clock": [2, 0], "others": [1, 3, 4]}


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_layer_is_drawn(name, small, tmp_path):
    net = make_net(name)
    spikes = record_spikes(net, small.test_inputs)
    assert spikes.shape == (100, 6, 12)
    assert set(spikes.unique().tolist()) <= {0.0, 1.0}
    assert recurrent_matrix(net).shape == (12, 12)
    figure = draw_layer(net, small.test_inputs, {"clock": [0, 1, 2], "gates": [5, 4]}, tmp_path / "layer.png")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["clock", "gates", "others"]
    assert (tmp_path / "layer.png").stat().st_size > 0


def test_a_layer_without_recurrence_is_refused():
    with pytest.raises(ValueError, match="recurrent net"):
        recurrent_matrix(make_net("snntorch-feedforward"))


def test_no_kind_alone_is_compared_where_there_is_none():
    assert kind_table({}) == NOT_RUN
    cells = {
        Cell("digits", "snntorch-recurrent", 256, method, seed): {"test": test, "seed": seed, "cpu_seconds": 1.0}
        for method, seed, test in (("auto", 0, 0.9), ("auto", 1, 0.1), ("pairs", 0, 0.8), ("gaussian", 0, 0.85))
    }
    assert "| 50.0 |  | 80.0 | 85.0 | +5.0 | 1 to 2 |" in kind_table(cells)
