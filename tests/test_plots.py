import builtins
import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import OptionError
from snn_recon_plugin.networks import LayerStats

from .helpers import HIDDEN, batches, divided, loop_net


@pytest.fixture(scope="module")
def auto():
    return convex_init_(loop_net(), batches(200), hidden="keep", fit_loss="same", penalty="group_l1")


@pytest.fixture(scope="module")
def given():
    return convex_init_(loop_net(), batches(100), hidden="keep", strength=1e-2)


def test_three_axes_with_what_the_report_holds(auto):
    figure = auto.plot()
    assert isinstance(figure, Figure)
    gap, path, weights = figure.axes
    assert gap.get_lines()[0].get_ydata().tolist() == [p.relative_gap for p in auto.trace if p.relative_gap > 0]
    assert len(gap.get_lines()[0].get_xdata()) >= 1
    assert gap.get_yscale() == "log"
    assert list(gap.get_lines()[1].get_ydata()) == [1e-6, 1e-6]
    assert path.get_lines()[0].get_ydata().tolist() == [p.heldout_loss for p in auto.path.points]
    assert path.get_xscale() == "log"
    assert path.get_lines()[1].get_xdata()[0] == auto.strength
    assert f"{auto.path.chosen.active} neurons" in path.get_legend().get_texts()[0].get_text()
    sizes = weights.get_lines()[0].get_ydata().tolist()
    assert sizes == sorted(auto.neuron_sizes, reverse=True)
    assert len(sizes) == HIDDEN
    assert f"{auto.active_neurons} of {HIDDEN}" in weights.get_title()
    for axes in (gap, path, weights):
        assert all((axes.get_title(), axes.get_xlabel(), axes.get_ylabel()))
    assert f"{100 * auto.accuracy_after:.1f} %" in figure.get_suptitle()


def test_units_of_the_held_out_loss(auto):
    assert "(nats)" in auto.plot().axes[1].get_ylabel()
    assert "(nats)" not in replace(auto, fit_loss="squared").plot().axes[1].get_ylabel()


def test_a_strength_that_was_given(given):
    _, path, _ = given.plot().axes
    assert [text.get_text() for text in path.texts] == ["strength 0.01 was given"]
    assert path.get_title()


@pytest.mark.parametrize(("name", "kind"), [("report.png", Path), ("report.pdf", str)])
def test_a_saved_figure(auto, tmp_path, name, kind):
    auto.plot(kind(tmp_path / name))
    assert (tmp_path / name).stat().st_size > 5000


def test_a_notebook_shows_it_without_pyplot(auto):
    shown = auto.plot_layers()._repr_png_()
    assert shown[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(shown) > 5000
    assert len(pickle.loads(pickle.dumps(auto.plot_layers()))._repr_png_()) > 5000


def test_drawing_leaves_pyplot_alone(auto):
    from matplotlib import pyplot

    auto.plot()
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("before", [math.nan, 0.1])
def test_no_accuracy_no_percent(given, before):
    title = replace(given, accuracy_before=before, accuracy_after=math.nan).plot().get_suptitle()
    assert title == given.network
    title = replace(given, accuracy_before=before, accuracy_after=0.9).plot().get_suptitle()
    assert "90.0 %" in title
    assert "nan" not in title


def test_gaps_of_zero_and_no_neurons_in_use(given, tmp_path):
    point = replace(given.trace[-1], relative_gap=0.0)
    exact = replace(given, trace=(point,), neuron_sizes=(0.0,) * 4, active_neurons=0, hidden_neurons=4)
    exact.plot(tmp_path / "exact.png")
    assert "0 of 4" in exact.plot().axes[2].get_title()


def test_without_matplotlib(given, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **options):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError("No module named 'matplotlib'")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(OptionError, match=r"pip install 'snn-recon-plugin\[plots\]'"):
        given.plot()


def test_how_the_layers_fire_before_and_after():
    report = convex_init_(divided(loop_net()), batches(200))
    rates, shares = report.plot_layers().axes
    (layer,) = report.layers
    before, after = (bars[0].get_height() for bars in rates.containers)
    assert (before, after) == (layer.before.firing_rate, layer.stats.firing_rate) == (0.0, layer.stats.firing_rate)
    never, always, never_after, always_after = (bars[0].get_height() for bars in shares.containers)
    assert (never, always) == (1.0, 0.0)
    assert (never_after, always_after) == (layer.stats.silent, layer.stats.always_on)
    assert [text.get_text() for text in rates.get_xticklabels()] == ["fc1"]
    for axes in (rates, shares):
        assert all((axes.get_title(), axes.get_xlabel(), axes.get_ylabel()))


def test_layers_without_dead_neurons_say_so(auto):
    fine = LayerStats(0.1, 0.0, 0.0, 4)
    layers = (replace(auto.layers[0], before=fine, stats=fine),)
    assert "none" in replace(auto, layers=layers).plot_layers().axes[1].texts[0].get_text()


def test_a_saved_figure_of_the_layers(auto, tmp_path):
    auto.plot_layers(tmp_path / "layers.png")
    assert (tmp_path / "layers.png").stat().st_size > 5000


def test_no_hidden_layers_no_figure_of_them(auto):
    with pytest.raises(OptionError, match="hidden layers"):
        replace(auto, layers=()).plot_layers()
