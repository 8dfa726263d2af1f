import pytest
import torch

from snn_recon_plugin.errors import OptionError
from snn_recon_plugin.networks.population import block_mean, block_sum, outputs_per_class, spread


def test_blocks_are_those_of_snntorch():
    from snntorch.functional import acc

    spikes = torch.bernoulli(torch.full((5, 7, 12), 0.4))
    assert torch.equal(block_sum(spikes.sum(0), 4), acc._population_code(spikes, 3, 12))
    assert torch.equal(block_mean(spikes, 4, -1), block_sum(spikes, 4) / 4)
    assert block_mean(torch.rand(12, 5), 4).shape == (3, 5)


def test_outputs_of_a_class_keep_their_differences_in_proportion():
    rows, own = torch.randn(3, 6).double(), torch.randn(12, 6)
    rows[:, 2] = 0.0
    weight = spread(rows, 4, own, 0.5)
    assert torch.allclose(block_mean(weight, 4), rows)
    assert not weight[:, 2].any()
    differences = weight - rows.repeat_interleave(4, 0)
    assert float(differences.norm() / rows.repeat_interleave(4, 0).norm()) == pytest.approx(0.5)
    assert torch.allclose(spread(rows, 4, torch.ones(12, 6), 0.5), rows.repeat_interleave(4, 0))


def test_one_output_a_class_is_left_alone():
    values = torch.randn(3, 5)
    assert block_sum(values, 1) is block_mean(values, 1) is spread(values, 1, values, 0.5) is values


def test_numbers_of_classes():
    assert [outputs_per_class(12, classes) for classes in (None, 12, 3)] == [1, 1, 4]
    with pytest.raises(OptionError, match="5 classes for a readout of 12 outputs"):
        outputs_per_class(12, 5)
