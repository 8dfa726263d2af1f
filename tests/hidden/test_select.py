"""Selection: which candidates come first, and at what price."""

import pytest
import torch

from snn_recon_plugin.convex import Features, Problem, solve
from snn_recon_plugin.hidden.select import find_usable, select
from snn_recon_plugin.networks.calls.calls import FilteredSpikes

from ..convex.helpers import collinear, labels


def lasso(emitted, targets, loss="squared_hinge", outputs=3):
    return Problem(Features(emitted.features), targets, loss=loss, penalty="group_l1", num_outputs=outputs)


def made(features):
    return FilteredSpikes(features.float(), (features > 0).float().mean(0), 1)


@pytest.mark.parametrize("samples", [120, 60])
def test_candidates_that_nearly_span_each_other_are_ordered_twice_alike(samples):
    """Also with fewer samples than candidates, from a matrix of samples."""
    program = lasso(made(collinear(0, 120, 80, decay=0.98)[:samples]), labels(1, samples, 3))
    found, again = (select(program, 40) for _ in range(2))
    assert sorted(found[0].tolist()) == list(range(80))
    assert torch.equal(found[0], again[0])
    assert 0 < found[1] <= 52


@pytest.mark.parametrize("samples", [300, 40])
def test_the_weights_are_those_of_the_group_lasso(samples, monkeypatch):
    """Against the certified solution of the same program, at a strength that uses a few candidates."""
    classes = labels(0, samples, 3)
    features = (torch.rand(samples, 60, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    features[:, :3] = ((torch.nn.functional.one_hot(classes) + features[:, :3]) > 0).float()
    monkeypatch.setattr("snn_recon_plugin.hidden.select.STRENGTH", 0.2)
    program = lasso(made(features), classes, "squared")
    order, used = select(program, 40)
    solution = solve(program.with_strength(0.2 * program.critical_strength()))
    sizes = solution.weight.norm(dim=0)
    assert set(order[:3].tolist()) == set(sizes.argsort(descending=True)[:3].tolist())
    assert set((sizes > 0.3 * sizes.max()).nonzero()[:, 0].tolist()) <= set(order[:used].tolist())


def test_dead_always_on_and_double_candidates_are_dropped_and_counted():
    some = torch.tensor([0.0, 1.0, 0.0, 2.0])
    features = torch.stack([some, torch.zeros(4), torch.ones(4), some, 2 - some], 1)
    kept, counts = find_usable(FilteredSpikes(features, torch.tensor([0.4, 0, 1, 0.4, 0.5]), 1))
    assert kept.tolist() == [0, 4]
    assert counts == {"dead": 1, "always on": 1, "double": 1}


def test_the_candidate_that_tells_the_classes_is_wanted_most():
    classes = torch.arange(60) % 3
    noise = (torch.rand(60, 12, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    noise[:, 5] = (classes == 1).float()
    noise[:, 8] = (classes == 2).float()
    order = select(lasso(made(noise), classes), 12)[0].tolist()
    assert set(order[:2]) == {5, 8}
    assert sorted(order) == list(range(12))


def test_where_fewer_are_used_than_needed_the_price_decides(monkeypatch):
    classes = torch.arange(60) % 2
    useful, weaker = (classes == 1).float(), (classes == 1).float()
    weaker[:20] = 0.5
    noise = torch.tensor([0.0, 1.0, 1.0, 0.0]).repeat(15)
    program = lasso(made(torch.stack([noise, weaker, useful], 1)), classes, outputs=2)
    monkeypatch.setattr("snn_recon_plugin.hidden.select.STRENGTH", 0.4)
    order, used = select(program, 3)
    assert used < 3
    assert order.tolist() == [2, 1, 0]
