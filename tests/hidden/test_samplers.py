"""Samplers of candidates: where their boundaries lie, which kinds a pool has, and inputs over time."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from snn_recon_plugin.errors import DataError, OptionError
from snn_recon_plugin.hidden.samplers import (
    POOLS,
    SAMPLERS,
    auto,
    draw_candidates,
    draw_pool,
    gaussian,
    get_sampler,
    measure_spread,
    pairs,
    relays,
    traces,
)
from snn_recon_plugin.hidden.site import Candidates

from .tasks import make_site


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_pair_has_its_boundary_half_way_between_samples_of_two_classes():
    site = make_site()
    made = pairs(site, 40, generator())
    step = site.excitability.half_rate - site.excitability.rheobase
    for weight, bias in zip(made.weight, made.bias, strict=True):
        currents = site.inputs @ weight + bias - site.excitability.rheobase
        # The two ends lie at equal distances on both sides: some pair of samples of different classes does.
        sums = (currents[:, None] + currents[None, :]).abs() + 1e3 * (site.labels[:, None] == site.labels[None, :])
        i, j = divmod(int(sums.argmin()), len(currents))
        assert float(sums.min()) < 1e-4
        assert 0.5 * step * 0.99 <= float((currents[i] - currents[j]).abs()) / 2 <= 2 * step * 1.01


def test_the_ends_of_a_pair_are_near_each_other():
    site = make_site(samples=600)
    first, second = site.draw_pairs(400, generator())
    assert (site.labels[first] != site.labels[second]).all()
    assert len(first) == 400
    apart = (site.inputs[first] - site.inputs[second]).norm(dim=1)
    every = torch.cdist(site.inputs[second], site.inputs)
    every[site.labels[second][:, None] == site.labels[None, :]] = torch.inf
    assert ((every < apart[:, None]).float().mean(1) < 0.35).float().mean() > 0.99


@pytest.mark.parametrize("rare", [True, False])
def test_without_a_pair_the_message_blames_neither_the_inputs_nor_the_classes(rare):
    site = make_site(samples=4000)
    if rare:
        site = replace(site, labels=(torch.arange(4000) == 7).long())
    else:
        site = replace(site, inputs=torch.ones_like(site.inputs))
        assert len(pairs(site, 20, generator())) == 0
    with pytest.raises(DataError, match="no two of the samples drawn differ in both class and input"):
        draw_candidates(pairs, site, 1, generator())


def test_a_single_class_makes_no_pairs():
    with pytest.raises(DataError, match="two classes"):
        pairs(make_site(classes=1), 10, generator())


def test_rows_of_a_layer_without_a_bias_still_have_their_boundary_there():
    site = make_site(bias=False)
    made = pairs(site, 40, generator())
    assert made.bias is None
    share = (site.inputs @ made.weight.T > site.excitability.rheobase).float().mean(0)
    assert ((share > 0) & (share < 1)).float().mean() > 0.9


def test_rows_are_no_shorter_than_fresh_ones_and_bear_a_step_of_training():
    """A hundred small inputs in place of each: a step of Adam changes the current by a thousandth of their sum."""
    site = make_site()
    wide = replace(site, inputs=site.inputs.repeat(1, 100) / 10, synapse=torch.nn.Linear(800, 16))
    made = pairs(wide, 40, generator())
    assert float(made.weight.norm(dim=1).min()) >= 0.999 * 3**-0.5
    currents = wide.inputs @ made.weight.T + made.bias - site.excitability.rheobase
    change = 1e-3 * float(wide.inputs.sum(1).mean())
    assert float(currents.abs().amax(0).min()) > 10 * change
    assert float(pairs(site, 40, generator()).weight.norm(dim=1).min()) >= 0.999 * 3**-0.5


def test_gaussian_boundaries_pass_through_samples():
    site = make_site()
    made = gaussian(site, 30, generator())
    off = (site.inputs @ made.weight.T + made.bias - site.excitability.rheobase).abs().amin(0)
    assert float(off.max()) < 1e-4


def test_a_spread_is_the_deviation_of_a_direction_over_samples():
    points, directions = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 5.0]])
    torch.testing.assert_close(measure_spread(points, directions), torch.tensor([1.0, 3.0]) * (8 / 3) ** 0.5)


def test_relays_spike_as_one_input_does_and_plain_inputs_get_pairs_instead():
    made = relays(make_site(spikes=True), 8, generator())
    assert ((made.weight != 0).sum(1) == 1).all()
    assert (made.bias == 0).all()
    assert len(set(made.weight.nonzero()[:, 1].tolist())) == 8
    site = make_site()
    assert torch.equal(relays(site, 8, generator()).weight, pairs(site, 8, generator()).weight)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spikes", [False, True])
def test_every_sampler_is_determined_by_its_generator(name, spikes):
    site = make_site(spikes=spikes)
    one, two = (get_sampler(name)(site, 12, generator(4)) for _ in range(2))
    assert torch.equal(one.weight, two.weight)
    assert one.weight.shape[1:] == site.synapse.weight.shape[1:]
    assert torch.isfinite(one.weight).all()
    assert 0 < len(one) <= 16


def test_auto_draws_the_pool_of_what_enters_the_layer_and_counts_its_kinds():
    site = make_site()
    changing = replace(site, over_time=torch.rand(10, *site.inputs.shape, generator=generator(1)))
    for given, pool in ((site, "constant"), (changing, "changing"), (replace(site, fed_by_spikes=True), "spikes")):
        drawn = auto(given, 24, generator())
        kinds = drawn.count_kinds()
        assert (len(drawn), set(kinds)) == (24, set(POOLS[pool]))
        for kind, share in POOLS[pool].items():
            assert kinds[kind] == pytest.approx(24 * share, abs=1)


def test_the_last_kind_of_a_pool_makes_up_for_kinds_with_fewer_candidates():
    drawn = draw_pool({"relays": 0.5, "pairs": 0.5}, make_site(spikes=True), 60, generator())
    assert drawn.count_kinds() == {"relays": 8, "pairs": 52}


def test_a_function_of_the_users_own_is_a_sampler_and_an_unknown_name_none():
    def mine(site, count, generator):
        return pairs(site, count, generator)

    assert get_sampler(mine) is mine
    for sampler, name in ((pairs, "pairs"), (mine, "mine"), (partial(pairs), "custom")):
        assert draw_candidates(sampler, make_site(), 12, generator()).count_kinds() == {name: 12}
    with pytest.raises(OptionError, match="pairs"):
        get_sampler("nearest")


def test_candidates_are_taken_and_joined_with_all_that_they_have():
    numbers = torch.arange(4.0)
    one = Candidates(numbers[:, None], numbers, {"beta": numbers}, tuple("abca"), numbers[:, None], numbers)
    some = one.take(torch.tensor([2, 0]))
    assert (some.bias.tolist(), some.unit_values["beta"].tolist()) == ([2, 0], [2, 0])
    assert (some.kinds, some.before.tolist(), some.autapses.tolist()) == (("c", "a"), [[2], [0]], [2, 0])
    joined = Candidates.join([one, some])
    assert joined.weight[:, 0].tolist() == joined.unit_values["beta"].tolist() == joined.autapses.tolist() == [0, 1, 2, 3, 2, 0]
    assert joined.count_kinds() == {"a": 3, "b": 1, "c": 2}
    plain = Candidates.join([one, Candidates(numbers[:, None], None)])
    assert (len(plain), plain.bias, plain.unit_values, plain.kinds, plain.before) == (8, None, None, None, None)


# -- over time -----------------------------------------------------------------------------------------------------------
def timed():
    """Two classes that differ only in when their input comes."""
    site = make_site(samples=40, classes=2)
    early, late = torch.zeros(6, 40, 8), torch.zeros(6, 40, 8)
    early[0], late[5] = 1.0, 1.0
    over_time = torch.where((site.labels == 0)[None, :, None], early, late)
    return responding(replace(site, inputs=over_time.mean(0), over_time=over_time), 0.5 ** torch.arange(6.0))


def responding(site, kernel):
    return replace(site, excitability=replace(site.excitability, kernel=kernel, threshold=1.0))


def test_a_trace_is_the_past_as_the_neuron_weighs_it():
    site = timed()
    first, second = int((site.labels == 0).nonzero()[0]), int((site.labels == 1).nonzero()[0])
    found = site.take_traces(torch.tensor([first, first, second, second]), torch.tensor([0, 2, 4, 5]))[:, 0]
    weights = [1 + 0.5 + 0.25, sum(0.5**k for k in range(6))]
    torch.testing.assert_close(found, torch.tensor([1.0, 0.25 / weights[0], 0.0, 1 / weights[1]]))
    assert site.take_traces(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)).shape == (0, 8)


def test_steps_are_drawn_from_the_first_at_which_the_membrane_has_changed():
    site = timed()
    late = responding(site, torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0]))
    for there, first in ((site, 0), (late, 2)):
        assert there.draw_steps(200, generator()).unique().tolist() == list(range(first, 6))


def test_steps_of_changing_inputs_have_traces_with_those_of_a_sample_together():
    site, steps = timed(), torch.tensor([0, 4])
    expected = [site.take_traces(torch.arange(40), step.expand(40)) for step in steps]
    assert torch.equal(site.split_steps(steps).inputs, torch.stack(expected, 1).flatten(0, 1))


def test_steps_of_constant_inputs_have_the_inputs_themselves():
    site = make_site()
    split = replace(site, over_time=site.inputs[None]).split_steps(torch.tensor([0, 4]))
    assert torch.equal(split.inputs, site.inputs.repeat_interleave(2, 0))
    assert not split.changes


def test_traces_tell_apart_what_averages_over_time_do_not():
    site = timed()
    assert len(pairs(site, 30, generator())) == 0
    assert len(traces(site, 30, generator())) > 20
    still = replace(site, inputs=site.over_time[0], over_time=site.over_time[:1])
    for same in (still, replace(still, over_time=None)):
        torch.testing.assert_close(traces(same, 30, generator()).weight, pairs(same, 30, generator()).weight)
