"""The order of candidates takes bounded work, and no solver's rescue."""

import pytest
import torch

from snn_recon_plugin.convex import make_loss
from snn_recon_plugin.witnesses.selection import STEPS, Selector
from snn_recon_plugin.witnesses.simulate import Emitted

from ..convex.helpers import collinear, labels

RESCUES = ("native.split_steps", "native.descend", "smoothing.solve_native", "native.newton_direction")


def hard(count=120, candidates=80, outputs=3):
    """Candidates that nearly span each other, on which Newton steps creep, and labels by chance."""
    features = collinear(0, count, candidates, decay=0.98).float()
    return Emitted(features[:, :, None], torch.full((candidates,), 0.5)), labels(1, count, outputs)


def selected(emitted, targets, width=40, loss="squared_hinge", **options):
    return Selector(targets, make_loss(loss), 3, 1.0, **options).select(emitted, width)


@pytest.mark.parametrize("loss", ["squared_hinge", "cross_entropy"])
def test_products_are_bounded_on_a_hard_program(loss):
    emitted, targets = hard()
    found = selected(emitted, targets, width=10_000, loss=loss)  # never enough: all strengths are tried
    # Three programs: two products a step, those that shorten the first steps, and power iterations before the first.
    assert found.products <= 3 * 3 * STEPS
    fewer = selected(emitted, targets, width=10_000, loss=loss, steps=STEPS // 8, settled=0.0)
    assert 2 * fewer.products < found.products
    assert fewer.objective > found.objective


def test_no_rescue_is_entered(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a solver's rescue")

    for name in RESCUES:
        monkeypatch.setattr(f"snn_recon_plugin.convex.{name}", refuse)
    emitted, targets = hard()
    assert sorted(selected(emitted, targets).order.tolist()) == list(range(80))


def test_the_same_bits_twice():
    emitted, targets = hard()
    one, two = selected(emitted, targets), selected(emitted, targets)
    assert torch.equal(one.order, two.order)
    assert torch.equal(one.dual, two.dual)
    assert one.products == two.products
