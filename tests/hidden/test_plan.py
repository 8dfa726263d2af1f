"""How many convolutions are rebuilt: from the input up, within max_cost, and the report says so."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import convex_init_
from snn_recon_plugin.hidden import WitnessOptions, plan_layers
from snn_recon_plugin.networks import quiet

from ..helpers import train_data
from ..nets import convolutions
from .tasks import OVER, make_task


def deep():
    return convolutions((1, 8, 8), nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3))


def plan(total, budget, **options):
    with quiet(net := deep(), seed=0):
        return plan_layers(make_task(net, OVER), WitnessOptions(**options), total, budget)


def test_more_data_or_a_larger_budget_rebuild_more_layers():
    layers = [plan(total, 1.0).layers for total in (200, 20_000, 2_000_000, None)]
    assert layers == sorted(layers)
    assert layers[0] == 1
    assert layers[-1] == 3
    assert plan(200, float("inf")).layers == 3
    some = plan(200, 1.0)
    assert plan(200, sum(some.epochs[:2]) + 1e-6).layers == 2
    assert plan(400, 1.0).epochs == pytest.approx([each / 2 for each in some.epochs])
    assert all(more > each for more, each in zip(plan(200, 1.0, n_candidates=12.0).epochs, some.epochs, strict=True))


def test_the_others_get_a_rate_and_the_report_says_what_would_rebuild_them():
    net = deep()
    loader = DataLoader(TensorDataset(*train_data(300)), 50)
    report = convex_init_(net, loader, forward=OVER, progress=False, max_cost=0.1)
    assert [layer.witnesses is None for layer in report.layers[1:]] == [True, True]
    assert all("max_cost" in layer.reason for layer in report.layers[1:])
    assert all(0.02 < layer.stats.firing_rate < 0.4 for layer in report.layers[1:])
    everything = convex_init_(deep(), loader, forward=OVER, progress=False, hidden="reconstruct", max_cost=0.1)
    assert all(layer.witnesses is not None for layer in everything.layers)


def test_few_images_choose_rows_in_small_batches():
    """One batch of all samples: the chosen ones alone are run, in pieces."""
    net, sizes = deep(), []
    net[1].register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    inputs, labels = train_data(1000)
    used = convex_init_(net, [(inputs, labels)], forward=OVER, progress=False).to_dict()["layers"]
    assert used
    assert 32 in sizes
    assert torch.is_grad_enabled()
