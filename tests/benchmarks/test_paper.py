"""The study of the paper: its settings, and the parts that docs/evidence/paper.md describes."""

from dataclasses import replace

import pytest
import torch

from benchmarks.paper.methods import Splits, branching_ratio, scores_of, tune_branching_
from benchmarks.paper.nets import SequenceNet, Unrolled, remembering
from benchmarks.paper.settings import METHODS, settings
from benchmarks.studies.paper import FAMILIES


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["xor-T6-L5", "addition-base-2", "carry-base-2"])
def test_every_method_leaves_a_result(stem):
    setting = next(setting for setting in settings("") if setting.stem == stem)
    data = setting.make(0)
    tests = {name: test.rows(0, 300) for name, test in data.tests.items()}
    short = Splits(data.train.rows(0, 400), data.validation.rows(0, 200), tests, data.measure)
    narrow = replace(setting, widths=tuple(max(32, width // 8) for width in setting.widths))
    found = {
        method: one for family, _ in FAMILIES.values() for method, one in family(narrow, short, 0) if method in setting.methods
    }
    assert set(found) == set(setting.methods)
    for method, one in found.items():
        assert set(one["tests"]) == set(setting.tests)
        if method not in ("SG", "STE from STE", "STE from CVX"):
            # Membranes of a hundred thresholds, and a kink at the margin: rounding the weights to float32 alone costs 1e-6.
            assert -1e-12 <= one["certificate"]["relative_gap"] <= (1e-5 if method == "R-CVX analog" else 1e-6)
    assert min(found["ours"]["tests"].values()) == 1.0


def test_the_settings_have_what_was_published():
    for setting in settings(""):
        assert set(setting.published) <= set(setting.methods) <= set(METHODS)
        assert all(len(figures) == len(setting.tests) for figures in setting.published.values())
        assert len(setting.target) in (0, len(setting.tests))
    assert len({setting.stem for setting in settings("")}) == len(settings(""))


def test_a_remembering_net_is_the_unrolled_one():
    torch.manual_seed(0)
    inputs, unrolled = torch.randn(50, 5, 7), Unrolled(5, 7, [20, 30, 40], 3)
    with torch.no_grad():
        for parameter in unrolled.parameters():
            parameter.mul_(4)
    net, promised = remembering(unrolled, 5, 7), scores_of(unrolled, inputs)
    assert float(promised.std()) > 0.1
    torch.testing.assert_close(scores_of(net, inputs), promised)
    assert not torch.allclose(scores_of(net, inputs.flip(1)), promised)


def test_a_tuned_reservoir_has_a_branching_ratio_of_one():
    torch.manual_seed(0)
    net, inputs = SequenceNet(3, [60, 60], 2), torch.randn(100, 6, 3)
    for weight in net.branches.parameters():
        torch.nn.init.normal_(weight)
    tune_branching_(net, inputs)
    for branch in net.branches:
        assert [branching_ratio(branch, inputs, layer) for layer in (0, 1)] == pytest.approx([1, 1], abs=0.03)
