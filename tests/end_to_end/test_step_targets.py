"""A target at every step: sequences labelled step by step."""

import itertools
import math

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_
from snn_recon_plugin.convex import make_loss
from snn_recon_plugin.errors import DataError, OptionError
from snn_recon_plugin.stages.rows import Rows, rows_of
from snn_recon_plugin.stages.stream import split_samples

from ..helpers import bits

STEPS, SYMBOLS, WIDTH = 6, 4, 40


class Tagger(nn.Module):
    """Reads symbols (B, T, 4), writes scores at every step, (T, B, C)."""

    def __init__(self, outputs=SYMBOLS, layers=1, library="snntorch"):
        super().__init__()
        torch.manual_seed(0)
        sizes = [SYMBOLS, *[WIDTH] * layers]
        self.synapses = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(sizes))
        quick = torch.tensor(800.0)  # 1/s: at Norse's own time constants a symbol takes longer to arrive than it lasts
        li = norse.LIParameters(tau_syn_inv=quick, tau_mem_inv=quick)
        lif = norse.LIFParameters(tau_syn_inv=quick, tau_mem_inv=quick)
        make = (lambda: snn.Leaky(beta=0.6)) if library == "snntorch" else (lambda: norse.LIFCell(p=lif))
        self.neurons = nn.ModuleList(make() for _ in range(layers))
        self.fc, self.library = nn.Linear(WIDTH, outputs), library
        self.out = snn.Leaky(beta=0.5, reset_mechanism="none") if library == "snntorch" else norse.LICell(p=li)

    def forward(self, x):
        states, last, scores = [None] * len(self.neurons), None, []
        if self.library == "snntorch":
            states, last = [neuron.reset_mem() for neuron in self.neurons], self.out.reset_mem()
        for symbol in x.unbind(1):
            value = symbol
            for k, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                value, states[k] = neuron(synapse(value), states[k])
            score, last = self.out(self.fc(value), last)
            scores.append(last if self.library == "snntorch" else score)
        return torch.stack(scores)


def symbols(count=300, seed=0):
    """Sequences (n, T) of symbols, and as one-hot inputs."""
    drawn = torch.randint(SYMBOLS, (count, STEPS), generator=torch.Generator().manual_seed(seed))
    return 3.0 * nn.functional.one_hot(drawn, SYMBOLS).float(), drawn


def loader(inputs, targets, size=50):
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def accuracy(net, inputs, targets):
    with torch.no_grad():
        return float((net(inputs).movedim(0, 1).argmax(2) == targets).float().mean())


@pytest.mark.parametrize("library", ["snntorch", "norse"])
def test_each_step_gets_its_own_label(library):
    inputs, drawn = symbols()
    net = Tagger(library=library)
    report = convex_init_(net, loader(inputs, drawn), readout="membrane_per_step", hidden="reconstruct")
    fresh, wanted = symbols(200, seed=9)
    found = accuracy(net, fresh, wanted)
    assert found > 0.9
    assert report.exactness.label == "exact"
    assert report.certificate.reached
    assert abs(report.accuracy_after - found) < 0.06
    assert report.accuracy_written == pytest.approx(accuracy(net, inputs, drawn), abs=1e-9)
    assert report.samples == 300


def test_the_certificate_is_of_the_loss_at_every_step():
    inputs, drawn = symbols(80)
    net = Tagger()
    report = convex_init_(net, loader(inputs, drawn), readout="membrane_per_step", strength=0.01, penalty="ridge")
    with torch.no_grad():
        loss = nn.functional.cross_entropy(net(inputs).movedim(0, 1).flatten(0, 1).double(), drawn.flatten())
    expected = float(loss) + 0.01 * 0.5 * float(net.fc.weight.detach().double().square().sum())
    assert report.certificate.primal == pytest.approx(expected, rel=1e-4)


def test_what_the_report_says_of_before_is_the_nets_own_step_by_step():
    inputs, drawn = symbols(100)
    net, twin = Tagger(), Tagger()
    report = convex_init_(net, loader(inputs, drawn, 100), readout="membrane_per_step", hidden="keep", holdout=0.5, seed=4)
    with torch.no_grad():
        scores = twin(inputs).movedim(0, 1)
    held = split_samples(100, 0.5, 4).heldout
    flat, targets = scores[held].flatten(0, 1), drawn[held].flatten()
    assert report.accuracy_before == pytest.approx(float((flat.argmax(1) == targets).double().mean()), abs=1e-9)
    assert report.loss_before == pytest.approx(float(nn.functional.cross_entropy(flat.double(), targets)), rel=1e-5)


@pytest.mark.parametrize("outputs", [1, 3])
def test_values_at_every_step(outputs):
    """Regression: how often a symbol was seen so far, leaking as the readout does."""
    inputs, drawn = symbols()
    now, values = torch.zeros(len(drawn), outputs), []
    for step in range(STEPS):
        now = 0.5 * now + torch.stack([(drawn[:, step] == k).float() for k in range(outputs)], 1)
        values.append(now)
    targets = torch.stack(values, 1)
    targets = targets[..., 0] if outputs == 1 else targets
    net = Tagger(outputs)
    report = convex_init_(net, loader(inputs, targets), readout="membrane_per_step", loss="squared", hidden="reconstruct")
    with torch.no_grad():
        left = net(inputs).movedim(0, 1) - targets.reshape(len(drawn), STEPS, outputs)
    spread = float(targets.flatten(0, 1).var(0).mean())
    assert float(left.square().mean()) < 0.1 * spread
    assert math.isnan(report.accuracy_after)


class RecurrentTagger(nn.Module):
    """Too narrow for a clock, so that its layer is built on a reservoir."""

    def __init__(self, width=20):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(SYMBOLS, width), snn.RLeaky(beta=0.6, linear_features=width)
        self.fc2, self.lif2 = nn.Linear(width, SYMBOLS), snn.Leaky(beta=0.5, reset_mechanism="none")

    def forward(self, x):
        (spikes, mem1), mem2, scores = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for symbol in x.unbind(1):
            spikes, mem1 = self.lif1(self.fc1(symbol), spikes, mem1)
            _, mem2 = self.lif2(self.fc2(spikes), mem2)
            scores.append(mem2)
        return torch.stack(scores)


@pytest.mark.parametrize("values", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_recurrent_layer_is_built_for_the_targets_of_the_steps(values):
    """Its rows hear a reservoir too, at the steps whose targets they are chosen for."""
    inputs, drawn = symbols()
    targets = nn.functional.one_hot(drawn, SYMBOLS).float() if values else drawn
    net = RecurrentTagger()
    report = convex_init_(net, loader(inputs, targets), readout="membrane_per_step", loss="squared", hidden="reconstruct")
    assert "built on a reservoir: held-out loss" in report.layers[0].witnesses.reason
    assert report.loss_after < 0.5 * report.loss_before


def test_class_weights_count_at_every_step():
    inputs, drawn = symbols()
    rare = (drawn == 0).long()
    recall = []
    for weight in (None, torch.tensor([1.0, 20.0])):
        net = Tagger(2)
        loss = nn.CrossEntropyLoss(weight)
        convex_init_(net, loader(inputs, rare), readout="membrane_per_step", loss=loss, strength=0.3, hidden="keep")
        with torch.no_grad():
            found = net(inputs).movedim(0, 1).argmax(2)
        recall.append(float((found[rare == 1] == 1).float().mean()))
    assert recall[1] > recall[0] + 0.1
    short = nn.CrossEntropyLoss(torch.ones(1))
    with pytest.raises(OptionError, match="class weights"):
        convex_init_(Tagger(2), loader(inputs, rare), readout="membrane_per_step", loss=short)


@pytest.mark.usefixtures("two_rates")
@pytest.mark.parametrize("hidden", [pytest.param("rescale", marks=pytest.mark.slow), "reconstruct"])
def test_hidden_layers_are_chosen_for_the_targets_of_the_steps(hidden):
    inputs, drawn = symbols()
    before = drawn.roll(1, 1)
    before[:, 0] = drawn[:, 0]
    net = Tagger(layers=2)
    with torch.no_grad():
        for synapse in net.synapses:
            synapse.weight.div_(20)
            synapse.bias.zero_()
    report = convex_init_(net, loader(inputs, before), readout="membrane_per_step", hidden=hidden, seed=1)
    assert all(layer.stats.silent < 0.5 for layer in report.layers)
    fresh, wanted = symbols(200, seed=9)
    told = wanted.roll(1, 1)
    assert accuracy(net, fresh[:, 1:], told[:, 1:]) > 0.55  # of 4 classes
    twin = Tagger(layers=2)
    with torch.no_grad():
        for synapse in twin.synapses:
            synapse.weight.div_(20)
            synapse.bias.zero_()
    convex_init_(twin, loader(inputs, before), readout="membrane_per_step", hidden=hidden, seed=1)
    assert [bits(p) for p in twin.parameters()] == [bits(p) for p in net.parameters()]


# -- what is meant -------------------------------------------------------------------------------------------------------


def test_targets_that_the_loss_takes_as_they_are_hold_for_whole_samples():
    loss = make_loss("cross_entropy")
    assert rows_of(loss, torch.zeros(5, dtype=torch.long), 3, 4, per_step=True) == Rows(4)
    assert rows_of(loss, torch.zeros(5, dtype=torch.long), 3, 4, per_step=False) == Rows(1)
    assert rows_of(loss, torch.zeros(5, 4, dtype=torch.long), 3, 4, per_step=True) == Rows(4, stepwise=True)
    hot = torch.eye(4, dtype=torch.long)[torch.tensor([0, 1, 3])]
    with pytest.raises(DataError, match="argmax"):  # as many steps as classes: one-hot labels are no classes of steps
        rows_of(loss, hot, 4, 4, per_step=True)
    assert rows_of(loss, 2 * hot, 4, 4, per_step=True) == Rows(4, stepwise=True)
    logistic = make_loss("logistic")
    assert rows_of(logistic, hot, 4, 4, per_step=True) == Rows(4)
    with pytest.raises(DataError, match="indicators"):  # whatever the first batch holds, these are indicators
        rows_of(logistic, 2 * hot, 4, 4, per_step=True)
    assert rows_of(logistic, hot, 1, 4, per_step=True) == Rows(4, stepwise=True)
    squared = make_loss("squared")
    assert rows_of(squared, torch.zeros(5, 4), 4, 4, per_step=True) == Rows(4)  # 4 outputs, 4 values a sample
    assert rows_of(squared, torch.zeros(5, 4), 1, 4, per_step=True) == Rows(4, stepwise=True)
    assert rows_of(squared, torch.zeros(5, 4, 2), 2, 4, per_step=True) == Rows(4, stepwise=True)


def test_rows_of_targets_weights_and_decisions():
    own = Rows(3, stepwise=True)
    same = Rows(3)
    targets = torch.arange(6).reshape(2, 3)
    assert own.targets(targets).tolist() == [0, 1, 2, 3, 4, 5]
    assert same.targets(torch.tensor([7, 8])).tolist() == [7, 7, 7, 8, 8, 8]
    assert own.weights(targets).tolist() == [0, 1, 2, 3, 4, 5]
    assert same.weights(torch.tensor([7, 8])).tolist() == [7, 7, 7, 8, 8, 8]
    assert same.weights(None) is None
    scores = torch.randn(2, 3, 5)
    assert torch.equal(own.decisions(scores), scores.reshape(6, 5))
    assert torch.equal(same.decisions(scores), scores.mean(1))
    assert torch.equal(same.decisions(scores[:, 0]), scores[:, 0])
    assert own.decided(torch.arange(6)).tolist() == [0, 1, 2, 3, 4, 5]
    assert same.decided(torch.arange(6)).tolist() == [0, 3]


def test_labels_at_every_step_for_one_score_a_sample_are_refused_with_what_to_pass():
    inputs, drawn = symbols(100)
    with pytest.raises(DataError, match="readout='membrane_per_step'"):
        convex_init_(Tagger(), loader(inputs, drawn))
    with pytest.raises(DataError, match="labels of shape"):
        convex_init_(Tagger(), loader(inputs, drawn[:, :3]), readout="membrane_per_step")
    with pytest.raises(DataError, match="labels from 0 to 7"):
        convex_init_(Tagger(), loader(inputs, 2 * drawn + 1 - (drawn == 0).long()), readout="membrane_per_step")
    with pytest.raises(DataError, match="single class"):
        convex_init_(Tagger(), loader(inputs, torch.zeros_like(drawn)), readout="membrane_per_step")
