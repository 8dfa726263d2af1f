"""Samplers of benchmarks/hidden.py that the package does not offer."""

import pytest
import torch
from torch import nn

from benchmarks.hidden_samplers import (
    EXTRA_SAMPLERS,
    codes,
    draw_codes,
    gaussian_normalised,
    gaussian_orthogonal,
    gaussian_standard,
    own_and_new,
)
from snn_recon_plugin.hidden import LayerSite
from snn_recon_plugin.hidden.neuron import Excitability, Response
from snn_recon_plugin.hidden.samplers import gaussian


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_site(samples=120, inputs=8, spikes=False):
    """Three classes around a centre each."""
    labels = torch.arange(samples) % 3
    centres = 2 * torch.rand(3, inputs, generator=generator(99))
    values = centres[labels] + 0.3 * torch.randn(samples, inputs, generator=generator())
    values = (values > 1).float() if spikes else values
    excitability = Excitability(0.15, 1.0, 0.5, Response(torch.ones(1), 0.15))
    return LayerSite(nn.Linear(inputs, 16), values, labels, excitability, spikes)


@pytest.mark.parametrize("spikes", [False, True])
@pytest.mark.parametrize("sampler", [*EXTRA_SAMPLERS.values(), own_and_new])
def test_every_sampler_is_determined_by_its_generator(sampler, spikes):
    one, two = (sampler(make_site(spikes=spikes), 24, generator(4)) for _ in range(2))
    assert one.weight.shape[1:] == (8,)
    assert 0 < len(one) <= 24
    if sampler is not own_and_new:  # each site has its own layer
        assert torch.equal(one.weight, two.weight)


def test_a_class_code_is_above_its_boundary_for_its_classes_and_below_for_the_others():
    site = make_site(inputs=24)
    made = codes(site, 25, generator())
    means = torch.stack([(site.inputs[site.labels == k]).mean(0) for k in range(3)]) @ made.weight.T + made.bias
    step = (means - site.excitability.rheobase) / (site.excitability.half_rate - site.excitability.rheobase)
    assert float(step.amax(0).min()) > 0.4
    assert float(step.amin(0).max()) < -0.4


def test_every_code_has_classes_on_both_sides():
    signs = draw_codes(4, 200, generator())
    assert ((signs > 0).any(1) & (signs < 0).any(1)).all()
    assert (signs == 0).any()


def slopes(site, made):
    """How much each candidate's current varies over the samples, taken by a step of its neuron."""
    return ((site.inputs @ made.weight.T).std(0, correction=0)) / (site.excitability.half_rate - site.excitability.rheobase)


def test_gaussian_directions_are_equally_steep_and_standard_ones_as_long_as_they_come():
    stretched = make_site()
    with torch.no_grad():
        stretched.inputs[:, 0] *= 20  # directions along the first input see most of the variance
    even, standard = (slopes(stretched, sample(stretched, 400, generator())) for sample in (gaussian, gaussian_standard))
    # But for the octave by which slopes are drawn, and the points the spread is taken over.
    assert float(even.max() / even.min()) < 5
    assert float(standard.max() / standard.min()) > 20


def test_normalised_directions_have_one_length_and_orthogonal_ones_right_angles():
    site = make_site()
    step = site.excitability.half_rate - site.excitability.rheobase
    for sample in (gaussian_standard, gaussian_normalised, gaussian_orthogonal):
        lengths = sample(site, 200, generator()).weight.norm(dim=1) / step
        spread = float(lengths.max() / lengths.min())
        assert spread > 5 if sample is gaussian_standard else spread < 4.01  # two octaves of slopes
    made = gaussian_orthogonal(site, 20, generator()).weight
    directions = made / made.norm(dim=1, keepdim=True)
    width = directions.shape[1]
    for block in directions.split(width):
        torch.testing.assert_close(block @ block.T, torch.eye(len(block)), atol=1e-5, rtol=0)
    assert float((directions[0] @ directions[width]).abs()) > 1e-3  # a new block begins there


@pytest.mark.parametrize("sample", [gaussian_standard, gaussian_normalised, gaussian_orthogonal])
def test_boundaries_of_all_gaussians_go_through_a_sample(sample):
    site = make_site()
    made = sample(site, 30, generator())
    currents = site.inputs @ made.weight.T + made.bias - site.excitability.rheobase
    assert float(currents.abs().amin(0).max()) < 1e-3
