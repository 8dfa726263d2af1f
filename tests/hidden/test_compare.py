"""Rebuilt layers against their own weights times a gain, on samples that chose no rows."""

from dataclasses import replace

import pytest
import torch

from snn_recon_plugin.hidden.compare import choose_own
from snn_recon_plugin.hidden.simulate import make_simulator
from snn_recon_plugin.networks.private.quiet import quiet

from .tasks import NETS, make_task


def compare(net, forward, change, count=300):
    """The outcome for a net's first layer against its own weight, changed."""
    with quiet(net, seed=0):
        task = make_task(net, forward, count)
        task = replace(task, samples=(torch.arange(count) % 5 > 0).nonzero()[:, 0])
        layer = task.net_map.hidden[0]
        simulator = make_simulator(task, layer, task.compared_samples[0])
        return choose_own(task, 0, simulator.compared, {(layer.synapse, "weight"): change(layer.synapse.weight.detach())})


@pytest.mark.parametrize("name", NETS)
def test_a_tie_keeps_the_own_weights_dead_rows_lose_and_rows_that_differ_beat_own_ones_all_alike(name):
    make, forward = NETS[name]
    for change in (torch.clone, torch.zeros_like):
        decision, values = compare(make(), forward, change)
        assert "no worse than selected candidates" in decision.reason
        assert (decision.gain == 1.0) == (values == {})
        assert decision.heldout_loss[1.0] < torch.inf
    net = make()
    weight = next(parameter for parameter in net.parameters() if parameter.dim() > 1)
    better = weight.detach().clone()
    weight.data[:] = weight.data[:1]
    assert compare(net, forward, lambda _: better) is None
