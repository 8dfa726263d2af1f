"""A target at every step: sequences labelled step by step."""

import math

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.convex import make_loss
from snn_recon_plugin.errors import DataError, ReadoutWarning
from snn_recon_plugin.stages.scores import RowsPerSample, rows_of
from snn_recon_plugin.stages.stream import split_samples

from ..nets import Looped, Recurrent, Sequence, step_through

STEPS, SYMBOLS, WIDTH = 6, 4, 40
PER_STEP = {"readout": "membrane_per_step"}


def in_steps(x):
    return x.unbind(1)


def tagger(outputs=SYMBOLS, layers=1, library="snntorch"):
    """Build a net that reads symbols (B, T, 4), and writes scores at every step, (T, B, C)."""
    torch.manual_seed(0)
    if library == "snntorch":
        output = snn.Leaky(beta=0.5, reset_mechanism="none")
        return Sequence(SYMBOLS, *[WIDTH] * layers, outputs, beta=0.6, output=output, over=in_steps)
    quick = {"tau_syn_inv": torch.tensor(800.0), "tau_mem_inv": torch.tensor(800.0)}  # 1/s: a symbol arrives while it lasts
    neurons = norse.LIFCell(p=norse.LIFParameters(**quick)), norse.LICell(p=norse.LIParameters(**quick))
    return Looped(over_time(time_dim=1), nn.Linear(SYMBOLS, WIDTH), neurons[0], nn.Linear(WIDTH, outputs), neurons[1])


def symbols(count=300, seed=0):
    """Sequences (n, T) of symbols, and as one-hot inputs."""
    drawn = torch.randint(SYMBOLS, (count, STEPS), generator=torch.Generator().manual_seed(seed))
    return 3.0 * nn.functional.one_hot(drawn, SYMBOLS).float(), drawn


def loader(inputs, targets, size=50):
    return list(zip(inputs.split(size), targets.split(size), strict=True))


class Resetting(Sequence):
    """A tagger whose output resets; returns its spikes, or its membranes."""

    def __init__(self, returns):
        torch.manual_seed(0)
        super().__init__(SYMBOLS, WIDTH, SYMBOLS, beta=0.6, output=snn.Leaky(beta=0.5), over=in_steps)
        self.returns = returns

    def forward(self, x):
        spikes, membranes = step_through(self.over(x), self.synapses, self.neurons)
        return spikes if self.returns == "spikes" else membranes


def accuracy(net, inputs, targets):
    with torch.no_grad():
        return float((net(inputs).movedim(0, 1).argmax(2) == targets).float().mean())


@pytest.mark.parametrize("library", ["snntorch", "norse"])
def test_each_step_gets_its_own_label(library):
    inputs, drawn = symbols()
    net = tagger(library=library)
    report = convex_init_(net, loader(inputs, drawn), **PER_STEP, hidden="reconstruct")
    fresh, wanted = symbols(200, seed=9)
    found = accuracy(net, fresh, wanted)
    assert found > 0.9
    assert report.exactness.label == "exact"
    assert report.certificate.reached
    assert abs(report.accuracy_after - found) < 0.06
    assert report.accuracy_written == pytest.approx(accuracy(net, inputs, drawn), abs=1e-9)
    assert report.program.samples == 300


def at_each_step(net, batch):
    scores = net(batch[0])
    return sum(nn.functional.cross_entropy(step, label) for step, label in zip(scores, batch[1].T, strict=True))


@pytest.mark.parametrize(
    ("returns", "options", "kind", "least"),
    [
        ("spikes", {"readout": "spike_per_step"}, "spike_per_step", 0.75),
        ("spikes", {"step": at_each_step}, "spike_per_step", 0.75),
        ("membranes", {"readout": "membrane_per_step"}, "membrane_per_step", 0.85),
        ("membranes", {"step": at_each_step}, "membrane_per_step", 0.85),
    ],
    ids=["spikes", "a step that gets spikes", "membranes", "a step that gets membranes"],
)
def test_spikes_and_membranes_that_reset_decide_at_each_step(returns, options, kind, least):
    """Scale and shift are chosen on the decisions of all steps; the report counts those of the written net."""
    inputs, drawn = symbols()
    net = Resetting(returns)
    before = accuracy(net, inputs, drawn)
    report = convex_init_(net, loader(inputs, drawn), hidden="reconstruct", progress=False, **options)
    assert (report.readout.kind, report.exactness.label) == (kind, "surrogate")
    own = accuracy(net, inputs, drawn)
    assert report.accuracy_written == pytest.approx(own, abs=1e-9)
    fresh, wanted = symbols(200, seed=9)
    assert accuracy(net, fresh, wanted) > max(least, before + 0.2)
    assert abs(report.accuracy_after - accuracy(net, fresh, wanted)) < 0.06
    assert report.certificate.reached


def test_the_certificate_and_the_figures_before_are_of_the_loss_at_every_step():
    inputs, drawn = symbols(100)
    net, held = tagger(), split_samples(100, 0.5, 4).heldout
    options = {**PER_STEP, "hidden": "keep", "holdout": 0.5, "seed": 4, "strength": 0.01}
    with torch.no_grad():
        before = net(inputs).movedim(0, 1)[held].flatten(0, 1).double()
        report = convex_init_(net, loader(inputs, drawn), **options)
        loss = nn.functional.cross_entropy(net(inputs).movedim(0, 1).flatten(0, 1).double(), drawn.flatten())
    expected = float(loss) + 0.01 * 0.5 * float(net.synapses[-1].weight.detach().double().square().sum())
    assert report.certificate.primal == pytest.approx(expected, rel=1e-4)
    targets = drawn[held].flatten()
    assert report.accuracy_before == pytest.approx(float((before.argmax(1) == targets).double().mean()), abs=1e-9)
    assert report.before.loss == pytest.approx(float(nn.functional.cross_entropy(before, targets)), rel=1e-5)


@pytest.mark.parametrize("by_step", [False, True])
def test_values_at_every_step(by_step):
    """Regression: how often a symbol was seen so far, leaking as the readout does; a step has one loss of all steps, time first."""
    inputs, drawn = symbols()
    now, steps = torch.zeros(len(drawn)), []
    for step in range(STEPS):
        now = 0.5 * now + (drawn[:, step] == 0).float()
        steps.append(now)
    targets = torch.stack(steps, 1)
    net = tagger(1)
    if by_step:
        time_first = [(batch, values.T[..., None]) for batch, values in loader(inputs, targets)]
        step = {"step": lambda net, batch: nn.functional.mse_loss(net(batch[0]), batch[1])}
        report = convex_init_(net, time_first, **step, hidden="reconstruct", progress=False)
    else:
        report = convex_init_(net, loader(inputs, targets), **PER_STEP, loss="squared", hidden="reconstruct")
    assert report.readout.kind == "membrane_per_step"
    with torch.no_grad():
        left = net(inputs).movedim(0, 1)[..., 0] - targets
    spread = float(targets.flatten().var())
    assert float(left.square().mean()) < 0.1 * spread
    assert math.isnan(report.accuracy_after)


def test_a_recurrent_layer_is_built_for_the_targets_of_the_steps():
    """Its rows hear a reservoir too, at the steps whose targets they are chosen for."""
    inputs, drawn = symbols()
    targets = nn.functional.one_hot(drawn, SYMBOLS).float()
    torch.manual_seed(0)
    narrow = snn.RLeaky(beta=0.6, linear_features=20)  # too narrow for a clock, so that its layer is built on a reservoir
    net = Recurrent(nn.Linear(SYMBOLS, 20), narrow, 20, SYMBOLS, beta=0.5, over=in_steps)
    report = convex_init_(net, loader(inputs, targets), **PER_STEP, loss="squared", hidden="reconstruct")
    assert "built on a reservoir: held-out loss" in report.layers[0].witnesses.reason
    assert report.after.loss < 0.5 * report.before.loss


@pytest.mark.parametrize(("hidden", "weight"), [("keep", torch.tensor([1.0, 2.0, 0.5, 3.0])), ("reconstruct", None)])
def test_steps_without_a_label(hidden, weight):
    """Padded sequences: the program is of the other steps alone, and one sample has none."""
    inputs, drawn = symbols(120)
    lengths = torch.arange(120) % (STEPS + 1)
    padded = torch.where(torch.arange(STEPS) < lengths[:, None], drawn, -100)
    net, loss = tagger(), nn.CrossEntropyLoss(weight)
    report = convex_init_(net, loader(inputs, padded), **PER_STEP, loss=loss, hidden=hidden, strength=0.01)
    with torch.no_grad():
        scores = net(inputs).movedim(0, 1)
    loss = loss.double()
    expected = float(loss(scores.double().flatten(0, 1), padded.flatten()))
    ridge = 0.01 * 0.5 * float(net.synapses[-1].weight.detach().double().square().sum())
    assert report.certificate.reached
    assert report.certificate.primal == pytest.approx(expected + ridge, rel=1e-4)
    labelled = padded != -100
    assert report.accuracy_written == pytest.approx(float((scores.argmax(2) == drawn)[labelled].double().mean()), abs=1e-9)
    assert report.program.samples == int(labelled.any(1).sum()) < 120


@pytest.mark.usefixtures("two_rates")
@pytest.mark.parametrize("hidden", [pytest.param("rescale", marks=pytest.mark.slow), "reconstruct"])
def test_hidden_layers_are_chosen_for_the_targets_of_the_steps(hidden):
    inputs, drawn = symbols()
    before = drawn.roll(1, 1)
    before[:, 0] = drawn[:, 0]
    net = tagger(layers=2)
    with torch.no_grad():
        for synapse in net.synapses[:2]:
            synapse.weight.div_(20)
            synapse.bias.zero_()
    report = convex_init_(net, loader(inputs, before), **PER_STEP, hidden=hidden, seed=1)
    assert all(layer.stats.silent < 0.5 for layer in report.layers)
    fresh, wanted = symbols(200, seed=9)
    assert accuracy(net, fresh[:, 1:], wanted.roll(1, 1)[:, 1:]) > 0.55  # of 4 classes


def test_targets_that_the_loss_takes_as_they_are_hold_for_whole_samples():
    loss = make_loss("cross_entropy")
    assert rows_of(loss, torch.zeros(5, dtype=torch.long), 3, 4, per_step=True) == RowsPerSample(4)
    assert rows_of(loss, torch.zeros(5, dtype=torch.long), 3, 4, per_step=False) == RowsPerSample(1)
    assert rows_of(loss, torch.zeros(5, 4, dtype=torch.long), 3, 4, per_step=True) == RowsPerSample(4, stepwise=True)
    hot = torch.eye(4, dtype=torch.long)[torch.tensor([0, 1, 3])]
    with pytest.raises(DataError, match="argmax"):  # as many steps as classes: one-hot labels are no classes of steps
        rows_of(loss, hot, 4, 4, per_step=True)
    assert rows_of(loss, 2 * hot, 4, 4, per_step=True) == RowsPerSample(4, stepwise=True)
    logistic = make_loss("logistic")
    assert rows_of(logistic, hot, 4, 4, per_step=True) == RowsPerSample(4)
    with pytest.raises(DataError, match="indicators"):  # whatever the first batch holds, these are indicators
        rows_of(logistic, 2 * hot, 4, 4, per_step=True)
    assert rows_of(logistic, hot, 1, 4, per_step=True) == RowsPerSample(4, stepwise=True)
    squared = make_loss("squared")
    assert rows_of(squared, torch.zeros(5, 4), 4, 4, per_step=True) == RowsPerSample(4)  # 4 outputs, 4 values a sample
    assert rows_of(squared, torch.zeros(5, 4), 1, 4, per_step=True) == RowsPerSample(4, stepwise=True)
    assert rows_of(squared, torch.zeros(5, 4, 2), 2, 4, per_step=True) == RowsPerSample(4, stepwise=True)


def test_rows_of_targets_weights_and_decisions():
    own = RowsPerSample(3, stepwise=True)
    same = RowsPerSample(3)
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


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda drawn: drawn, {}, "readout='spike_per_step', 'membrane_per_step', or 'linear_per_step' without"),
        (lambda drawn: drawn[:, :3], PER_STEP, "labels of shape"),
        (lambda drawn: 2 * drawn + 1 - (drawn == 0).long(), PER_STEP, "labels from 0 to 7"),
        (torch.zeros_like, PER_STEP, "single class"),
    ],
    ids=["a score a sample", "too few", "too large", "one class"],
)
def test_labels_at_every_step_that_are_refused(change, options, words):
    inputs, drawn = symbols(100)
    with pytest.raises(DataError, match=words):
        convex_init_(tagger(), loader(inputs, change(drawn)), **options)


def test_targets_of_as_many_steps_as_samples_are_named():
    inputs, drawn = symbols(60)
    with pytest.warns(
        ReadoutWarning, match=r"as many samples as time steps, 6: targets of shape \(6, 6\) are taken as \[batch, time\]"
    ):
        report = convex_init_(tagger(), loader(inputs, drawn, STEPS), **PER_STEP, hidden="keep")
    assert report.accuracy_written > 0.9
    time_first = [(batch, targets.T) for batch, targets in loader(inputs, drawn, STEPS)]
    with pytest.warns(ReadoutWarning, match="Pass unpack=lambda batch"):
        right = convex_init_(tagger(), time_first, unpack=lambda b: (b[0], b[1].transpose(0, 1)), **PER_STEP, hidden="keep")
    assert right.accuracy_written == report.accuracy_written
