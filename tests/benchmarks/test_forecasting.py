"""The study of forecasting: its series, measures, rivals, cells, tables and figure."""

import math

import numpy as np
import pytest
import torch

from benchmarks.forecasting import __main__ as study
from benchmarks.forecasting import methods, render, rivals, training
from benchmarks.forecasting.measure import TOLERATED, one_step_error, roll_out, valid_times
from benchmarks.forecasting.nets import NETS, OfChanges
from benchmarks.forecasting.series import SERIES, Series, lorenz, mackey_glass, split, windows
from benchmarks.store import Store

from ..training.runs import MARKS

pytestmark = MARKS


def waves(steps, seed):
    """A sum of two sines, which a linear autoregression continues."""
    time = np.arange(steps) + 10 * seed
    return (np.sin(0.3 * time) + 0.5 * np.sin(0.11 * time + 1))[:, None]


@pytest.fixture
def short(monkeypatch):
    """A small series, in the place of all."""
    for name, value in {"TRAIN": 400, "VALIDATION": 700, "TEST": 300, "SETTLE": 10}.items():
        monkeypatch.setattr(f"forecasting.series.{name}", value)
    monkeypatch.setattr("forecasting.measure.WARM_UP", 60)
    series = Series(waves, 1.0, 50)
    monkeypatch.setitem(SERIES, "waves", series)
    return series, split(series, 0)


# ---- series


def test_mackey_glass_fulfils_its_equation():
    """Half the step of integration gives the same values, and differences over two units of time are about the slope."""
    one, two = mackey_glass(300, 3), mackey_glass(300, 3, fine=10)
    assert np.array_equal(one, two)
    x = one[:, 0]
    delayed = x[100 - 17 : 280 - 17]
    slope = 0.2 * delayed / (1 + delayed**10) - 0.1 * x[100:280]
    assert np.abs((x[101:281] - x[99:279]) / 2 - slope).max() < 0.02
    assert 0.3 < x.min() < x.max() < 1.5


def test_lorenz_does_not_depend_on_the_step_of_integration():
    assert np.abs(lorenz(100, 0) - lorenz(100, 0, fine=8)).max() < 1e-3
    assert lorenz(50, 0).shape == (50, 3)


def test_parts_follow_each_other_and_are_standardised(short):
    data = short[1]
    whole = torch.cat([data.train, data.validation, data.test])[:, 0]
    raw = torch.from_numpy(waves(1410, 0)[10:, 0]).float()
    assert float(torch.corrcoef(torch.stack([whole, raw]))[0, 1]) == pytest.approx(1.0)
    assert float(data.train.mean()) == pytest.approx(0, abs=1e-5)
    wrong = split(Series(waves, 1.0, 50, outliers=0.1), 0)
    assert torch.equal(wrong.test, data.test)
    assert 0.03 < float((wrong.train != data.train).float().mean()) < 0.2
    assert float(wrong.scale) == pytest.approx(float(data.scale), rel=0.5)


def test_targets_are_changes_to_the_next_value():
    inputs, targets = windows(torch.arange(30.0)[:, None] ** 2, torch.tensor([2.0]), 10, 5)
    assert inputs.shape == targets.shape == (4, 10, 1)
    assert torch.equal(2 * targets, (inputs.sqrt() + 1) ** 2 - inputs)
    assert inputs[:, 0, 0].tolist() == [0, 25, 100, 225]


# ---- measures


class Ahead:
    """Knows the series 0, 1, 2, ... until it is at 100."""

    def begin(self):
        return 0

    def step(self, x, state):
        return torch.where(x < 100, x + 1, x - 50), state + 1


def test_a_predictor_that_is_right_until_it_is_wrong(monkeypatch):
    monkeypatch.setattr("forecasting.measure.WARM_UP", 10)
    series = torch.arange(200.0)[:, None]
    assert one_step_error(Ahead(), series[:100]) == 0
    predicted, truth = roll_out(Ahead(), series, 120, starts=2)
    assert torch.equal(truth[0, :, 0], torch.arange(10.0, 130.0))
    # From 10 and from 80 the first wrong value is that after 100.
    assert valid_times(predicted, truth).tolist() == [91, 21]
    assert valid_times(truth + TOLERATED / 2, truth).tolist() == [120, 120]
    assert valid_times(truth * math.nan, truth).tolist() == [0, 0]


@pytest.mark.parametrize("name", NETS)
def test_a_nets_steps_are_its_forward(name):
    torch.manual_seed(0)
    net, x = NETS[name](2, 12), torch.randn(3, 8, 2)
    state, found = net.begin(), []
    with torch.no_grad():
        for value in x.unbind(1):
            prediction, state = net.step(value, state)
            found.append(prediction)
        assert torch.equal(torch.stack(found), net(x))


def test_changes_add_up():
    class One:
        def begin(self):
            return 0

        def step(self, x, state):
            return torch.ones_like(x), state + 1

    series = 0.5 * torch.arange(300.0)[:, None]
    assert one_step_error(OfChanges(One(), torch.tensor([0.5])), series) == 0
    assert one_step_error(OfChanges(One(), torch.tensor([0.25])), series) > 0


# ---- methods


def test_an_autoregression_and_an_echo_state_network_continue_waves(short, monkeypatch):
    series, data = short
    monkeypatch.setattr(rivals, "LEAKS", (1.0,))
    monkeypatch.setattr(rivals, "RADII", (0.9,))
    for predictor, about in (rivals.fit_autoregression(data), rivals.fit_echo_state(data, 60, 0)):
        assert one_step_error(predictor, data.test) < 0.02
        assert float(valid_times(*roll_out(predictor, data.test, series.horizon)).float().mean()) > 20
        assert about["ridge"] in rivals.RIDGES
    assert one_step_error(rivals.Persistence(), data.test) > 0.1


def test_sampled_rows_spike_between_their_two_values():
    torch.manual_seed(0)
    net = NETS["feed-forward"](1, 40)
    inputs = torch.linspace(-1, 1, 200)[None, :, None]
    rivals.sample_rows(net.hidden, net.neuron, inputs, inputs.clone(), 0)
    settled = (net.hidden(inputs[0]) / (1 - net.neuron.beta)).detach()
    assert bool(((settled.amax(0) > 1) & (settled.amin(0) < 1)).all())
    assert net.neuron.beta.unique().numel() > 30


def test_which_methods_run():
    assert [name for name in methods.METHODS if methods.applies(name, "", False)] == list(methods.RIVALS)
    assert methods.applies("sampled", "feed-forward", False)
    assert not methods.applies("sampled", "recurrent", False)
    chosen = [name for name in methods.METHODS if methods.applies(name, "feed-forward", True)]
    assert chosen == ["auto", "keep", "auto, Huber", "keep, Huber"]


@pytest.mark.slow
def test_cells_are_written_once_and_the_rate_is_tuned_once(short, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "EPOCHS", 2)
    monkeypatch.setattr(training, "RATES", (1e-3, 1e-2))
    chosen = ["keep", "sampled", "training", "callback", "persistence"]
    path = tmp_path / "cells.jsonl"
    line = ["--tasks", "waves", "--nets", "", "feed-forward", "--methods", *chosen, "--seeds", "0", "--width", "16"]
    study.main([*line, "--results", str(path)])
    found = {content["method"]: content for content in Store(path).cells()}
    assert len(found) == 6  # one of them the tuning
    assert found["tuning"]["rate"] in (1e-3, 1e-2)
    for content in found.values():
        assert content["machine"]["versions"]["snntorch"]
        assert content["method"] == "tuning" or 0 < content["one_step"] < 10
    before = path.read_bytes()
    study.main([*line, "--results", str(path)])
    assert path.read_bytes() == before


# ---- tables and figure


def cell(task, net, method, seed, one_step, valid):
    about = {"task": task, "net": net, "method": method, "width": 256, "seed": seed, "cpu_seconds": 2.0}
    example = [[0.0, 1.0, 0.5] * 100, [0.0, 0.9, 0.7] * 100]
    return {**about, "one_step": one_step, "valid": valid, "valid_median": valid, "example": example}


def test_tables_hold_the_mean_and_the_range_of_the_seeds(tmp_path):
    cells = {}
    for task in render.CLEAN:
        for net, method in (("recurrent", "auto"), ("feed-forward", "auto"), ("", "echo state")):
            cells[task, net, method] = [cell(task, net, method, seed, 0.1 + 0.1 * seed, 10.0 + seed) for seed in (0, 1)]
    cells[render.DIRTY, "feed-forward", "keep, Huber"] = [cell(render.DIRTY, "feed-forward", "keep, Huber", 0, 0.25, 7.0)]
    lines = render.main_table(cells).splitlines()
    error = "0.1500 (0.1000 to 0.2000)"
    both = f"{error} | 10.5 (10.0 to 11.0) | {error} | 10.50 (10.00 to 11.00)"
    assert f"| the one line | feed-forward | {both} | 2.0 | 2 |" in lines
    assert f"| echo state network |  | {both} | 2.0 | 2 |" in lines
    assert '| `hidden="keep"` | Huber | 0.2500 | 7.0 | 1 |' in render.loss_table(cells)
    render.draw(cells, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
