import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.errors import DataError, OptionError, UnsupportedModuleError
from snn_recon_plugin.networks import adapter_of
from snn_recon_plugin.witnesses import SAMPLERS, Candidates, Site, sampler_of
from snn_recon_plugin.witnesses.response import measure_neuron
from snn_recon_plugin.witnesses.samplers import _codes, codes, gaussian, own, pairs, relays
from snn_recon_plugin.witnesses.site import class_labels

STEPS = 10


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def counts(neuron, current, steps=STEPS):
    """Spikes within some steps at a constant current."""
    return float(adapter_of(neuron).run(neuron, torch.full((steps, 1, 1), current)).spikes.sum())


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
        passed = adapter_of(neuron).run(neuron, found.relay * train).spikes
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
