"""Figures of a report: their axes hold what the report holds."""

import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib import pyplot

from snn_recon_plugin.errors import OptionError
from snn_recon_plugin.networks.calls.calls import LayerStats

from ..helpers import chosen, without
from ..nets import HIDDEN


def labelled(axes):
    return all((axes.get_title(), axes.get_xlabel(), axes.get_ylabel()))


def test_three_axes_with_what_the_report_holds(auto):
    figure = auto.plot()
    assert pyplot.get_fignums() == []  # a figure of its own
    gap, path, weights = figure.axes
    assert gap.get_lines()[0].get_ydata().tolist() == [p.relative_gap for p in auto.program.trace if p.relative_gap > 0] != []
    assert gap.get_yscale() == "log"
    assert list(gap.get_lines()[1].get_ydata()) == [1e-6, 1e-6]
    assert path.get_lines()[0].get_ydata().tolist() == [p.heldout_loss for p in auto.program.path]
    assert path.get_xscale() == "log"
    assert path.get_lines()[1].get_xdata()[0] == auto.program.strength
    assert f"{chosen(auto).active} neurons" in path.get_legend().get_texts()[0].get_text()
    assert "(nats)" in path.get_ylabel()
    assert "(nats)" not in replace(auto, program=replace(auto.program, loss="squared")).plot().axes[1].get_ylabel()
    sizes = weights.get_lines()[0].get_ydata().tolist()
    assert sizes == sorted(auto.program.neuron_sizes, reverse=True)
    assert len(sizes) == HIDDEN
    assert f"{auto.program.active_neurons} of {HIDDEN}" in weights.get_title()
    assert all(map(labelled, figure.axes))
    assert f"-> {100 * auto.accuracy_after:.0f} ± " in figure.get_suptitle()


def test_a_strength_that_was_given(auto):
    _, path, _ = replace(auto, program=replace(auto.program, path=None, strength=0.01)).plot().axes
    assert [text.get_text() for text in path.texts] == ["strength 0.01 was given"]
    assert path.get_title()


@pytest.mark.parametrize("before", [math.nan, 0.1])
def test_no_accuracy_no_percent(auto, before):
    begun = replace(auto, before=replace(auto.before, accuracy=before))
    title = replace(begun, after=replace(auto.after, accuracy=math.nan)).plot().get_suptitle()
    assert title == auto.network
    title = replace(begun, after=replace(auto.after, accuracy=0.9)).plot().get_suptitle()
    assert "90 ± 13 %" in title
    assert "nan" not in title


def test_gaps_of_zero_and_no_neurons_in_use(auto):
    point = replace(auto.program.trace[-1], relative_gap=0.0)
    program = replace(auto.program, trace=(point,), neuron_sizes=(0.0,) * 4, active_neurons=0, hidden_neurons=4)
    exact = replace(auto, program=program)
    assert "0 of 4" in exact.plot().axes[2].get_title()


def test_how_the_layers_fire_before_and_after(auto):
    rates, shares = auto.plot_layers().axes
    (layer,) = auto.layers
    before, after = (bars[0].get_height() for bars in rates.containers)
    assert (before, after) == (layer.before.firing_rate, layer.stats.firing_rate) == (0.0, layer.stats.firing_rate)
    never, always, never_after, always_after = (bars[0].get_height() for bars in shares.containers)
    assert (never, always) == (1.0, 0.0)
    assert (never_after, always_after) == (layer.stats.silent, layer.stats.always_on)
    assert [text.get_text() for text in rates.get_xticklabels()] == ["fc1"]
    assert labelled(rates)
    assert labelled(shares)
    fine = LayerStats(0.1, 0.0, 0.0, 4)
    healthy = replace(auto, layers=(replace(layer, before=fine, stats=fine),))
    assert "none" in healthy.plot_layers().axes[1].texts[0].get_text()
    with pytest.raises(OptionError, match="hidden layers"):
        replace(auto, layers=()).plot_layers()


@pytest.mark.parametrize("draw", ["plot", "plot_layers"])
@pytest.mark.parametrize(("name", "kind"), [("report.png", Path), ("report.pdf", str)])
def test_a_saved_figure(auto, tmp_path, draw, name, kind):
    getattr(auto, draw)(kind(tmp_path / name))
    assert (tmp_path / name).stat().st_size > 5000


def test_a_notebook_shows_it_without_pyplot(auto):
    figure = auto.plot_layers()
    for each in (figure, pickle.loads(pickle.dumps(figure))):
        assert each._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"
        assert len(each._repr_png_()) > 5000


def test_without_matplotlib(auto, monkeypatch):
    without(monkeypatch, "matplotlib")
    with pytest.raises(OptionError, match="pip install matplotlib"):
        auto.plot()
