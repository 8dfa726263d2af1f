"""Selection: which candidates come first, at what price, and with bounded work."""

import pytest
import torch

from snn_recon_plugin.convex import make_loss
from snn_recon_plugin.convex.solvers.fista import accelerate
from snn_recon_plugin.hidden import select as module
from snn_recon_plugin.hidden.select import MAX_STEPS, SelectionProgram, find_usable, select
from snn_recon_plugin.hidden.simulate import Emitted

from ..convex.helpers import collinear, labels

RESCUES = ("newton.Newton.solve", "augmented_lagrangian.AugmentedLagrangian.solve")


def hard(count=120, candidates=80, outputs=3):
    """Candidates that nearly span each other, on which Newton steps creep, and labels by chance."""
    features = collinear(0, count, candidates, decay=0.98).float()
    return Emitted(features[:, :, None], torch.full((candidates,), 0.5)), labels(1, count, outputs)


def selected(emitted, targets, loss="squared_hinge", **options):
    return select(SelectionProgram(targets, make_loss(loss), 3, 1.0, **options), emitted)


@pytest.mark.parametrize("loss", ["squared_hinge", "cross_entropy"])
def test_work_is_bounded_on_a_hard_program(loss, monkeypatch):
    runs = []
    monkeypatch.setattr(module, "accelerate", lambda *given, **named: runs.append(accelerate(*given, **named)) or runs[-1])
    found = selected(*hard(), loss=loss)
    fewer = selected(*hard(), loss=loss, max_steps=MAX_STEPS // 8, settled=0.0)
    assert fewer.objective > found.objective
    many, few = (products for _, products in runs)
    assert 2 * few < many <= 3 * MAX_STEPS  # two products a step, those that shorten the first ones, and power iterations


def test_no_rescue_is_entered(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a solver's rescue")

    for name in RESCUES:
        monkeypatch.setattr(f"snn_recon_plugin.convex.solvers.{name}", refuse)
    emitted, targets = hard()
    assert sorted(selected(emitted, targets).order.tolist()) == list(range(80))


def test_the_same_bits_twice():
    emitted, targets = hard()
    one, two = selected(emitted, targets), selected(emitted, targets)
    assert torch.equal(one.order, two.order)
    assert one.objective == two.objective


def made(features):
    features = torch.as_tensor(features, dtype=torch.float32)
    return Emitted(features[:, :, None], (features > 0).float().mean(0))


def test_dead_always_on_and_double_candidates_are_dropped_and_counted():
    some = torch.tensor([0.0, 1.0, 0.0, 2.0])
    emitted = Emitted(
        torch.stack([some, torch.zeros(4), torch.ones(4), some, 2 - some], 1)[:, :, None], torch.tensor([0.4, 0, 1, 0.4, 0.5])
    )
    kept, counts = find_usable(emitted)
    assert kept.tolist() == [0, 4]
    assert counts == {"dead": 1, "always on": 1, "double": 1}


def test_the_candidate_that_tells_the_classes_is_wanted_most():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    noise = (torch.rand(60, 12, generator=generator) < 0.5).float()
    noise[:, 5] = (labels == 1).float()
    noise[:, 8] = (labels == 2).float()
    program = SelectionProgram(labels, make_loss("cross_entropy"), 3, 1.0)
    selection = select(program, made(noise))
    assert set(selection.order[:2].tolist()) == {5, 8}
    assert sorted(selection.order.tolist()) == list(range(12))


def test_where_fewer_are_used_than_needed_the_price_decides():
    labels = torch.arange(60) % 2
    useful, weaker = (labels == 1).float(), (labels == 1).float()
    weaker[:20] = 0.5
    noise = torch.tensor([0.0, 1.0, 1.0, 0.0]).repeat(15)
    program = SelectionProgram(labels, make_loss("cross_entropy"), 2, 1.0, strength=0.2)
    selection = select(program, made(torch.stack([noise, weaker, useful], 1)))
    assert selection.used < 3
    assert selection.order.tolist() == [2, 1, 0]
    assert selection.strength == pytest.approx(0.2)
