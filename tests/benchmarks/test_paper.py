"""benchmarks/paper.py and its companions on few samples: every method runs, and the parts do what docs/evidence/paper.md says."""

import pytest
import torch

from benchmarks import paper_ours
from benchmarks.paper import run_all
from benchmarks.paper_automata import AUTOMATA, rebuild, transitions
from benchmarks.paper_methods import Splits, accuracy, autoregressive, branching_ratio, scores_of, tune_branching_
from benchmarks.paper_networks import SequenceNet
from benchmarks.paper_ours import Unrolled, remembering, solve_remembering
from benchmarks.paper_settings import METHODS, settings, shortened
from benchmarks.paper_studies import zero_gap
from benchmarks.sequences import Sequences, addition, automaton_task, first_last_xor
from benchmarks.store import Store


def short(table, name):
    return shortened(next(setting for setting in settings(None) if (setting.table, setting.name) == (table, name)))


@pytest.mark.slow
@pytest.mark.parametrize(("table", "name"), [("xor", "T=6, L=5"), ("addition", "base 2"), ("carry", "base 2")])
def test_every_method_leaves_a_cell(table, name, tmp_path):
    setting = short(table, name)
    store = Store(tmp_path / "cells.jsonl")
    run_all([setting], METHODS, 1, store, True)
    cells = {cell["method"]: cell for cell in store.cells()}
    assert set(cells) == set(setting.methods)
    for method, cell in cells.items():
        assert set(cell["tests"]) == set(setting.tests)
        assert all(0 <= share <= 1 for share in cell["tests"].values())
        if method not in ("SG", "STE from STE", "STE from CVX"):
            # Membranes of a hundred thresholds, and a kink at the margin: rounding the weights to float32 alone costs 1e-6.
            assert -1e-12 <= cell["certificate"]["relative_gap"] <= (1e-5 if method == "R-CVX analog" else 1e-6)
    assert min(cells["ours"]["tests"].values()) == 1.0
    # Cells that are there are not run again.
    before = store.path.read_bytes()
    run_all([setting], METHODS, 1, Store(store.path), True)
    assert store.path.read_bytes() == before


def test_the_settings_have_what_was_published():
    for setting in settings("anywhere"):
        assert set(setting.published) <= set(setting.methods) <= set(METHODS)
        assert all(len(figures) == len(setting.tests) for figures in setting.published.values())
        assert len(setting.target) in (0, len(setting.tests))
    assert len(settings("anywhere")) == len(settings(None)) + 6
    assert len({setting.stem for setting in settings("anywhere")}) == len(settings("anywhere"))


def test_a_remembering_net_is_the_unrolled_one():
    torch.manual_seed(0)
    inputs = torch.randn(50, 5, 7)
    unrolled = Unrolled(5, 7, [20, 30, 40], 3)
    with torch.no_grad():
        for parameter in unrolled.parameters():
            parameter.mul_(4)
    net = remembering(unrolled, 5, 7)
    promised = scores_of(unrolled, inputs)
    assert float(promised.std()) > 0.1
    torch.testing.assert_close(scores_of(net, inputs), promised)
    assert not torch.allclose(scores_of(net, inputs.flip(1)), promised)


def test_a_net_that_does_not_remember_is_refused(monkeypatch):
    data = first_last_xor(300, 4)
    data = Sequences(2 * data.inputs - 1, data.targets, 2)
    splits = Splits(data, data, {"test": data})
    net, _ = solve_remembering(splits, [40, 64], 2, 0, witnesses="gaussian")
    assert accuracy(net, data) == 1.0
    forgetting = paper_ours.remembering

    def broken(*args):
        net = forgetting(*args)
        with torch.no_grad():
            net.branches[0].neurons[0].recurrent.weight.zero_()
        return net

    monkeypatch.setattr(paper_ours, "remembering", broken)
    with pytest.raises(RuntimeError, match="differ from the unrolled"):
        solve_remembering(splits, [40, 64], 2, 0, witnesses="gaussian")


def test_a_tuned_reservoir_has_a_branching_ratio_of_one():
    torch.manual_seed(0)
    net, inputs = SequenceNet(3, [60, 60], 2), torch.randn(100, 6, 3)
    for weight in net.branches.parameters():
        torch.nn.init.normal_(weight)
    tune_branching_(net, inputs)
    for branch in net.branches:
        assert [branching_ratio(branch, inputs, layer) for layer in (0, 1)] == pytest.approx([1, 1], abs=0.03)


def test_accuracy_of_steps_of_classes_and_of_two_classes():
    class Given(torch.nn.Module):
        def forward(self, inputs):
            return inputs

    steps = torch.eye(3)[torch.tensor([[0, 1], [2, 2]])]
    assert accuracy(Given(), Sequences(steps, torch.tensor([[0, 2], [1, 0]]), 3)) == 0.75  # the first axis of scores is time
    assert accuracy(Given(), Sequences(torch.tensor([[0.2], [-1.0]]), torch.tensor([1, 1]), 2)) == 0.5


def test_a_carry_that_a_net_gets_wrong_spoils_later_digits():
    class Adds(torch.nn.Module):
        def __init__(self, most):
            super().__init__()
            self.most = most

        def forward(self, inputs):
            totals = (inputs * 2).sum(-1).round().long().clamp(max=self.most)
            return torch.nn.functional.one_hot(totals, 6).float().transpose(0, 1)

    data = addition(200, 3, 5)
    assert autoregressive(Adds(5), data) == 1.0
    assert 0.2 < autoregressive(Adds(2), data) < 0.9  # never a carry


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["RLeaky", "LIFRecurrent"])
@pytest.mark.parametrize("name", ["first XOR last", "parity of ones", "2: repetitions of 10"])
def test_automata_are_rebuilt(name, layer):
    found = rebuild(AUTOMATA[name], layer, length=8, samples=100)
    assert found["mismatch"] == 0
    assert found["tests"] == {"8": 1.0, "100": 1.0}
    assert found["relative_gap"] <= 1e-6


def test_first_last_xor_is_its_automaton():
    task = automaton_task(AUTOMATA["first XOR last"], 100, 9)
    strings = task.inputs[..., 0]
    assert torch.equal(task.targets, (strings[:, 0] != strings[:, -1]).long())
    spikes = transitions(AUTOMATA["first XOR last"], strings.long())
    assert spikes.shape == (9, 100, 20)
    assert bool((spikes.sum(-1) == 2).all())


@pytest.mark.slow
def test_more_neurons_than_samples_meet_the_dual_bound(monkeypatch):
    monkeypatch.setattr("paper_studies.POOL", 300)
    found = zero_gap(0)
    best = found["curves"]["chosen by the solution"]
    assert best[128][0] == pytest.approx(found["dual"], abs=1e-5)
    assert found["used"] <= found["n"] + 1
    assert best[2][0] > best[16][0] > found["dual"] - 1e-9
    assert min(found["curves"]["drawn by chance"][32]) >= found["dual"] - 1e-9
