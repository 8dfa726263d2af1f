import dataclasses

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.errors import DataError, OptionError, UnsupportedModuleError
from snn_recon_plugin.networks import library_of
from snn_recon_plugin.witnesses import SAMPLERS, Candidates, Site, sampler_of
from snn_recon_plugin.witnesses.response import measure_neuron
from snn_recon_plugin.witnesses.samplers import (
    _codes,
    codes,
    dual_codes,
    gaussian,
    gaussian_normalised,
    gaussian_orthogonal,
    gaussian_standard,
    own,
    pairs,
    relays,
    traces,
)
from snn_recon_plugin.witnesses.site import class_labels

STEPS = 10


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def counts(neuron, current, steps=STEPS):
    """Spikes within some steps at a constant current."""
    return float(library_of(neuron).run(neuron, torch.full((steps, 1, 1), current)).spikes.sum())


# -- the neuron ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [lambda: snn.Leaky(beta=0.9), lambda: snn.Leaky(beta=0.5, threshold=3.0), norse.LIFCell, norse.LIF],
    ids=["Leaky", "high threshold", "LIFCell", "LIF"],
)
def test_the_rheobase_and_the_current_of_half_the_rate_are_the_neurons(make):
    neuron = make()
    found = measure_neuron(neuron, 25, torch.zeros(1))
    most = counts(neuron, 1e4, 25)
    assert counts(neuron, found.rest, 25) >= 1
    assert counts(neuron, 0.9 * found.rest, 25) == 0
    assert counts(neuron, found.half, 25) >= most / 2
    assert counts(neuron, 0.9 * found.half, 25) < most / 2
    assert 0 < found.rest < found.half


def test_a_relay_spikes_about_as_often_as_what_feeds_it():
    for neuron in (snn.Leaky(beta=0.9), norse.LIFCell()):
        found = measure_neuron(neuron, 50, torch.zeros(1))
        train = (torch.rand(50, 100, 1, generator=generator(5)) < 0.15).float()
        passed = library_of(neuron).run(neuron, found.relay * train).spikes
        assert float(passed.mean()) == pytest.approx(float(train.mean()), rel=0.25)


@pytest.mark.parametrize(
    "make",
    [norse.LICell, lambda: snn.Leaky(beta=torch.full((7,), 0.9)), lambda: snn.RLeaky(beta=0.9, linear_features=3)],
    ids=["never spikes", "own parameters", "recurrent"],
)
def test_neurons_that_no_current_can_be_chosen_for_are_refused(make):
    with pytest.raises(UnsupportedModuleError):
        measure_neuron(make(), STEPS, torch.zeros(1))


# -- samplers ------------------------------------------------------------------------------------------------------------


def test_a_pair_has_its_boundary_half_way_between_samples_of_two_classes(make_site):
    site = make_site()
    made = pairs(site, 40, generator())
    step = site.response.half - site.response.rest
    for weight, bias in zip(made.weight, made.bias, strict=True):
        currents = site.inputs @ weight + bias - site.response.rest
        # The two ends lie at equal distances on both sides: some pair of samples of different classes does.
        sums = (currents[:, None] + currents[None, :]).abs() + 1e3 * (site.labels[:, None] == site.labels[None, :])
        i, j = divmod(int(sums.argmin()), len(currents))
        assert float(sums.min()) < 1e-4
        assert 0.5 * step * 0.99 <= float((currents[i] - currents[j]).abs()) / 2 <= 2 * step * 1.01


def test_pairs_start_from_samples_in_proportion_to_their_weights(make_site):
    weights = torch.zeros(120)
    weights[7] = 1.0
    _, second = make_site(weights=weights).draw(50, generator())
    assert (second == 7).all()


def test_the_ends_of_a_pair_are_near_each_other(make_site):
    site = make_site(samples=600)
    first, second = site.draw(400, generator())
    assert (site.labels[first] != site.labels[second]).all()
    assert len(first) == 400
    apart = (site.inputs[first] - site.inputs[second]).norm(dim=1)
    every = torch.cdist(site.inputs[second], site.inputs)
    every[site.labels[second][:, None] == site.labels[None, :]] = torch.inf
    assert ((every < apart[:, None]).float().mean(1) < 0.35).float().mean() > 0.99


def test_identical_samples_with_different_labels_make_no_pair(make_site):
    site = make_site()
    same = Site(site.synapse, torch.ones_like(site.inputs), site.labels, site.response, False)
    assert len(pairs(same, 20, generator())) == 0


def test_a_single_class_makes_no_pairs(make_site):
    site = make_site(classes=1)
    with pytest.raises(DataError, match="two classes"):
        pairs(site, 10, generator())


def test_rows_of_a_layer_without_a_bias_still_have_their_boundary_there(make_site):
    site = make_site(bias=False)
    made = pairs(site, 40, generator())
    assert made.bias is None
    currents = site.inputs @ made.weight.T
    share = (currents > site.response.rest).float().mean(0)
    assert ((share > 0) & (share < 1)).float().mean() > 0.9


def test_gaussian_boundaries_pass_through_samples(make_site):
    site = make_site()
    made = gaussian(site, 30, generator())
    off = (site.inputs @ made.weight.T + made.bias - site.response.rest).abs().amin(0)
    assert float(off.max()) < 1e-4


def test_a_class_code_is_above_its_boundary_for_its_classes_and_below_for_the_others(make_site):
    site = make_site(inputs=24)
    made = codes(site, 25, generator())
    means = torch.stack([(site.inputs[site.labels == k]).mean(0) for k in range(3)]) @ made.weight.T + made.bias
    step = (means - site.response.rest) / (site.response.half - site.response.rest)
    assert float(step.amax(0).min()) > 0.4
    assert float(step.amin(0).max()) < -0.4


def test_every_code_has_classes_on_both_sides():
    signs = _codes(4, 200, generator())
    assert ((signs > 0).any(1) & (signs < 0).any(1)).all()
    assert (signs == 0).any()


def test_relays_spike_as_one_input_does_and_plain_inputs_get_pairs_instead(make_site):
    made = relays(make_site(spikes=True), 8, generator())
    assert ((made.weight != 0).sum(1) == 1).all()
    assert (made.bias == 0).all()
    assert len(set(made.weight.nonzero()[:, 1].tolist())) == 8
    site = make_site()
    assert torch.equal(relays(site, 8, generator()).weight, pairs(site, 8, generator()).weight)


def test_own_rows_are_the_layers(make_site):
    site = make_site()
    made = own(site, 100, generator())
    assert torch.equal(made.weight, site.synapse.weight)
    assert torch.equal(made.bias, site.synapse.bias)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spikes", [False, True])
def test_every_sampler_is_determined_by_its_generator(make_site, name, spikes):
    site = make_site(spikes=spikes)
    one, two = (sampler_of(name)(site, 12, generator(4)) for _ in range(2))
    assert torch.equal(one.weight, two.weight)
    assert one.weight.shape[1:] == site.synapse.weight.shape[1:]
    assert torch.isfinite(one.weight).all()
    assert 0 < len(one) <= 16


def test_patches_of_a_convolution_are_its_own():
    conv = nn.Conv2d(2, 5, 3, padding=1, stride=2)
    inputs = torch.arange(4 * 2 * 6 * 6, dtype=torch.float32).reshape(4, 2, 6, 6)
    site = Site(conv, inputs, torch.arange(4), measure_neuron(snn.Leaky(beta=0.5), 4, inputs), False)
    points = site.points(torch.arange(4), generator())
    patches = nn.functional.unfold(inputs, 3, padding=1, stride=2)
    for sample in range(4):
        assert bool((points[sample] == patches[sample].T).all(1).any())
    assert pairs(site, 6, generator()).weight.shape == (6, 2, 3, 3)


def test_a_function_of_the_users_own_is_a_sampler_and_an_unknown_name_none():
    def mine(site, count, generator):
        return Candidates(torch.zeros(count, 2), None)

    assert sampler_of(mine) is mine
    with pytest.raises(OptionError, match="pairs"):
        sampler_of("nearest")


def test_targets_of_any_kind_become_classes():
    assert class_labels(torch.tensor([2, 0, 1])).tolist() == [2, 0, 1]
    assert class_labels(torch.eye(3)[[2, 0, 1]]).tolist() == [2, 0, 1]
    values = torch.arange(80.0)
    found = class_labels(values)
    assert found.unique().tolist() == list(range(8))
    assert found.bincount().tolist() == [10] * 8
    assert (found.diff() >= 0).all()


# -- kinds of Gaussian directions ----------------------------------------------------------------------------------------


def slopes(site, made):
    """How much each candidate's current varies over the samples, taken by a step of its neuron."""
    return ((site.inputs @ made.weight.T).std(0, correction=0)) / (site.response.half - site.response.rest)


def test_gaussian_directions_are_equally_steep_and_standard_ones_as_long_as_they_come(make_site):
    stretched = make_site()
    with torch.no_grad():
        stretched.inputs[:, 0] *= 20  # directions along the first input see most of the variance
    even, standard = (slopes(stretched, sample(stretched, 400, generator())) for sample in (gaussian, gaussian_standard))
    # But for the octave by which slopes are drawn, and the points the spread is taken over.
    assert float(even.max() / even.min()) < 5
    assert float(standard.max() / standard.min()) > 20


def test_normalised_directions_have_one_length_and_orthogonal_ones_right_angles(make_site):
    site = make_site()
    step = site.response.half - site.response.rest
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


@pytest.mark.parametrize("sample", [gaussian, gaussian_standard, gaussian_normalised, gaussian_orthogonal])
def test_boundaries_of_all_gaussians_go_through_a_sample(sample, make_site):
    site = make_site()
    made = sample(site, 30, generator())
    currents = site.inputs @ made.weight.T + made.bias - site.response.rest
    assert float(currents.abs().amin(0).max()) < 1e-3


# -- over time -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("neuron", "least", "most"),
    [(snn.Leaky(beta=0.9), 0.899, 0.901), (snn.Leaky(beta=0.0), 0.0, 1e-6), (norse.LIFCell(), 0.9, 0.96)],
    ids=["Leaky", "no memory", "LIFCell"],
)
def test_the_memory_is_the_neurons(neuron, least, most):
    assert least <= measure_neuron(neuron, 25, torch.zeros(1)).memory <= most


def timed(make_site, memory=0.5):
    """Two classes that differ only in when their input comes."""
    site = make_site(samples=40, classes=2)
    early, late = torch.zeros(6, 40, 8), torch.zeros(6, 40, 8)
    early[0], late[5] = 1.0, 1.0
    over_time = torch.where((site.labels == 0)[None, :, None], early, late)
    response = dataclasses.replace(site.response, memory=memory)
    return dataclasses.replace(site, inputs=over_time.mean(0), over_time=over_time, response=response)


def test_a_trace_is_the_past_as_the_neuron_weighs_it(make_site):
    site = timed(make_site)
    first, second = int((site.labels == 0).nonzero()[0]), int((site.labels == 1).nonzero()[0])
    found = site.traces(torch.tensor([first, first, second, second]), torch.tensor([0, 2, 4, 5]))[:, 0]
    weights = [1 + 0.5 + 0.25, sum(0.5**k for k in range(6))]
    torch.testing.assert_close(found, torch.tensor([1.0, 0.25 / weights[0], 0.0, 1 / weights[1]]))
    assert site.traces(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)).shape == (0, 8)


def test_traces_tell_apart_what_averages_over_time_do_not(make_site):
    site = timed(make_site)
    assert len(pairs(site, 30, generator())) == 0
    assert len(traces(site, 30, generator())) > 20
    still = dataclasses.replace(site, inputs=site.over_time[0], over_time=site.over_time[:1])
    for same in (still, dataclasses.replace(still, over_time=None)):
        torch.testing.assert_close(traces(same, 30, generator()).weight, pairs(same, 30, generator()).weight)


def test_codes_chosen_by_the_dual_follow_mixtures_of_its_columns(make_site):
    site = make_site(samples=200)
    dual = (site.inputs - site.inputs.mean(0)) @ torch.randn(8, 3, generator=generator(5))
    made = dual_codes(site.after(dual), 30, generator())
    currents = site.inputs @ made.weight.T
    currents = currents - currents.mean(0)
    told = dual @ torch.linalg.lstsq(dual, currents).solution
    assert float((told.square().sum(0) / currents.square().sum(0)).median()) > 0.5
    other = dual_codes(site.after(torch.randn(200, 3, generator=generator(6))), 30, generator())
    assert not torch.allclose(made.weight[:10], other.weight[:10])
    torch.testing.assert_close(dual_codes(site, 30, generator()).weight, codes(site, 30, generator()).weight)
