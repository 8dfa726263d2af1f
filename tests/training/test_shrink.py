"""The size of the readout that training begins from."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from snn_recon_plugin import convex_init_
from snn_recon_plugin.demo import build_network
from snn_recon_plugin.training.shrink import LARGEST, shrink_readout

from .runs import DATA, MARKS, Counting, Module, assert_equal, callback, fit, state, validation

pytestmark = MARKS


def network(factor=1.0):
    torch.manual_seed(0)
    net = build_network(64, 48, 10, 4)
    with torch.no_grad():
        for parameter in net.fc2.parameters():
            parameter.mul_(factor)
    return net


def norm(layer):
    return float(torch.cat([layer.weight.flatten(), layer.bias]).detach().norm())


def started(net, **options):
    targets = nn.functional.one_hot(DATA.train_labels[:400]).float() if "loss" in options else DATA.train_labels[:400]
    return convex_init_(net, [(DATA.train_inputs[:400], targets)], progress=False, hidden="keep", **options)


def scores(net):
    with torch.no_grad():
        return net(DATA.test_inputs).mean(0)


def test_a_large_readout_shrinks_to_at_most_six_times_its_old_size_and_decides_alike():
    net = network()
    before = norm(net.fc2)
    report = started(net)
    solved, decided = norm(net.fc2), scores(net)
    factor = shrink_readout(report)
    assert factor in {2.0**-power for power in range(1, 10)}
    assert norm(net.fc2) == pytest.approx(factor * solved)
    assert LARGEST / 2 * before < norm(net.fc2) <= LARGEST * before
    assert torch.equal(scores(net), factor * decided)
    report.undo()
    assert norm(net.fc2) == before


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: network(100.0), {}),  # a readout that was as large
        (lambda: network(0.0), {}),  # no size
        (network, {"loss": nn.MSELoss()}),  # other targets
        (Counting, {}),  # decided by spikes
        (network, {"allow_tied": True}),  # perhaps another layer's
    ],
)
def test_other_readouts_stay(make, options):
    net = make()
    report = started(net, **options)
    written = state(net)
    assert shrink_readout(report) == 1.0
    assert_equal(state(net), written)


def test_weights_made_of_others_stay():
    net = network()
    parametrizations.weight_norm(net.fc2)
    report = started(net)
    written = state(net)
    assert shrink_readout(report) == 1.0
    assert_equal(state(net), written)


def test_a_run_trains_from_the_small_readout_and_evaluates_the_solved_one():
    untrained, _ = fit(epochs=0)
    largest = LARGEST * norm(untrained.net.fc2)
    trained = []

    class Watching(Module):
        def on_train_batch_start(self, batch, batch_idx):
            trained.append(norm(self.net.fc2))

    made = callback(average=0.99, every_n_epochs=0)
    module, _ = fit(made, Watching, val=validation(), epochs=1, val_check_interval=1, accumulate_grad_batches=4)
    evaluated = module.seen[1].norm()  # before the first step; the first one is of Lightning's sanity check
    assert trained[0] <= largest < evaluated
