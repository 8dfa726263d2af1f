"""Batch norms in training mode: values, gradients and running statistics are those of the norm itself."""

import copy

import pytest
import torch
from torch import nn

from snn_recon_plugin import fast_steps, over_time

from .loops import BATCH, STEPS, images, sequential

NORMS = {
    "usual": {},
    "no statistics": {"track_running_stats": False},
    "no weights": {"affine": False},
}


@pytest.mark.parametrize("options", NORMS.values(), ids=NORMS)
def test_running_statistics_count_each_step(options):
    torch.manual_seed(0)
    net = sequential(nn.BatchNorm2d(4, **options))
    other, forward = copy.deepcopy(net), over_time(STEPS)
    handle = fast_steps(net, [(images(), torch.zeros(BATCH))], forward=forward)
    assert handle.layers["0"] == f"computed once for {STEPS} steps"
    for _ in range(3):
        x = images()
        sums = [forward(other, x)[0].sum(), handle(net, x)[0].sum()]
        assert torch.equal(*sums)
        for each in sums:
            each.backward()
    for name, value in net[1].state_dict().items():
        torch.testing.assert_close(value, other[1].state_dict()[name])
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-4)


def test_a_norm_behind_spikes_runs_at_each_step():
    torch.manual_seed(0)
    net = sequential()
    net.insert(3, nn.BatchNorm2d(4))  # behind the hidden neuron
    handle = fast_steps(net, [(images(), torch.zeros(BATCH))], forward=over_time(STEPS))
    assert handle.layers["3"] == f"as usual, {STEPS} steps"
    assert handle.layers["5"] == f"computed once for {STEPS} steps"


def test_an_average_of_all_batches_reads_its_own_count():
    net = sequential(nn.BatchNorm2d(4, momentum=None))
    handle = fast_steps(net, [(images(), torch.zeros(BATCH))], forward=over_time(STEPS))
    assert handle.layers["3"] == f"as usual, {STEPS} steps"
    assert handle.reason == "it reads values of tensors (__float__)"
