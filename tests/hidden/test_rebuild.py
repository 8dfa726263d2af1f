"""Hidden layers rebuilt in nets of both libraries: simulated as the net would, selected, written at their own width."""

import copy

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import ConvexInitializer, convex_init_
from snn_recon_plugin.errors import DataError, OptionError
from snn_recon_plugin.hidden import SAMPLERS, Candidates, select
from snn_recon_plugin.networks import plain_forward
from snn_recon_plugin.stages.stream import split_samples

from ..helpers import (
    HIDDEN,
    Loop,
    accuracy,
    assert_as_before,
    batches,
    bits,
    divided,
    loop_net,
    one_line,
    snapshot,
    test_data,
)
from .nets import NETS, OVER, normalised

pytestmark = pytest.mark.usefixtures("one_rate")


@pytest.mark.parametrize("name", NETS)
def test_a_rebuilt_net_beats_its_own_weights_and_can_be_undone(name):
    make, forward = NETS[name]
    net = make()
    before = {name: bits(parameter) for name, parameter in net.named_parameters()}
    report = convex_init_(net, batches(), hidden="reconstruct", forward=forward)
    own = make()
    kept = convex_init_(own, batches(), hidden="rescale", forward=forward)
    assert report.certificate.reached
    assert accuracy(net, forward) > accuracy(own, forward) - 0.02  # of 400 images; docs/evidence/hidden.md measures the gain
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
    original = select.SelectionProgram

    def watch(targets, *rest):
        seen.append(len(targets))
        return original(targets, *rest)

    monkeypatch.setattr(select, "SelectionProgram", watch)
    splits = []
    original_split = split_samples

    def split(count, share, seed, used=None):
        splits.append((original_split(count, share, seed, used), used))
        return splits[-1][0]

    monkeypatch.setattr("snn_recon_plugin.stages.stream.split_samples", split)
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


@pytest.mark.parametrize("witnesses", sorted(set(SAMPLERS) - {"auto"}))
def test_every_sampler_by_name(witnesses):
    net = loop_net()
    report = convex_init_(net, batches(300), hidden="reconstruct", witnesses=witnesses, n_candidates=1.0)
    assert report.certificate.reached
    assert not torch.equal(net.fc1.weight, loop_net().fc1.weight)


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


def test_a_recurrent_layer_above_another_is_built():
    net = Deep(snn.RLeaky(beta=0.9, linear_features=HIDDEN))
    report = convex_init_(net, batches(), hidden="reconstruct")
    assert [sum(layer.witnesses.kinds.values()) for layer in report.layers] == [HIDDEN, HIDDEN]
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
    refused(loop_net(), batches(200), DataError, "distinguish samples", "60 dead", witnesses=lambda *_: none)


def test_a_width_above_the_number_of_different_candidates_keeps_the_last_rows():
    data = [(torch.eye(64)[torch.arange(40) % 2], torch.arange(40) % 2)]
    net = loop_net()
    own = net.fc1.weight.detach().clone(), net.fc1.bias.detach().clone()
    report = convex_init_(net, data, hidden="reconstruct", classes=10)
    found = report.layers[0].witnesses
    assert 0 < found.selected < found.width == HIDDEN
    assert (
        f"{found.selected} selected from {found.simulated} candidates ({found.selected} pairs), {HIDDEN - found.selected} rows kept"
        in str(report)
    )
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
    assert words in one_line(report)
    assert torch.allclose(synapse.weight, layer.gain * own)


def test_batches_of_one_sample():
    """With this seed the first sample takes no part in the selection."""
    report = convex_init_(loop_net(), batches(24, 1), hidden="reconstruct", seed=2)
    assert report.layers[0].witnesses is not None


@pytest.mark.parametrize("value", [0, 0.5, -1.0, True, float("nan"), "many"])
def test_numbers_of_candidates_out_of_range_are_refused(value):
    with pytest.raises(OptionError, match="n_candidates"):
        ConvexInitializer(n_candidates=value)


def test_an_unknown_sampler_is_refused():
    with pytest.raises(OptionError, match="pairs"):
        ConvexInitializer(witnesses="closest")


def test_auto_rebuilds_a_layer_only_where_that_does_better():
    """Selected candidates beat dead weights; a layer that is rebuilt already has nothing to gain, and stays bit for bit."""
    net = divided(loop_net())
    first = convex_init_(net, batches(), hidden="auto").layers[0]
    assert first.witnesses is not None
    written = net.fc1.weight.clone()
    second = convex_init_(net, batches(), hidden="auto").layers[0]
    assert second.witnesses is None
    assert (second.gain, torch.equal(net.fc1.weight, written)) == (1.0, True)
    assert "no worse than selected candidates on held-out samples" in second.reason


def test_auto_keeps_a_layer_for_which_there_are_no_candidates():
    def dead(site, count, generator):
        del site, generator
        return Candidates(torch.zeros(count, 64), torch.zeros(count))

    refused(loop_net(), batches(300), DataError, "no candidates that distinguish samples", witnesses=dead)
    layer = convex_init_(loop_net(), batches(300), hidden="auto", witnesses=dead).layers[0]
    assert layer.witnesses is None
    assert "no candidates that distinguish samples" in layer.reason


class Averaged(Loop):
    """Averages the hidden spikes over time before the last layer, which runs once."""

    def forward(self, x):
        mem, spikes = self.lif1.reset_mem(), []
        for _ in range(self.steps):
            emitted, mem = self.lif1(self.fc1(x), mem)
            spikes.append(emitted)
        return self.fc2(torch.stack(spikes).mean(0))


@pytest.mark.parametrize(("hidden", "dead"), [("auto", False), ("auto", True), ("rescale", True)])
def test_spikes_that_are_averaged_before_the_last_layer(hidden, dead):
    torch.manual_seed(0)
    net = divided(Averaged()) if dead else Averaged()
    plain = copy.deepcopy(net)
    report = convex_init_(net, batches(), hidden=hidden)
    assert report.layers[0].reason == ""
    assert (report.layers[0].witnesses is not None) == (hidden == "auto")
    inputs, labels = test_data()
    after = float((net(inputs).argmax(1) == labels).double().mean())
    assert after > 0.8
    if not dead:
        convex_init_(plain, batches(), hidden="keep")
        assert after > float((plain(inputs).argmax(1) == labels).double().mean())
