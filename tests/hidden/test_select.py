"""Selection: which candidates come first, at what price, and with bounded work."""

import pytest
import torch

from snn_recon_plugin.convex import make_loss
from snn_recon_plugin.hidden.select import SelectionProgram, find_usable, select
from snn_recon_plugin.networks.calls.spikes import FilteredSpikes

from ..convex.helpers import collinear, labels


def selected(emitted, targets, loss="cross_entropy", **options):
    return select(SelectionProgram(targets, make_loss(loss), 3, 1.0, **options), emitted)


def made(features):
    return FilteredSpikes(features.float(), (features > 0).float().mean(0), 1)


@pytest.mark.parametrize("loss", ["squared_hinge", "cross_entropy"])
def test_steps_are_bounded_on_candidates_that_nearly_span_each_other(loss):
    program = made(collinear(0, 120, 80, decay=0.98)), labels(1, 120, 3), loss
    found, again, fewer = selected(*program), selected(*program), selected(*program, max_steps=25, settled=0.0)
    assert sorted(found.order.tolist()) == list(range(80))
    assert torch.equal(found.order, again.order)
    assert found.objective == again.objective < fewer.objective


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
    order = selected(made(noise), classes).order.tolist()
    assert set(order[:2]) == {5, 8}
    assert sorted(order) == list(range(12))


def test_where_fewer_are_used_than_needed_the_price_decides():
    classes = torch.arange(60) % 2
    useful, weaker = (classes == 1).float(), (classes == 1).float()
    weaker[:20] = 0.5
    noise = torch.tensor([0.0, 1.0, 1.0, 0.0]).repeat(15)
    program = SelectionProgram(classes, make_loss("cross_entropy"), 2, 1.0, strength=0.2)
    selection = select(program, made(torch.stack([noise, weaker, useful], 1)))
    assert selection.used < 3
    assert selection.order.tolist() == [2, 1, 0]
    assert selection.strength == pytest.approx(0.2)
