"""The ranking: it reads only, agrees with single calls, and gives refused nets a row."""

import math
from functools import partial

import pytest
import torch
from snntorch import surrogate
from torch import nn

from snn_recon_plugin import Ranking, convex_init_, rank
from snn_recon_plugin.errors import DataError, NetworkError, OptionError
from snn_recon_plugin.rank import RankedNet, list_values

from .helpers import batches, data_loader, lived_in, train_data, untouched
from .nets import Loop, loop_net, sequential_net


def plain():
    return nn.Linear(64, 10)


def test_nets_are_only_read():
    net, loader = lived_in(loop_net()), data_loader(100, 50, shuffle=True, generator=torch.Generator().manual_seed(3))
    drawn = loader.generator.get_state()
    with untouched(net):
        ranking = rank([plain, net, Loop], loader, hidden="keep")
    assert [row.name for row in ranking.rows][2] == "0 plain"  # a refused one
    assert ranking.best is ranking.rows[0]
    assert torch.equal(loader.generator.get_state(), drawn)
    with pytest.raises(NetworkError, match="no net that could be initialised"):
        _ = rank([plain()], loader).best


def test_each_row_is_what_the_one_line_reports():
    nets = {"first": loop_net(), "second": loop_net(), "loop": sequential_net()}
    found = {row.name: row for row in rank(nets, batches(300), hidden="keep").rows}
    assert "forward=over_time(25)" in found["loop"].refusal
    for name in ("first", "second"):
        report = convex_init_(nets[name], batches(300), hidden="keep")
        row = found[name]
        assert (row.accuracy_before, row.accuracy_after) == (report.accuracy_before, report.accuracy_after)
        assert (row.heldout, row.loss, row.refusal) == (report.after.samples, report.solved.loss, "")
        assert row.firing_rates == tuple(layer.stats.firing_rate for layer in report.layers)
        assert row.parameters == sum(parameter.numel() for parameter in nets[name].parameters())


def test_a_function_makes_its_net_from_the_seed():
    torch.manual_seed(5)
    net = Loop()
    rows = rank({"function": Loop, "net": net, "other": Loop()}, batches(200), hidden="keep", seed=5).rows
    losses = {row.name: row.loss for row in rows}
    assert losses["function"] == losses["net"] != losses["other"]
    assert rows[0].accuracy_after >= rows[1].accuracy_after


def test_values_are_ranked_by_loss():
    inputs, labels = train_data(200)
    nets = {"narrow": partial(Loop, hidden=2, outputs=1), "wide": partial(Loop, hidden=60, outputs=1)}
    ranking = rank(nets, [(inputs, labels[:, None].float())], loss="mse", hidden="keep")
    assert [row.name for row in ranking.rows] == ["wide", "narrow"]
    assert all(math.isnan(row.accuracy_after) for row in ranking.rows)
    assert "n/a" in str(ranking)


TABLE = """
net   parameters  accuracy before         after    loss  seconds  firing rates
wide      15,010     10.4 ± 4.2 %  97.8 ± 2.5 %  0.0925      2.0   0.135 0.200
8            610     12.6 ± 4.5 %  75.5 ± 5.5 %  0.7168      1.3         0.075

269 heldout samples; ± are 95 % intervals
none is refused. Found: no spiking neuron. Needed: neurons neurons neurons neurons neurons neurons
  neurons neurons neurons neurons neurons neurons
"""


def test_the_table():
    rows = (
        RankedNet("wide", "", 15010, 269, 0.104, 0.978, 0.0925, 2.04, (0.135, 0.2)),
        RankedNet("8", "", 610, 269, 0.126, 0.755, 0.7168, 1.31, (0.075,)),
        RankedNet("none", "Found: no spiking neuron. Needed: " + "neurons " * 12),
    )
    assert str(Ranking(rows)).replace("-", "") == TABLE


@pytest.mark.parametrize(
    ("nets", "loader", "error", "word"),
    [
        ([], batches(50), OptionError, "no networks"),
        (loop_net(), batches(50), OptionError, "a Loop in place of networks"),
        ([loop_net, 3], batches(50), OptionError, "'1 int'"),
        ([loop_net], iter(batches(50)), DataError, "can be read once"),
    ],
    ids=["none", "one net", "no net", "iterator"],
)
def test_refusals(nets, loader, error, word):
    with pytest.raises(error, match=word):
        rank(nets, loader)


def test_a_function_that_fails_is_a_refused_net():
    def fails():
        raise ValueError("no such layer")

    rows = rank({"fails": fails, "nothing": lambda: None, "net": loop_net}, batches(100), hidden="keep", progress=False).rows
    assert [row.name for row in rows] == ["net", "fails", "nothing"]
    assert "ValueError: no such layer" in rows[1].refusal
    assert "returned a NoneType" in rows[2].refusal


# -- spaces ----------------------------------------------------------------------------------------------------------------------


def make_loop(hidden, beta=0.9):
    return Loop(hidden=hidden)


def test_the_first_of_a_space_is_the_widest():
    ranking = rank(make_loop, batches(400), space={"hidden": [4, 60]}, hidden="keep", progress=False)
    assert [(row.name, row.values) for row in ranking.rows] == [("hidden=60", {"hidden": 60}), ("hidden=4", {"hidden": 4})]


def test_combinations_and_draws():
    grid = list_values(make_loop, {"hidden": [1, 2], "beta": [0.5, 0.9]}, None, 0)
    assert list(grid) == ["hidden=1, beta=0.5", "hidden=1, beta=0.9", "hidden=2, beta=0.5", "hidden=2, beta=0.9"]
    assert grid["hidden=2, beta=0.5"] == {"hidden": 2, "beta": 0.5}
    some = list_values(make_loop, {"hidden": [1, 2], "beta": [0.5, 0.9]}, 3, 0)
    assert len(some) == 3
    assert some.items() <= grid.items()
    drawn = list(list_values(make_loop, {"hidden": (8, 512), "beta": (0.001, 1.0)}, 200, 0).values())
    assert drawn == list(list_values(make_loop, {"hidden": (8, 512), "beta": (0.001, 1.0)}, 200, 0).values())
    assert all(isinstance(each["hidden"], int) and 8 <= each["hidden"] <= 512 for each in drawn)
    assert 0.3 < sum(each["beta"] < 0.03 for each in drawn) / len(drawn) < 0.7  # half of its logarithms


def test_values_of_one_name_are_all_tried():
    slopes = [surrogate.fast_sigmoid(slope=10), surrogate.fast_sigmoid(slope=25), surrogate.atan()]
    found = list_values(make_loop, {"hidden": slopes, "beta": [0.9, 0.9]}, None, 0)
    assert [values["hidden"] for values in found.values()] == slopes
    close = list_values(make_loop, {"hidden": [1], "beta": [0.99991, 0.99994]}, None, 0)
    assert list(close) == ["hidden=1, beta=0.9999", "hidden=1, beta=0.9999 #2"]


def test_nets_that_the_samples_do_not_tell_apart_are_named():
    rows = [RankedNet(name, "", 10, 100, 0.1, accuracy, 0.1, 1.0) for name, accuracy in (("a", 0.9), ("b", 0.88), ("c", 0.7))]
    assert "as far as these samples tell: b\n" in str(Ranking(tuple(rows)))


@pytest.mark.parametrize(
    ("nets", "options", "words"),
    [
        (make_loop, {"space": {}}, "a list of choices or a range"),
        (make_loop, {"trials": 3}, "a list of choices or a range"),
        (make_loop, {"space": {"hidden": []}}, "a list of choices or a range"),
        (make_loop, {"space": {"width": [1], "beta": [1]}}, r"width in the space.*arguments of make_loop: hidden, beta"),
        (make_loop, {"space": {"hidden": (1, 9)}}, "a range of hidden without trials="),
        (make_loop, {"space": {"hidden": [1]}, "trials": 0}, "trials=0"),
        ([loop_net()], {"space": {"hidden": [1]}}, "space= with a list"),
        (loop_net(), {"space": {"hidden": [1]}}, "space= with a Loop"),
    ],
)
def test_spaces_that_say_nothing_are_refused(nets, options, words):
    with pytest.raises(OptionError, match=f"(?s){words}"):
        rank(nets, batches(50), **options)


def test_a_space_in_which_nothing_works_has_refused_rows_alone():
    ranking = rank(lambda width: nn.Linear(width, 10), batches(100), space={"width": [64, 65]}, progress=False)
    assert all(row.refusal for row in ranking.rows)
    with pytest.raises(NetworkError, match="no net that could be initialised"):
        _ = ranking.best
