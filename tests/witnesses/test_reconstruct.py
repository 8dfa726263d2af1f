"""Hidden layers rebuilt in nets of both libraries: simulated as the net would, selected, written at their own width."""

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import ConvexInitializer, convex_init_, fit
from snn_recon_plugin.convex import make_loss
from snn_recon_plugin.errors import DataError, OptionError
from snn_recon_plugin.networks import (
    StoredBatch,
    inspect_network,
    neuron_spikes,
    over_time,
    plain_forward,
    preserved,
    replace_parameters,
    resolve_readout,
)
from snn_recon_plugin.witnesses import SAMPLERS, Candidates
from snn_recon_plugin.witnesses.selection import Selector, usable
from snn_recon_plugin.witnesses.simulate import Emitted, _Alone, _InNet, simulator_of

from ..helpers import (
    HIDDEN,
    STEPS,
    Loop,
    accuracy,
    assert_as_before,
    batches,
    bits,
    conv_net,
    divided,
    loop_net,
    sequential_net,
    snapshot,
    test_data,
)

OVER = over_time(STEPS)


class Steps(nn.Module):
    """Shows a static input at every step to multi-step layers; time first, or second inside."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = norse.SequentialState(*layers)

    def forward(self, x):
        return self.layers(x.expand(STEPS, *x.shape))[0]


class Once(Loop):
    """Computes the static current once, outside the time loop."""

    def forward(self, x):
        mem1, mem2, membranes, current = self.lif1.reset_mem(), self.lif2.reset_mem(), [], self.fc1(x)
        for _ in range(self.steps):
            spikes, mem1 = self.lif1(current, mem1)
            _, mem2 = self.lif2(self.fc2(spikes), mem2)
            membranes.append(mem2)
        return torch.stack(membranes)


def norse_net():
    torch.manual_seed(0)
    return Steps(nn.Linear(64, HIDDEN), norse.LIF(), nn.Linear(HIDDEN, 10), norse.LI())


def normalised():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(64, HIDDEN),
        nn.BatchNorm1d(HIDDEN),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(HIDDEN, 10),
        snn.Leaky(beta=0.9, init_hidden=True, output=True, reset_mechanism="none"),
    )
    net[1].running_var.fill_(0.25)  # the same for all: each row is treated alike
    return net


NETS = {
    "loop": (loop_net, plain_forward, _Alone),
    "once": (Once, plain_forward, _Alone),
    "sequential": (sequential_net, OVER, _Alone),
    "norse": (norse_net, plain_forward, _Alone),
    "normalised": (normalised, OVER, _InNet),
    "conv": (conv_net, plain_forward, _InNet),
}


def simulator(net, forward):
    parts = [StoredBatch(x[:40], slice(40 * k, 40 * k + 40)) for k, (x, _) in enumerate(batches(200)[:2])]
    net_map = inspect_network(net, parts[0].inputs[:20], forward)
    readout = resolve_readout(net, net_map, parts[0].inputs[:20], forward, "auto")
    layer = net_map.hidden[0]
    return simulator_of(net, parts, layer, forward, readout.filter[None], torch.arange(20, 80)), layer, parts, readout


@pytest.mark.parametrize("name", NETS)
def test_candidates_do_outside_the_net_what_the_net_does_with_them(name):
    make, forward, kind = NETS[name]
    net = make().eval()
    before = snapshot(net)
    with preserved(net, seed=0):
        found, layer, parts, readout = simulator(net, forward)
        assert isinstance(found, kind)
        assert found.samples == 80
        assert len(found.inputs) == 60
        width = len(layer.synapse.weight)
        weight = 3 * torch.randn(width + 3, *layer.synapse.weight.shape[1:], generator=torch.Generator().manual_seed(0))
        candidates = Candidates(weight, torch.linspace(-0.5, 0.5, width + 3))
        emitted = found.run(candidates)
        values = {(layer.synapse, "weight"): weight[3:], (layer.synapse, "bias"): candidates.bias[3:]}
        with replace_parameters(values):
            every = neuron_spikes(net, parts, layer, forward)
            spikes = every[:, 20:]
    features = torch.einsum("t,tn...->n...", readout.filter.float(), spikes)
    if features.dim() == 4:
        features = nn.functional.adaptive_avg_pool2d(features, 3).flatten(2)
    assert 0.01 < float(spikes.mean()) < 0.99
    assert torch.allclose(emitted.features[:, 3:], features.reshape(60, width, -1), atol=1e-5)
    rates = (every if kind is _InNet else spikes).movedim(2, 0).flatten(1).mean(1)
    assert torch.allclose(emitted.rate[3:], rates, atol=1e-6)
    assert_as_before(net, before)


def test_chunks_change_nothing(monkeypatch):
    net = loop_net().eval()
    with preserved(net, seed=0):
        found, *_ = simulator(net, plain_forward)
        candidates = Candidates(torch.randn(30, 64, generator=torch.Generator().manual_seed(0)), torch.zeros(30))
        whole = found.run(candidates)
        monkeypatch.setattr("snn_recon_plugin.witnesses.simulate._BYTES", 7 * 16 * STEPS * 60)
        parts = found.run(candidates)
    assert torch.allclose(whole.features, parts.features, atol=1e-5)


# -- selection -----------------------------------------------------------------------------------------------------------


def made(features):
    features = torch.as_tensor(features, dtype=torch.float32)
    return Emitted(features[:, :, None], (features > 0).float().mean(0))


def test_dead_always_on_and_double_candidates_are_dropped_and_counted():
    some = torch.tensor([0.0, 1.0, 0.0, 2.0])
    emitted = Emitted(
        torch.stack([some, torch.zeros(4), torch.ones(4), some, 2 - some], 1)[:, :, None], torch.tensor([0.4, 0, 1, 0.4, 0.5])
    )
    kept, counts = usable(emitted)
    assert kept.tolist() == [0, 4]
    assert counts == {"dead": 1, "always on": 1, "double": 1}


def test_the_candidate_that_tells_the_classes_is_wanted_most():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    noise = (torch.rand(60, 12, generator=generator) < 0.5).float()
    noise[:, 5] = (labels == 1).float()
    noise[:, 8] = (labels == 2).float()
    selected = Selector(labels, make_loss("cross_entropy"), 3, 1.0).select(made(noise), 2)
    assert set(selected.order[:2].tolist()) == {5, 8}
    assert sorted(selected.order.tolist()) == list(range(12))
    assert selected.prices[selected.order[0]] == pytest.approx(1, abs=0.05)


def test_where_fewer_are_used_than_needed_the_price_decides():
    labels = torch.arange(60) % 2
    useful, weaker = (labels == 1).float(), (labels == 1).float()
    weaker[:20] = 0.5
    noise = torch.tensor([0.0, 1.0, 1.0, 0.0]).repeat(15)
    selector = Selector(labels, make_loss("cross_entropy"), 2, 1.0, strength=0.2)
    selected = selector.select(made(torch.stack([noise, weaker, useful], 1)), 3)
    assert selected.used < 3
    assert selected.order.tolist() == [2, 1, 0]
    assert selector.strength == 0.2


def test_prices_are_those_of_the_dual():
    """A new column lowers the objective if and only if its price is above one."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    pool = (torch.rand(90, 6, generator=generator) < 0.5).float()
    fresh = (torch.rand(90, 15, generator=generator) < 0.3).float()
    selector = Selector(labels, make_loss("cross_entropy"), 3, 1.0, strength=0.02, steps=400, settled=1e-8)
    before = selector.select(made(pool), 6)
    prices = selector.price(made(fresh), before.dual)
    assert 0 < int((prices > 1).sum()) < 15
    for column, price in zip(fresh.T, prices.tolist(), strict=True):
        after = selector.select(made(torch.cat([pool, column[:, None]], 1)), 6)
        if abs(price - 1) > 0.02:  # closer ones change the objective by less than float32 steps do
            assert (after.objective < before.objective - 1e-7) == (price > 1)


# -- the whole thing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_a_rebuilt_net_beats_its_own_weights_and_can_be_undone(name):
    make, forward, _ = NETS[name]
    net = make()
    before = {name: bits(parameter) for name, parameter in net.named_parameters()}
    report = convex_init_(net, batches(), hidden="reconstruct", forward=forward)
    own = make()
    kept = convex_init_(own, batches(), hidden="rescale", forward=forward)
    assert report.certificate.reached
    assert accuracy(net, forward) > accuracy(own, forward) - 0.02  # of 400 images; docs/hidden.md measures the gain
    layer = report.layers[0].witnesses
    assert layer.width == len(net.state_dict()[f"{layer.name}.weight"])
    assert layer.simulated == 3 * layer.width
    assert report.layers[0].stats.silent < 0.5
    assert kept.layers[0].witnesses is None
    report.undo()
    assert {name: bits(parameter) for name, parameter in net.named_parameters()} == before


def test_a_dead_net_ends_where_a_healthy_one_does():
    healthy, dead = loop_net(), divided(loop_net())
    for net in (healthy, dead):
        convex_init_(net, batches(), hidden="reconstruct")
    assert accuracy(dead) == pytest.approx(accuracy(healthy), abs=0.02)
    assert accuracy(dead) > 0.9


def test_the_same_seed_gives_the_same_bits_and_another_one_others():
    nets = [loop_net() for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        convex_init_(net, batches(300), hidden="reconstruct", seed=seed)
    assert torch.equal(nets[0].fc1.weight, nets[1].fc1.weight)
    assert torch.equal(nets[0].fc2.weight, nets[1].fc2.weight)
    assert not torch.equal(nets[0].fc1.weight, nets[2].fc1.weight)


def test_no_sample_that_chose_hidden_rows_is_held_out(monkeypatch):
    """Held-out accuracy of rows that were selected on the held-out samples would be too good."""
    seen = []
    original = Selector.__init__

    def watch(self, targets, *rest, **options):
        seen.append(len(targets))
        original(self, targets, *rest, **options)

    monkeypatch.setattr(Selector, "__init__", watch)
    splits = []
    original_split = fit.split_samples

    def split(count, share, seed, seen=None):
        splits.append((original_split(count, share, seed, seen), seen))
        return splits[-1][0]

    monkeypatch.setattr("snn_recon_plugin.pipeline.capture.split_samples", split)
    report = convex_init_(loop_net(), batches(), hidden="reconstruct")
    assert seen == [480]
    assert report.heldout == 120
    assert report.heldout_before == 120
    ((found, used),) = splits
    assert len(used) == 480
    assert not torch.isin(found.heldout, used).any()
    assert sorted([*found.heldout.tolist(), *found.fitted.tolist()]) == list(range(600))


def test_held_out_accuracy_is_about_that_of_the_test_set():
    net = loop_net()
    report = convex_init_(net, batches(), hidden="reconstruct", n_candidates=10.0)
    inputs, _ = test_data()
    assert len(inputs) == 400
    assert report.accuracy_after == pytest.approx(accuracy(net), abs=0.05)


def test_rounds_report_how_many_fresh_candidates_still_violate():
    report = convex_init_(loop_net(), batches(), hidden="reconstruct", rounds=3, n_candidates=160)
    layer = report.layers[0].witnesses
    assert layer.simulated == 160
    assert 30 <= layer.priced <= 40  # but for dead and double ones
    assert 0 <= layer.violating <= 40
    assert f"{layer.violating} of {layer.priced} fresh ones would improve it" in str(report)


@pytest.mark.parametrize("witnesses", sorted(set(SAMPLERS) - {"own", "pairs"}))
def test_every_sampler_by_name(witnesses):
    net = loop_net()
    report = convex_init_(net, batches(300), hidden="reconstruct", witnesses=witnesses, n_candidates=1.0)
    assert report.certificate.reached
    assert not torch.equal(net.fc1.weight, loop_net().fc1.weight)


def test_own_rows_stay_what_they_are_and_dead_ones_are_not_enough():
    refused(loop_net(), batches(300), DataError, "dead", "'fc1'", witnesses="own", n_candidates=1.0)
    net, lively = loop_net(), loop_net()
    for one in (net, lively):
        with torch.no_grad():
            one.fc1.bias.add_(0.5)
    convex_init_(net, batches(300), hidden="reconstruct", witnesses="own", n_candidates=1.0)
    assert {tuple(row) for row in net.fc1.weight.tolist()} == {tuple(row) for row in lively.fc1.weight.tolist()}


def test_a_sampler_of_the_users_own():
    def mine(site, count, generator):
        assert site.inputs.shape == (240, 64)
        assert not site.fed_by_spikes
        return Candidates(torch.randn(count, 64, generator=generator), torch.zeros(count))

    report = convex_init_(loop_net(), batches(300), hidden="reconstruct", witnesses=mine, n_candidates=100)
    assert report.layers[0].witnesses.simulated == 100


class Deep(Loop):
    def __init__(self, neuron):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.lif0 = nn.Linear(HIDDEN, HIDDEN), neuron

    def forward(self, x):
        mem0, mem1, mem2, membranes = None, self.lif1.reset_mem(), self.lif2.reset_mem(), []
        spikes0 = None
        for _ in range(self.steps):
            spikes, mem1 = self.lif1(self.fc1(x), mem1)
            if isinstance(self.lif0, snn.RLeaky):
                if spikes0 is None:
                    spikes0, mem0 = self.lif0.init_rleaky()
                spikes0, mem0 = self.lif0(self.inner(spikes), spikes0, mem0)
            else:
                spikes0, mem0 = self.lif0(self.inner(spikes), self.lif0.reset_mem() if mem0 is None else mem0)
            _, mem2 = self.lif2(self.fc2(spikes0), mem2)
            membranes.append(mem2)
        return torch.stack(membranes)


def test_two_layers_are_rebuilt_one_on_the_other():
    net = Deep(snn.Leaky(beta=0.9))
    report = convex_init_(net, batches(), hidden="reconstruct")
    assert [layer.witnesses.name for layer in report.layers] == ["fc1", "inner"]
    assert accuracy(net) > 0.9


def test_a_recurrent_layer_above_another_is_drawn_or_kept():
    net = Deep(snn.RLeaky(beta=0.9, linear_features=HIDDEN))
    report = convex_init_(net, batches(), hidden="reconstruct")
    assert report.layers[0].witnesses is not None
    assert report.layers[1].witnesses is None
    assert report.layers[1].draw or report.layers[1].reason.startswith("recurrent")
    assert accuracy(net) > 0.8


class ByHand(Loop):
    """Feeds the hidden spikes back by hand, next to the input."""

    def __init__(self):
        super().__init__(inputs=64 + HIDDEN)

    def forward(self, x):
        mem1, mem2, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        spikes = x.new_zeros(len(x), HIDDEN)
        for _ in range(self.steps):
            spikes, mem1 = self.lif1(self.fc1(torch.cat([x, spikes], 1)), mem1)
            _, mem2 = self.lif2(self.fc2(spikes), mem2)
            membranes.append(mem2)
        return torch.stack(membranes)


def unlike_rows():
    net = normalised()
    with torch.no_grad():
        net[1].running_var.copy_(torch.linspace(0.01, 4.0, HIDDEN))
    return net


class Positions(Loop):
    """A convolution whose neurons are flattened before they spike."""

    def __init__(self):
        super().__init__(hidden=4 * 36)
        self.fc1 = nn.Conv2d(1, 4, 3)

    def forward(self, x):
        mem1, mem2, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for _ in range(self.steps):
            spikes, mem1 = self.lif1(self.fc1(x.view(-1, 1, 8, 8)).flatten(1), mem1)
            _, mem2 = self.lif2(self.fc2(spikes), mem2)
            membranes.append(mem2)
        return torch.stack(membranes)


# -- bad input -----------------------------------------------------------------------------------------------------------


def refused(net, data, error, *words, **options):
    before = snapshot(net)
    with pytest.raises(error) as caught:
        convex_init_(net, data, hidden="reconstruct", **options)
    for word in words:
        assert word in str(caught.value)
    assert_as_before(net, before)


def test_a_single_class_is_refused():
    data = [(x, torch.zeros_like(y)) for x, y in batches(200)]
    refused(loop_net(), data, DataError, "single class")


def test_too_few_samples_are_refused():
    refused(loop_net(), batches(8, 8), DataError, "8 samples", "at least 10")


def test_identical_samples_with_different_labels_give_no_candidates():
    data = [(torch.ones(40, 64), torch.arange(40) % 10)]
    refused(loop_net(), data, DataError, "candidates")


@pytest.mark.parametrize(
    "candidates",
    [
        Candidates(torch.zeros(200, 63), torch.zeros(200)),
        Candidates(torch.zeros(200, 64), None),
        Candidates(torch.full((200, 64), torch.nan), torch.zeros(200)),
    ],
    ids=["shape", "bias", "NaN"],
)
def test_candidates_that_the_layer_cannot_hold_are_refused(candidates):
    words = ("a sampler", "(number, 64)", "return Candidates")
    refused(loop_net(), batches(200), OptionError, *words, witnesses=lambda *_: candidates)


def test_a_sampler_that_gives_something_else_is_refused():
    refused(loop_net(), batches(200), OptionError, "tuple", witnesses=lambda *_: (torch.zeros(5, 64), torch.zeros(5)))


def test_candidates_that_never_spike_are_refused():
    none = Candidates(torch.zeros(60, 64), torch.zeros(60))
    refused(loop_net(), batches(200), DataError, "tell samples apart", "60 dead", witnesses=lambda *_: none)


def test_a_width_above_the_number_of_different_candidates_keeps_the_last_rows():
    data = [(torch.eye(64)[torch.arange(40) % 2], torch.arange(40) % 2)]
    net = loop_net()
    own = net.fc1.weight.detach().clone(), net.fc1.bias.detach().clone()
    report = convex_init_(net, data, hidden="reconstruct", classes=10)
    found = report.layers[0].witnesses
    assert 0 < found.selected < found.width == HIDDEN
    assert f"{found.selected} selected from {found.simulated} candidates, {HIDDEN - found.selected} rows kept" in str(report)
    for now, before in zip((net.fc1.weight, net.fc1.bias), own, strict=True):
        assert torch.equal(now[found.selected :], before[found.selected :])
        assert not torch.equal(now[: found.selected], before[: found.selected])
    assert report.accuracy_written == 1.0


@pytest.mark.parametrize(
    ("make", "forward", "words"),
    [
        (ByHand, plain_forward, "more than their own row"),
        (unlike_rows, OVER, "more than their own row"),
        (Positions, plain_forward, "not a value for each row"),
    ],
    ids=["fed back by hand", "rows treated unlike", "positions flattened"],
)
def test_rows_that_do_something_else_together_are_not_written(make, forward, words):
    torch.manual_seed(0)
    net = make()
    synapse = net[0] if isinstance(net, nn.Sequential) else net.fc1
    own = synapse.weight.detach().clone()
    report = convex_init_(net, batches(300), hidden="reconstruct", forward=forward)
    (layer,) = report.layers
    assert layer.witnesses is None
    assert words in layer.reason
    assert words in str(report)
    assert torch.allclose(synapse.weight, layer.gain * own)


def test_batches_of_one_sample():
    """With this seed the first sample takes no part in the selection."""
    report = convex_init_(loop_net(), batches(24, 1), hidden="reconstruct", seed=2)
    assert report.layers[0].witnesses is not None


@pytest.mark.parametrize("value", [0, 0.5, -1.0, True, float("nan"), "many"])
def test_numbers_of_candidates_out_of_range_are_refused(value):
    with pytest.raises(OptionError, match="n_candidates"):
        ConvexInitializer(n_candidates=value)


@pytest.mark.parametrize("value", [0, 1.5, True])
def test_numbers_of_rounds_out_of_range_are_refused(value):
    with pytest.raises(OptionError, match="rounds"):
        ConvexInitializer(rounds=value)


def test_an_unknown_sampler_is_refused():
    with pytest.raises(OptionError, match="pairs"):
        ConvexInitializer(witnesses="closest")
