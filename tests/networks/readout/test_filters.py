import math

import pytest
import snntorch as snn
import torch

from snn_recon_plugin.networks.readout.filters import Scale, UnitResponses, fit_scale, fit_weights, measure_response
from snn_recon_plugin.networks.readout.readout import step_weights

STEPS = 12


def still(beta=0.9, kind=snn.Leaky, **options):
    return kind(beta=beta, **{"reset_mechanism": "none", **options})


def measured(neuron, steps=STEPS, outputs=3):
    return measure_response("lif9", neuron, steps, outputs=outputs, device=torch.device("cpu"))


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
    "Leaky": (still(), leaky(0.9)),
    "Leaky at once": (still(reset_delay=False), leaky(0.9)),
    "Leaky learned": (still(0.7, learn_beta=True), leaky(0.7)),
    "Leaky clamped": (still(1.3), leaky(1.0)),
    "Leaky of one-element beta": (still(torch.tensor([0.9])), leaky(0.9)),
    "Leaky of equal betas": (still(torch.full((3,), 0.9)), leaky(0.9)),
    "Leaky of other thresholds": (still(threshold=torch.tensor([0.5, 1.5, 1.0])), leaky(0.9)),
    "Synaptic": (still(kind=snn.Synaptic, alpha=0.8), synaptic(0.8, 0.9)),
    "Alpha": (still(0.8, snn.Alpha, alpha=0.9), alpha_function(0.9, 0.8)),
    "Lapicque": (still(0.8, snn.Lapicque), lapicque(0.8)),
    "Leaky that never reaches its threshold": (snn.Leaky(beta=0.9, threshold=1e7), leaky(0.9)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_response_is_the_closed_form(name):
    neuron, kernel = CASES[name]
    response = measured(neuron)
    expected = torch.zeros(STEPS, STEPS, dtype=torch.float64)
    for t in range(STEPS):
        expected[t:, t] = torch.tensor(kernel[: STEPS - t], dtype=torch.float64)
    # The neuron's own constants are single precision numbers; the recursion on them runs in double precision.
    assert torch.allclose(response.matrix, expected, rtol=1e-5, atol=1e-6)
    assert response.matrix.dtype == torch.float64
    assert response.units is None
    assert not response.rest.any()
    if name == "Leaky":
        assert response.matrix[-1, 0] == pytest.approx(float(torch.tensor(0.9)) ** (STEPS - 1), rel=1e-14)


class Single(snn.Leaky):
    def forward(self, input_, mem=None):
        if input_.dtype == torch.float64:
            raise RuntimeError("expected Float but found Double")
        return super().forward(input_, mem)


class Driven(snn.Leaky):
    def forward(self, input_, mem=None):
        return super().forward(input_ + 0.5, mem)


@pytest.mark.parametrize(("kind", "rest"), [(Single, [0.0, 0.0, 0.0]), (Driven, [0.5, 0.75, 0.875])])
def test_neurons_of_the_users_own(kind, rest):
    response = measured(still(0.5, kind), steps=3, outputs=2)
    assert response.rest.tolist() == rest
    assert response.matrix[:, 0].tolist() == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("threshold", [0.01, 1.0, 20.0])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("kind", [snn.Leaky, snn.Lapicque])
def test_a_reset_leaves_the_response_below_the_threshold(kind, reset, threshold):
    resetting, other = (measured(still(kind=kind, reset_mechanism=how, threshold=threshold)) for how in (reset, "none"))
    assert (resetting.affine, other.affine) == (False, True)
    assert torch.allclose(resetting.matrix, other.matrix, rtol=1e-5)


def test_changing_the_attribute_later_is_seen_through():
    neuron = snn.Leaky(beta=0.9)
    neuron.reset_mechanism = "none"
    assert not measured(neuron).affine


def test_units_that_differ_have_a_mean_response_and_an_answer_each_to_constant_currents():
    betas = [0.5, 0.9, 0.5]
    response, own = measured(still(torch.tensor(betas))), [measured(still(beta)) for beta in betas]
    assert torch.allclose(response.matrix, torch.stack([each.matrix for each in own]).mean(0), rtol=1e-6)
    assert torch.allclose(response.units.constant, torch.stack([each.matrix.sum(1) for each in own], 1), rtol=1e-6)
    assert response.lift == pytest.approx(sum(each.lift for each in own) / 3)


def test_many_steps_and_outputs_are_measured_in_parts():
    betas = torch.tensor([0.5, 0.9]).repeat(50)
    response = measured(still(betas), steps=200, outputs=100)
    for unit in (0, 1):
        own = measured(still(betas[unit]), steps=200, outputs=1)
        assert torch.allclose(response.units.constant[:, unit], own.matrix.sum(1), rtol=1e-6)


def units(beta, threshold=1.0, **options):
    return measured(snn.Leaky(beta=torch.tensor(beta), threshold=torch.tensor(threshold), **options)).units


@pytest.mark.parametrize("learned", [False, True])
def test_thresholds_tell_the_units_of_a_resetting_neuron_apart(learned):
    assert units(0.9, [0.5, 1.5, 1.0], learn_threshold=learned).thresholds.tolist() == pytest.approx([0.5, 1.5, 1.0])


def test_factors_of_currents_make_membranes_alike():
    own, weights = units([0.5, 0.9, 0.5]), step_weights("membrane_mean", STEPS)
    lifted = own.factors(weights, spiking=False) * (weights @ own.constant)
    assert lifted.tolist() == pytest.approx([float((weights @ own.constant).mean())] * 3)


def test_currents_of_spiking_units_are_relative_to_their_thresholds_whatever_the_leak():
    found = units([0.5, 0.9, 0.9], [1.0, 1.0, 2.0]).factors(step_weights("spike_count", STEPS), spiking=True)
    assert found.tolist() == pytest.approx([0.75, 0.75, 1.5])


def test_units_of_which_one_answers_with_less_than_nothing_keep_their_currents():
    own = UnitResponses(torch.tensor([[1.0, -2.0]]).double(), torch.ones(2).double())
    assert own.factors(torch.ones(1).double(), spiking=False).tolist() == [1.0, 1.0]


# -- scales -----------------------------------------------------------------------------------------------------------------
FACTOR, OFFSET = torch.tensor([2.0, -0.5, 1e-3]).double(), torch.tensor([0.0, 3.0, -1.0]).double()
VALUES = torch.randn(6, 8, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_scale_is_found(dtype):
    values = VALUES.to(dtype)
    found = fit_scale(values, Scale(FACTOR, OFFSET).values(values))
    assert torch.allclose(found.factor, FACTOR, rtol=1e-5, atol=1e-6)
    assert torch.allclose(found.offset, OFFSET, rtol=1e-5)
    assert found.offset[0] == 0  # not the rounding of a factor


CHANGES = {
    "a clamp": lambda values: values.clamp(-1, 1),
    "noise": lambda values: values + 0.01 * values.roll(1, 0),
    "another factor at a step": lambda values: torch.cat([values[:1], 2 * values[1:]]),
    "a factor of 0": lambda values: values * torch.tensor([1.0, 0.0, 1.0]),
    "outputs that mix": lambda values: values - values.mean(2, keepdim=True),
    "another shape": lambda values: values[1:],
    "infinite values": lambda values: values / 0,
    "whole numbers": lambda values: (3 * values).long(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_no_scale(name):
    assert fit_scale(VALUES, CHANGES[name](VALUES)) is None


def test_two_rows_show_no_scale():
    assert fit_scale(VALUES[0, :2], torch.randn(2, 3)) is None


def test_a_layer_is_scaled_and_taken_back():
    scale, weight, bias = Scale(FACTOR, OFFSET), torch.randn(3, 5), torch.randn(3)
    values = torch.randn(7, 5)
    scaled = scale.values(values @ weight.T + bias)
    assert torch.allclose(values @ scale.weight(weight).T + scale.bias(bias), scaled, atol=1e-5)
    again, again_bias = scale.invert(scale.weight(weight), scale.bias(bias))
    assert torch.allclose(again.float(), weight, atol=1e-5)
    assert torch.allclose(again_bias.float(), bias, atol=1e-3)  # 1e-3 of its output is the bias


def test_a_scale_after_another_one():
    first, second = Scale(FACTOR, OFFSET), Scale(FACTOR.flip(0), OFFSET.flip(0))
    values = VALUES.double()
    assert torch.allclose(second.after(first).values(values), second.values(first.values(values)))
    assert first.after(None) is first


# -- weights of the steps ---------------------------------------------------------------------------------------------------
WEIGHTS = torch.tensor([0.0, 0.5, -1.0, 0.0, 2.0, 1.0]).double()


def test_weights_and_an_offset_are_found():
    weights, offset = fit_weights(VALUES, torch.einsum("t,tbc->bc", WEIGHTS.float(), VALUES) + 0.25)
    assert weights.tolist() == pytest.approx(WEIGHTS.tolist(), abs=1e-5)
    assert [bool(weight) for weight in weights] == [bool(weight) for weight in WEIGHTS]  # steps without a weight have none
    assert float(offset) == pytest.approx(0.25, rel=1e-5)


def test_weights_of_spikes_that_some_steps_never_have():
    spikes = (VALUES > 0).float()
    spikes[:2] = 0
    weights, offset = fit_weights(spikes, spikes[-3:].sum(0))
    assert weights.tolist() == pytest.approx([0, 0, 0, 1, 1, 1], abs=1e-6)
    assert float(offset) == 0


@pytest.mark.parametrize(
    ("values", "scores"),
    [
        (VALUES, VALUES.square().sum(0)),
        (VALUES, torch.full((8, 3), 2.0)),
        (VALUES, VALUES.sum((0, 2))),
        (VALUES[:, :3], VALUES[:, :3].sum(0)),
        (VALUES, VALUES.sum(0) > 0),
    ],
    ids=["squares", "a constant", "another shape", "too few scores", "decisions"],
)
def test_scores_without_weights(values, scores):
    assert fit_weights(values, scores) is None
