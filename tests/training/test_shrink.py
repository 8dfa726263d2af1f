"""The size of the readout that training begins from."""

import norse.torch as norse
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from snn_recon_plugin import convex_init_
from snn_recon_plugin.demo import build_network
from snn_recon_plugin.training.shrink import LARGEST, relative_size, shrink_readout

from .runs import DATA, MARKS, Counting, Module, assert_equal, callback, fit, state, validation

pytestmark = MARKS


def network():
    torch.manual_seed(0)
    return build_network(64, 48, 10, 4)


def size(net):
    return relative_size(list(net.fc2.parameters()))


def started(net, **options):
    targets = nn.functional.one_hot(DATA.train_labels[:400]).float() if "loss" in options else DATA.train_labels[:400]
    return convex_init_(net, [(DATA.train_inputs[:400], targets)], progress=False, hidden="keep", **options)


def scores(net):
    with torch.no_grad():
        return net(DATA.test_inputs).mean(0)


def test_a_fresh_readout_has_about_the_size_one():
    assert size(network()) == pytest.approx(1.0, abs=0.1)


def test_a_large_readout_shrinks_to_at_most_six_times_a_fresh_one_and_decides_alike():
    net = network()
    report = started(net)
    solved, decided = size(net), scores(net)
    factor = shrink_readout(report)
    assert factor in {2.0**-power for power in range(1, 10)}
    assert size(net) == pytest.approx(factor * solved)
    assert LARGEST / 2 < size(net) <= LARGEST
    assert torch.equal(scores(net), factor * decided)
    assert shrink_readout(report) == 1.0
    report.undo()
    assert size(net) == size(network())


class Resting(nn.Module):
    """Outputs of Norse whose membranes rest at 0.1."""

    def __init__(self):
        super().__init__()
        parameters = norse.LIParameters(v_leak=torch.tensor(0.1))
        self.layers = norse.SequentialState(nn.Linear(64, 48), norse.LIFCell(), nn.Linear(48, 10), norse.LICell(p=parameters))

    def forward(self, x):
        state, membranes = None, []
        for _ in range(16):
            membrane, state = self.layers(x, state)
            membranes.append(membrane)
        return torch.stack(membranes)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (network, {"strength": 10.0}),  # one that is small
        (network, {"loss": nn.MSELoss()}),  # other targets
        (Counting, {}),  # decided by spikes
        (Resting, {"strength": 1e-6}),  # an offset that has no factor
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
    trained = []

    class Watching(Module):
        def on_train_batch_start(self, batch, batch_idx):
            trained.append(size(self.net))

    made = callback(average=0.99, every_n_epochs=0)
    module, _ = fit(made, Watching, val=validation(), epochs=1, val_check_interval=1, accumulate_grad_batches=4)
    evaluated = relative_size([module.seen[1]])  # before the first step; the first one is of Lightning's sanity check
    assert trained[0] <= LARGEST < evaluated
