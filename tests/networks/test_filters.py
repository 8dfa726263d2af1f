import math

import pytest
import snntorch as snn
import torch

from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.networks import filters
from snn_recon_plugin.networks.filters import make_filters, measure_response
from snn_recon_plugin.networks.readouts import step_weights

STEPS = 12
CPU = torch.device("cpu")


def leaky(beta):
    return [beta**k for k in range(STEPS)]


def synaptic(alpha, beta):
    return [sum(alpha**j * beta ** (k - j) for j in range(k + 1)) for k in range(STEPS)]


def alpha_function(alpha, beta):
    tau = math.log(alpha) / (math.log(beta) - math.log(alpha)) + 1
    return [tau * (alpha**k - beta**k) for k in range(STEPS)]


def lapicque(beta):
    rate = -math.log(beta)  # time_step / (R C) with R = 1
    return [rate * (1 - rate) ** k for k in range(STEPS)]


CASES = {
    "Leaky": (lambda: snn.Leaky(beta=0.9, reset_mechanism="none"), leaky(0.9)),
    "Leaky at once": (lambda: snn.Leaky(beta=0.9, reset_mechanism="none", reset_delay=False), leaky(0.9)),
    "Leaky learned": (lambda: snn.Leaky(beta=0.7, reset_mechanism="none", learn_beta=True), leaky(0.7)),
    "Leaky clamped": (lambda: snn.Leaky(beta=1.3, reset_mechanism="none"), leaky(1.0)),
    "Leaky of one-element beta": (lambda: snn.Leaky(beta=torch.tensor([0.9]), reset_mechanism="none"), leaky(0.9)),
    "Synaptic": (lambda: snn.Synaptic(alpha=0.8, beta=0.9, reset_mechanism="none"), synaptic(0.8, 0.9)),
    "Alpha": (lambda: snn.Alpha(alpha=0.9, beta=0.8, reset_mechanism="none"), alpha_function(0.9, 0.8)),
    "Lapicque": (lambda: snn.Lapicque(beta=0.8, reset_mechanism="none"), lapicque(0.8)),
    "Leaky that never reaches its threshold": (lambda: snn.Leaky(beta=0.9, threshold=1e7), leaky(0.9)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_response_is_the_closed_form(name):
    make, kernel = CASES[name]
    response = measure_response("out", make(), STEPS, 4, CPU)
    expected = torch.zeros(STEPS, STEPS, dtype=torch.float64)
    for t in range(STEPS):
        expected[t:, t] = torch.tensor(kernel[: STEPS - t], dtype=torch.float64)
    # The neuron's own constants are single precision numbers; the recursion on them runs in double precision.
    assert torch.allclose(response.matrix, expected, rtol=1e-5, atol=1e-6)
    assert response.matrix.dtype == torch.float64
    assert not response.rest.any()


def test_double_precision_is_used():
    beta = float(torch.tensor(0.9))
    response = measure_response("out", snn.Leaky(beta=0.9, reset_mechanism="none"), STEPS, 1, CPU)
    assert response.matrix[-1, 0] == pytest.approx(beta ** (STEPS - 1), rel=1e-14)


def test_a_neuron_that_insists_on_single_precision():
    class Single(snn.Leaky):
        def forward(self, input_, mem=None):
            if input_.dtype == torch.float64:
                raise RuntimeError("expected Float but found Double")
            return super().forward(input_, mem)

    response = measure_response("out", Single(beta=0.5, reset_mechanism="none"), 4, 2, CPU)
    assert response.matrix[:, 0].tolist() == [1.0, 0.5, 0.25, 0.125]


def test_a_constant_drive_shows_at_rest():
    class Driven(snn.Leaky):
        def forward(self, input_, mem=None):
            return super().forward(input_ + 0.5, mem)

    response = measure_response("out", Driven(beta=0.5, reset_mechanism="none"), 3, 2, CPU)
    assert response.rest.tolist() == [0.5, 0.75, 0.875]
    assert response.matrix[:, 0].tolist() == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("threshold", [0.01, 1.0, 20.0])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("cls", ["Leaky", "Lapicque"])
def test_a_reset_leaves_the_response_below_the_threshold(cls, reset, threshold):
    resetting, still = (
        measure_response("out", getattr(snn, cls)(beta=0.9, reset_mechanism=how, threshold=threshold), STEPS, 3, CPU)
        for how in (reset, "none")
    )
    assert (resetting.affine, still.affine) == (False, True)
    assert torch.allclose(resetting.matrix, still.matrix, rtol=1e-5)


def test_changing_the_attribute_later_is_seen_through():
    neuron = snn.Leaky(beta=0.9)
    neuron.reset_mechanism = "none"
    assert not measure_response("out", neuron, STEPS, 3, CPU).affine


def test_a_neuron_that_spikes_without_an_input_is_refused():
    with pytest.raises(UnsupportedModuleError, match=r"'lif9' \(Leaky\), which spikes without an input") as error:
        measure_response("lif9", snn.Leaky(beta=0.9, threshold=-1.0), STEPS, 3, CPU)
    assert "reset_mechanism='none'" in error.value.fix


def test_units_that_differ_have_a_response_each():
    betas = [0.5, 0.9, 0.5]
    response = measure_response("out", snn.Leaky(beta=torch.tensor(betas), reset_mechanism="none"), STEPS, 3, CPU)
    assert len(response.units.matrices) == 2  # one for each beta that there is
    currents = torch.randn(STEPS, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    membranes = response.membranes(currents)
    for unit, beta in enumerate(betas):
        own = measure_response("out", snn.Leaky(beta=beta, reset_mechanism="none"), STEPS, 3, CPU)
        assert torch.allclose(response.units.matrices[response.units.index[unit]], own.matrix, rtol=1e-6)
        assert torch.allclose(membranes[..., unit], own.membranes(currents)[..., unit], rtol=1e-6)
        assert response.lifts()[unit] == pytest.approx(float(own.lifts()))
    assert torch.allclose(response.matrix, response.units.matrices[response.units.index].mean(0))


@pytest.mark.parametrize("betas", [0.9, [0.5, 0.9, 0.5]])
def test_impulses_measured_one_at_a_time_give_the_same_response(betas, monkeypatch):
    """With many steps and outputs, all at once would take more memory than training."""
    neuron = snn.Leaky(beta=torch.tensor(betas), reset_mechanism="none")
    whole = measure_response("out", neuron, STEPS, 3, CPU)
    monkeypatch.setattr(filters, "_IMPULSE_BYTES", 1)
    monkeypatch.setattr(filters, "_IMPULSES", 1)
    apart = measure_response("out", neuron, STEPS, 3, CPU)
    assert torch.equal(apart.matrix, whole.matrix)
    assert (apart.units is None) == (whole.units is None)


def test_a_vector_of_the_same_value_is_one_response():
    one, each = (snn.Leaky(beta=beta, reset_mechanism="none") for beta in (0.9, torch.full((3,), 0.9)))
    responses = [measure_response("out", neuron, STEPS, 3, CPU) for neuron in (one, each)]
    assert responses[1].units is None
    assert torch.equal(responses[0].matrix, responses[1].matrix)


@pytest.mark.parametrize("learned", [False, True])
def test_thresholds_tell_the_units_of_a_resetting_neuron_apart(learned):
    neuron = snn.Leaky(beta=0.9, threshold=torch.tensor([0.5, 1.5, 1.0]), learn_threshold=learned)
    units = measure_response("out", neuron, STEPS, 3, CPU).units
    assert units.thresholds[units.index].tolist() == pytest.approx([0.5, 1.5, 1.0])
    # Without a reset a threshold changes nothing.
    still = snn.Leaky(beta=0.9, threshold=torch.tensor([0.5, 1.5, 1.0]), reset_mechanism="none")
    assert measure_response("out", still, STEPS, 3, CPU).units is None


def units(beta, threshold=1.0):
    return measure_response("out", snn.Leaky(beta=torch.tensor(beta), threshold=torch.tensor(threshold)), STEPS, 3, CPU).units


def test_membranes_are_filtered_by_the_leak_of_each_output():
    found = make_filters(step_weights("membrane_mean", STEPS), units([0.5, 0.9, 0.5]), spiking=False)
    for output, beta in enumerate([0.5, 0.9, 0.5]):
        expected = [sum(beta**k for k in range(STEPS - t)) / STEPS for t in range(STEPS)]
        assert found.filters[found.index[output]].tolist() == pytest.approx(expected, rel=1e-5)
    assert found.gains.tolist() == pytest.approx(found.step_gains.mean(0).tolist())


def test_spikes_follow_the_mean_current_over_the_threshold():
    weights, own = step_weights("spike_count", STEPS), units([0.5, 0.9, 0.9], [1.0, 1.0, 2.0])
    gains = make_filters(weights, own, spiking=True).gains
    assert float(gains[0]) == pytest.approx(float(gains[1]))  # the leak makes no difference to a constant current
    assert float(gains[1]) == pytest.approx(2 * float(gains[2]))  # a threshold twice as high halves what it is worth


def test_the_scale_of_spikes_is_the_mean_over_outputs_however_many_share_a_filter():
    weights, own = step_weights("spike_count", STEPS), units([0.5, 0.9, 0.9])
    found, unscaled = (make_filters(weights, own, spiking=spiking).gains for spiking in (True, False))
    assert found.tolist() == pytest.approx([float(unscaled.mean())] * 3)
