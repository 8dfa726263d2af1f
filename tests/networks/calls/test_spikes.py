import math

import torch

from snn_recon_plugin.networks.calls.calls import SpikeCounter


def test_rates_are_counted_over_steps_of_different_shapes():
    counter = SpikeCounter()
    counter.add(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]))
    assert counter.spikes.tolist() == [3, 1]
    assert counter.rates.tolist() == [1.0, torch.tensor(1 / 3)]
    assert counter.stats().always_on == 0.5
    assert not counter.varies
    counter.add(torch.tensor([[1.0], [0.0]]))
    assert counter.varies
    assert counter.rate == counter.stats().firing_rate == 5 / 8
    assert math.isnan(counter.stats().silent)
