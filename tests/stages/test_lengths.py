"""Padded sequences of known lengths: scores, program and report are of the steps before the padding."""

import re

import lightning.pytorch as pl
import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader

from snn_recon_plugin import ReconstructionCallback, convex_init_, diagnose, over_time
from snn_recon_plugin.errors import DataError
from snn_recon_plugin.networks.calls.batches import align_ends

from ..nets import step_through

CLASSES, PIXELS, STEPS, SAMPLES = 3, 10, 12, 120


def samples():
    """Spike trains (T, n, P) whose rates tell the class, noise after their ends, labels and lengths."""
    generator = torch.Generator().manual_seed(0)
    rates = 0.15 + 0.7 * torch.rand(CLASSES, PIXELS, generator=generator)
    labels = torch.arange(SAMPLES) % CLASSES
    lengths = torch.randint(4, STEPS + 1, (SAMPLES,), generator=generator)
    inside = torch.arange(STEPS)[:, None, None] < lengths[:, None]
    drawn = torch.rand(STEPS, SAMPLES, PIXELS, generator=generator)
    return (drawn < torch.where(inside, rates[labels], 0.5)).float(), labels, lengths


DATA = samples()


def batches(size=20):
    inputs, labels, lengths = DATA
    return list(zip(inputs.split(size, 1), labels.split(size), lengths.split(size), strict=True))


def unpack(batch):
    return batch[0], batch[1], batch[2]


class Gathers(nn.Module):
    """A net that decodes each sample at its own last step, over its own steps, or not at all."""

    def __init__(self, decode=None, reset="none", batch_first=False):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(PIXELS, 16), snn.Leaky(beta=0.8)
        self.fc2, self.lif2 = nn.Linear(16, CLASSES), snn.Leaky(beta=0.9, reset_mechanism=reset)
        self.decode, self.batch_first = decode, batch_first

    def forward(self, x, lengths):
        steps = x.unbind(1 if self.batch_first else 0)
        spikes, membranes = step_through(steps, (self.fc1, self.fc2), (self.lif1, self.lif2))
        return spikes, membranes if self.decode is None else self.decode(spikes, membranes, lengths)


class Returns(Gathers):
    def forward(self, x, lengths):
        return super().forward(x, lengths)[1]


def inside(lengths):
    return (torch.arange(STEPS)[:, None] < lengths)[..., None]


def last(spikes, membranes, lengths):
    return membranes[lengths - 1, torch.arange(len(lengths))]


DECODED = {  # how a net decodes each sample over its own steps, and the reset of its output
    "membrane_last": (last, "none"),
    "membrane_mean": (lambda spk, mem, lengths: (mem * inside(lengths)).sum(0) / lengths[:, None], "none"),
    "membrane_sum": (lambda spk, mem, lengths: (mem * inside(lengths)).sum(0), "none"),
    "membrane_max": (lambda spk, mem, lengths: mem.masked_fill(~inside(lengths), -torch.inf).amax(0), "none"),
    "spike_count": (lambda spk, mem, lengths: (spk * inside(lengths)).sum(0), "subtract"),
}


def accuracy(net, decode):
    inputs, labels, lengths = DATA
    with torch.no_grad():
        spikes, membranes = Gathers.forward(net, inputs, lengths)
    return float((decode(spikes, membranes, lengths).argmax(1) == labels).float().mean())


def solved(net, **options):
    usual = {"unpack": unpack, "hidden": "keep", "strength": 1e-3, "progress": False}
    return convex_init_(net, batches(), **{**usual, **options})


@pytest.mark.parametrize("readout", DECODED)
def test_a_net_that_decodes_each_sample_over_its_own_steps(readout):
    decode, reset = DECODED[readout]
    net, plain = Returns(decode, reset), Gathers(None, reset)
    report = solved(net)
    net.decode = None
    assert report.readout.kind == readout
    assert report.accuracy_written == pytest.approx(accuracy(net, decode), abs=1e-6)
    assert report.accuracy_written > 0.6
    assert report.certificate.reached
    assert "4 to 12 steps" in report.details()
    # A net that returns all steps is read at the same ones.
    other = solved(plain, readout=readout)
    assert (other.accuracy_written, other.exactness.label) == (report.accuracy_written, report.exactness.label)
    assert torch.equal(net.fc2.weight, plain.fc2.weight)


def test_no_other_readout_is_better():
    inputs, labels, lengths = DATA
    net = Returns(last)
    solved(net, fit_loss="same", tol=1e-8)
    loss = nn.functional.cross_entropy(net(inputs, lengths), labels) + 0.5e-3 * net.fc2.weight.square().sum()
    slopes = torch.autograd.grad(loss, [net.fc2.weight, net.fc2.bias])
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-4


@pytest.mark.parametrize("hidden", ["rescale", "reconstruct"])
def test_hidden_layers_are_chosen_at_the_ends(hidden):
    report = solved(Returns(last), hidden=hidden, strength="auto")
    assert report.accuracy_written > 0.7
    assert report.exactness.max_difference < 1e-4 * report.exactness.scale


def test_other_ways_to_call():
    inputs, labels, lengths = DATA
    net = Returns(last)
    solved(net)
    swapped, chosen = Returns(last, batch_first=True), Returns(last)
    rows = [(x.transpose(0, 1), y, z) for x, y, z in batches()]
    convex_init_(swapped, rows, unpack=unpack, hidden="keep", strength=1e-3)
    solved(chosen, forward=lambda net, padded: net(padded.inputs, padded.lengths))
    assert torch.equal(swapped.fc2.weight, net.fc2.weight)
    assert torch.equal(chosen.fc2.weight, net.fc2.weight)
    # A loop outside the net, and neurons that take all steps at once, return every step.
    outside = nn.Sequential(net.fc1, snn.Leaky(0.8, init_hidden=True), net.fc2, snn.Leaky(0.9, init_hidden=True, output=True))
    assert solved(outside, forward=over_time(), readout="membrane_last").exactness.label in ("exact", "surrogate")
    torch.manual_seed(0)
    other = norse.SequentialState(nn.Linear(PIXELS, 16), norse.LIF(), nn.Linear(16, CLASSES), norse.LI())
    report = solved(other, forward=lambda net, padded: net(10 * padded.inputs)[0], readout="membrane_last")
    with torch.no_grad():
        scores = other(10 * inputs)[0][lengths - 1, torch.arange(SAMPLES)]
    assert report.accuracy_written == pytest.approx(float((scores.argmax(1) == labels).float().mean()), abs=1e-6)


def test_a_diagnosis_and_a_guard():
    net = Returns(last)
    assert "membrane_last" in diagnose(net, batches(), unpack=unpack).readout
    report = solved(net)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    guard = report.protect(optimizer, batches())
    for inputs, labels, lengths in batches():
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs, lengths), labels).backward()
        optimizer.step()
    inputs, labels, lengths = DATA
    with guard.evaluated(), torch.no_grad():
        assert float((net(inputs, lengths).argmax(1) == labels).float().mean()) > report.accuracy_written - 0.1
    guard.close()


def test_scores_of_all_steps_are_recognised():
    """Lengths alone prove nothing: the net is run with others."""
    net = Returns(lambda spikes, membranes, lengths: membranes.mean(0))
    report = solved(net)
    assert (report.readout.kind, report.num_steps, report.least_steps) == ("membrane_mean", STEPS, 0)


def test_values_are_aligned_at_the_end():
    values = torch.arange(1.0, 7).reshape(3, 2)
    assert align_ends(values, torch.tensor([3, 1]), 4).T.tolist() == [[0, 1, 3, 5], [0, 0, 0, 2]]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"unpack": lambda batch: (batch[0], batch[1], batch[2].float())}, DataError, "lengths of torch.float32"),
        ({"unpack": lambda batch: (batch[0], batch[1], batch[2][:3])}, DataError, "lengths of torch.int64, shape"),
        ({"unpack": lambda batch: (batch[0], batch[1], batch[2] - 4)}, DataError, "lengths from 0"),
        ({"unpack": lambda batch: (batch[0], batch[1], batch[2] + 1)}, DataError, "lengths up to 13"),
        ({"unpack": lambda batch: (batch[0], batch[1], 3 * batch[2]), "hidden": "reconstruct"}, DataError, "lengths up to 36"),
        ({"unpack": lambda batch: (batch[0], batch[1], None)}, DataError, "lengths that are a NoneType"),
        ({"unpack": lambda batch: (batch[0], batch[1], {"id": 3})}, DataError, "lengths that are a dict"),
        ({"unpack": None}, DataError, "batch 1 is a tuple of 3"),
    ],
)
def test_lengths_that_fit_no_batch(options, error, words):
    with pytest.raises(error, match=words) as caught:
        solved(Gathers(), **{"readout": "membrane_last", **options})
    assert re.search("length|number of steps", caught.value.fix + caught.value.needed)


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net, self.criterion = Returns(last), nn.CrossEntropyLoss()

    def training_step(self, batch, batch_idx):
        inputs, labels, lengths = batch
        return self.criterion(self.net(inputs, lengths), labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


def collate(rows):
    inputs, labels, lengths = zip(*rows, strict=True)
    return torch.stack(inputs, 1), torch.tensor(labels), torch.tensor(lengths)


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_a_lightning_run():
    inputs, labels, lengths = DATA
    rows = list(zip(inputs.unbind(1), labels.tolist(), lengths.tolist(), strict=True))
    loader, module, made = (
        DataLoader(rows, 20, collate_fn=collate),
        Module(),
        ReconstructionCallback(at_start=True, unpack=unpack, hidden="keep"),
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    pl.Trainer(max_epochs=2, accelerator="cpu", callbacks=[made], **quiet).fit(module, loader, loader)
    assert [report.loss for report in made.reports] == ["CrossEntropyLoss (Module.criterion)"] * 2  # start and end
    with torch.no_grad():
        assert float((module.net(inputs, lengths).argmax(1) == labels).float().mean()) > 0.8


def test_padded_steps_with_a_label_are_refused_where_every_step_has_scores():
    inputs, labels, lengths = DATA
    every = labels[:, None].repeat(1, len(inputs))
    padded = torch.arange(len(inputs)) >= lengths[:, None]
    options = {"unpack": unpack, "readout": "membrane_per_step", "loss": nn.CrossEntropyLoss(), "hidden": "keep", "strength": 1e-3}
    first_padded = every.masked_fill(torch.arange(len(inputs)) > lengths[:, None], -100)
    for targets in (labels, every, first_padded):
        with pytest.raises(DataError, match="a target at padded steps"):
            convex_init_(Gathers(), [(inputs, targets, lengths)], **options)
    report = convex_init_(Gathers(), [(inputs, every.masked_fill(padded, -100), lengths)], **options)
    assert report.certificate.reached
