"""Comparison of processes that share the samples, before they start."""

import pytest
import snntorch.functional as SF
import torch
from torch import nn

from snn_recon_plugin import convex_init_
from snn_recon_plugin.distributed import SingleProcess

from .helpers import batches, loop_net


class ComparedError(Exception):
    """End of the comparison of processes."""


class Recorded(SingleProcess):
    """Records what processes compare before they start."""

    is_distributed = True

    def __init__(self):
        self.found = {}

    def check_equal(self, what, value):
        self.found[what] = value
        if "checksum" in what:
            raise ComparedError


def compared(net, **options):
    shards = Recorded()
    with pytest.raises(ComparedError):
        convex_init_(net, batches(20), shards=shards, **options)
    return shards.found


def test_processes_compare_buffers_as_well():
    """beta and threshold of snnTorch are buffers."""
    same, other, renamed = loop_net(), loop_net(), loop_net()
    other.lif1.beta.fill_(0.5)
    renamed.visits[0] = 1.0
    reference = compared(loop_net())
    assert compared(same) == reference
    assert compared(other) != reference
    assert compared(renamed) != reference


@pytest.mark.parametrize(
    "other",
    [
        nn.CrossEntropyLoss(torch.arange(1.0, 11)),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(ignore_index=3),
        nn.NLLLoss(),
    ],
)
def test_processes_compare_all_of_a_loss(other):
    reference = compared(loop_net(), loss=nn.CrossEntropyLoss())
    assert compared(loop_net(), loss=nn.CrossEntropyLoss()) == reference
    assert compared(loop_net(), loss=other)["option loss"] != reference["option loss"]


def test_processes_compare_target_counts():
    found = [compared(loop_net(), loss=SF.mse_count_loss(rate))["option loss"] for rate in (0.8, 0.8, 0.7)]
    assert found[0] == found[1] != found[2]
