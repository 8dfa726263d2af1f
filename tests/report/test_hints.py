"""Hints on options and data that the caller has not tried."""

import pytest
import torch

from snn_recon_plugin import convex_init_, diagnose, over_time, refit_
from snn_recon_plugin.options import Options
from snn_recon_plugin.report.hints import InputScale, find_hints

from ..helpers import batches, loop_net, one_line, train_data
from ..nets import normalised_net

DEFAULT = Options()


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ((DEFAULT, None), []),
        ((DEFAULT, InputScale("fc1", 0.5, 3.5)), []),
        ((DEFAULT, InputScale("fc1", 100.0, 50.0)), ["unscaled_inputs"]),
        ((DEFAULT, InputScale("fc1", 100.0, float("nan"))), ["unscaled_inputs"]),
        ((DEFAULT, InputScale("fc1", 100.0, 1.0)), []),  # trained, or normalised behind the layer
        ((DEFAULT, None, ["fc1"]), ["heterogeneous"]),
        ((Options(heterogeneous=False), None, ["fc1"]), []),
        ((Options(max_samples=100), None, [], 100, 600), ["max_samples"]),
        ((Options(max_samples=600), None, [], 600, 600), []),
    ],
)
def test_a_hint_appears_where_it_applies(facts, expected):
    found = find_hints(*facts)
    assert [hint.name for hint in found] == expected
    assert all(hint.text and hint.fix for hint in found)


def normalised():
    """A batch norm behind the first layer: the scale of the inputs does not matter."""
    net = normalised_net()
    net[1].running_var.fill_(100.0**2)
    return net


@pytest.mark.parametrize(
    ("make", "factor", "options", "unscaled"),
    [
        (loop_net, 1.0, {}, False),
        (loop_net, 255.0, {}, True),
        (loop_net, 16.0, {}, True),
        (normalised, 255.0, {"forward": over_time(8)}, False),
    ],
    ids=["0 to 1", "0 to 255", "0 to 16", "normalised"],
)
def test_inputs_that_are_not_scaled_are_named_by_report_and_diagnosis(make, factor, options, unscaled):
    torch.manual_seed(0)
    net, data = make(), [(factor * inputs, labels) for inputs, labels in batches(60)]
    kinds = [finding.kind for finding in diagnose(net, data, **options).findings]
    report = convex_init_(net, data, hidden="keep", strength=1e-2, **options)
    assert ("unscaled_inputs" in kinds) is unscaled
    assert ([hint.name for hint in report.hints] == ["unscaled_inputs"]) is unscaled
    assert ("inputs of 'fc1' are not scaled" in one_line(report)) is unscaled


def test_features_of_which_one_is_not_scaled():
    inputs, labels = train_data(200)
    inputs[:, 20] *= 1000
    report = convex_init_(loop_net(), [(inputs, labels)], hidden="keep", strength=1e-2)
    assert [hint.name for hint in report.hints] == ["unscaled_inputs"]


def test_data_beyond_the_limit_are_named_once():
    """A refit has the options of the start."""
    net, loader = loop_net(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*train_data(300)), 100)
    report = convex_init_(net, loader, max_samples=200, hidden="keep", strength=1e-2)
    assert [hint.name for hint in report.hints] == ["max_samples"]
    assert "200 of 300 samples were used" in one_line(report)
    assert refit_(net, loader, max_samples=200, strength=1e-2).hints == ()
