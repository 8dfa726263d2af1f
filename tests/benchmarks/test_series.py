"""The series of the forecasting study, its measures and its rivals."""

import numpy as np
import pytest
import torch

from benchmarks import rivals, series
from benchmarks.predictors import Net
from benchmarks.series import TOLERATED, Series, lorenz, mackey_glass, one_step_error, roll_out, split, valid_times


def waves(steps, seed):
    """A sum of two sines, which a linear autoregression continues."""
    time = np.arange(steps) + 10 * seed
    return (np.sin(0.3 * time) + 0.5 * np.sin(0.11 * time + 1))[:, None]


def test_mackey_glass_fulfils_its_equation():
    x = mackey_glass(300, 3)[:, 0]
    delayed = x[100 - 17 : 280 - 17]
    slope = 0.2 * delayed / (1 + delayed**10) - 0.1 * x[100:280]
    assert np.abs((x[101:281] - x[99:279]) / 2 - slope).max() < 0.02
    assert 0.3 < x.min() < x.max() < 1.5


def test_lorenz_does_not_depend_on_the_step_of_integration():
    assert np.abs(lorenz(100, 0) - lorenz(100, 0, fine=8)).max() < 1e-3


def test_outliers_are_in_the_training_part_alone():
    data, wrong = (split(Series(waves, 1.0, 50, outliers=share), 0) for share in (0.0, 0.1))
    assert float(data.train.mean()) == pytest.approx(0, abs=1e-5)
    assert torch.equal(wrong.test, data.test)
    assert 0.03 < float((wrong.train != data.train).float().mean()) < 0.2


class Ahead:
    """Knows the series 0, 1, 2, ... until it is at 100."""

    def begin(self):
        return 0

    def step(self, x, state):
        return torch.where(x < 100, x + 1, x - 50), state + 1


def test_a_predictor_that_is_right_until_it_is_wrong(monkeypatch):
    monkeypatch.setattr(series, "WARM_UP", 10)
    values = torch.arange(200.0)[:, None]
    assert one_step_error(Ahead(), values[:100]) == 0
    predicted, truth = roll_out(Ahead(), values, 120, starts=2)
    # From 10 and from 80 the first wrong value is that after 100.
    assert valid_times(predicted, truth).tolist() == [91, 21]
    assert valid_times(truth + TOLERATED / 2, truth).tolist() == [120, 120]


def test_an_autoregression_and_an_echo_state_network_continue_waves(monkeypatch):
    for name, value in {"TRAIN": 400, "VALIDATION": 700, "TEST": 300, "SETTLE": 10, "WARM_UP": 60}.items():
        monkeypatch.setattr(series, name, value)
    monkeypatch.setattr(rivals, "LEAKS", (1.0,))
    monkeypatch.setattr(rivals, "RADII", (0.9,))
    data = split(Series(waves, 1.0, 50), 0)
    for name in ("autoregression", "echo state"):
        predictor, _ = rivals.RIVALS[name](data, 60, 0)
        assert one_step_error(predictor, data.test) < 0.02
        assert float(valid_times(*roll_out(predictor, data.test, 50)).float().mean()) > 20


def test_sampled_rows_spike_between_their_two_values():
    net, inputs = Net("feed-forward", 1, 40), torch.linspace(-1, 1, 200)[None, :, None]
    rivals.sample_rows(net.hidden, net.neuron, inputs, inputs.clone(), 0)
    settled = (net.hidden(inputs[0]) / (1 - net.neuron.beta)).detach()
    assert bool(((settled.amax(0) > 1) & (settled.amin(0) < 1)).all())
    assert net.neuron.beta.unique().numel() > 30
