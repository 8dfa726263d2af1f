import pytest
import torch

from snn_recon_plugin.networks import measure_subthreshold
from snn_recon_plugin.networks.decode import step_weights
from snn_recon_plugin.networks.output_filters import filters_of

snn = pytest.importorskip("snntorch")
STEPS, CPU = 8, torch.device("cpu")


def units(beta, threshold=1.0):
    return measure_subthreshold("out", snn.Leaky(beta=torch.tensor(beta), threshold=torch.tensor(threshold)), STEPS, 3, CPU).units


def test_membranes_are_filtered_by_the_leak_of_each_output():
    found = filters_of("membrane_mean", step_weights("membrane_mean", STEPS), units([0.5, 0.9, 0.5]))
    for output, beta in enumerate([0.5, 0.9, 0.5]):
        expected = [sum(beta**k for k in range(STEPS - t)) / STEPS for t in range(STEPS)]
        assert found.filters[found.index[output]].tolist() == pytest.approx(expected, rel=1e-5)
    assert found.gains.tolist() == pytest.approx(found.step_gains.mean(0).tolist())


def test_spikes_follow_the_mean_current_over_the_threshold():
    found = filters_of("spike_count", step_weights("spike_count", STEPS), units([0.5, 0.9, 0.9], [1.0, 1.0, 2.0]))
    gains = found.gains
    assert float(gains[0]) == pytest.approx(float(gains[1]))  # the leak makes no difference to a constant current
    assert float(gains[1]) == pytest.approx(2 * float(gains[2]))  # a threshold twice as high halves what it is worth
