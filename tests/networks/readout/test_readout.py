import pytest
import torch
from snntorch.functional import acc

from snn_recon_plugin.networks.readout.readout import (
    ALL_READOUTS,
    KINDS,
    SPIKE_READOUTS,
    block_mean,
    block_sum,
    rows_of_outputs,
    step_weights,
)

VALUES = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.decoding.exactness == "exact"])
def test_exact_scores_are_the_weighted_sum_of_the_steps(kind):
    scores = KINDS[kind].decoding.decode(VALUES)
    if KINDS[kind].decoding.per_step:
        assert scores.shape == (4, 5, 3)
        scores = scores.mean(1)
    assert torch.allclose(scores, torch.einsum("t,tbc->bc", step_weights(kind, 5), VALUES))


def test_other_kinds_have_a_linear_score_to_solve_instead():
    assert step_weights("membrane_max", 4).tolist() == [0.25] * 4
    for kind in (*SPIKE_READOUTS, "custom"):
        assert step_weights(kind, 4).tolist() == [0.25] * 4
    spikes = torch.zeros(4, 1, 3)
    spikes[2:, 0, 0] = spikes[1, 0, 1] = 1
    decoded = {kind: KINDS[kind].decoding.decode(spikes)[0].tolist() for kind in SPIKE_READOUTS}
    assert decoded == {
        "spike_count": [2, 1, 0],
        "spike_rate": [0.5, 0.25, 0],
        "first_spike": [-2, -1, -3],
        "spike_per_step": spikes[:, 0].tolist(),
    }


def test_a_loss_prescribes_the_decoding_of_the_same_signal():
    assert KINDS["membrane_mean"].decoded_by("max").name == "membrane_max"
    assert KINDS["linear_last"].decoded_by("per_step").name == "linear_per_step"
    assert set(SPIKE_READOUTS) < set(ALL_READOUTS) == set(KINDS)


def test_blocks_are_those_of_snntorch():
    spikes = torch.bernoulli(torch.full((5, 7, 12), 0.4))
    assert torch.equal(block_sum(spikes.sum(0), 4), acc._population_code(spikes, 3, 12))
    assert torch.equal(block_mean(spikes, 4, -1), block_sum(spikes, 4) / 4)
    assert block_mean(torch.rand(12, 5), 4).shape == (3, 5)


def test_outputs_of_a_class_keep_their_differences_in_proportion():
    rows, own = torch.randn(3, 6).double(), torch.randn(12, 6)
    rows[:, 2] = 0.0
    weight = rows_of_outputs(rows, 4, own, share=0.5)
    assert torch.allclose(block_mean(weight, 4), rows)
    assert not weight[:, 2].any()
    differences = weight - rows.repeat_interleave(4, 0)
    assert float(differences.norm() / rows.repeat_interleave(4, 0).norm()) == pytest.approx(0.5)
    assert torch.allclose(rows_of_outputs(rows, 4, torch.ones(12, 6), share=0.5), rows.repeat_interleave(4, 0))
    # One output a class is left alone.
    assert block_sum(rows, 1) is block_mean(rows, 1) is rows_of_outputs(rows, 1, rows, share=0.5) is rows
