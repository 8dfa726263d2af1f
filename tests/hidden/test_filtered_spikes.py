"""Filtered spikes of a layer, recorded batch by batch."""

import pytest
import torch

from snn_recon_plugin.hidden.filtered_spikes import record_filtered
from snn_recon_plugin.networks.capture import neuron_spikes
from snn_recon_plugin.networks.private.quiet import quiet

from ..helpers import loop_net
from .tasks import make_task


@pytest.mark.parametrize("size", [100, 150])
def test_a_rate_is_over_all_samples_however_they_are_batched(size):
    net = loop_net()
    with quiet(net, seed=0):
        task = make_task(net, count=150, size=size)
        layer = task.net_map.hidden[0]
        found = record_filtered(task, layer, task.batches, lambda features: features)
        spikes = neuron_spikes(net, task.batches, layer, task.forward)
    assert found.shape == (150, spikes.shape[2])
    torch.testing.assert_close(found.rate, spikes.float().mean((0, 1)))
