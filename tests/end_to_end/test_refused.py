"""What can't be initialised gives an error with the fix, and leaves the network and its surroundings as before.

A row that is named as a heading of the page of errors must raise a message that begins so: a search for the message finds the page.
"""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, TensorDataset

from snn_recon_plugin import ReadoutWarning, ReconstructionError, convex_init_, over_time
from snn_recon_plugin.errors import (
    AmbiguousReadoutError,
    CaptureError,
    DataError,
    NetworkError,
    OptionError,
    ReadoutNotFoundError,
    SilentLayerError,
    UnsupportedModuleError,
    WriteError,
)

from ..helpers import batches, data_loader, divided, refused, replaced, spoiled, train_data
from ..nets import (
    BETA,
    CLASSES,
    HIDDEN,
    PIXELS,
    Loop,
    Recurrent,
    TwoHeads,
    loop_net,
    sequential_net,
    spikes_and_membranes,
    spikes_of,
)
from .test_population import POPULATION, first_classes, loop_of, population

pytestmark = [pytest.mark.usefixtures("one_rate"), pytest.mark.filterwarnings("error::snn_recon_plugin.ReadoutWarning")]
HEADINGS = re.findall(r"^## (.+)$", (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)
INPUTS, LABELS = train_data(200)
DATA = TensorDataset(*train_data())
DRAWN_AGAIN = DataLoader(DATA, 64, sampler=RandomSampler(DATA, replacement=True))
MANY = 5 * batches(600, 100)  # as many samples as choose the gains
MANY_AND_NAN = [*MANY, *replaced(0, spoiled(float("nan")))]
MANY_AND_FLOAT = [*MANY, *replaced(0, lambda x, y: (x, y + 0.7))]
COUNTS = SF.ce_count_loss(**POPULATION)
PAIRS = batches(200)
BOTH = ("keep", "rescale")


class Spike(nn.Module):
    def forward(self, current):
        return (current > 1).float()


NOISE = torch.Generator().manual_seed(0)  # out of reach of whoever seeds the global generators


class Noisy(Loop):
    def forward(self, x):
        return super().forward(x + 0.5 * torch.randn(x.shape, generator=NOISE))


class Crashing(Loop):
    calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls > 12:
            raise ZeroDivisionError("in the user's forward")
        return super().forward(x)


class Offset(snn.Leaky):
    """Rests above zero, which a bias would take up."""

    def forward(self, input_, mem=None):
        return super().forward(input_ + 0.5, mem)


def foreign(neuron):
    return nn.Sequential(nn.Linear(PIXELS, HIDDEN), neuron, nn.Linear(HIDDEN, CLASSES))


def weaker_once_written():
    """A net that halves the readout's currents as soon as its weights are others."""
    net = loop_net()
    first = net.fc2.weight.detach().clone()
    net.fc2.register_forward_hook(lambda module, arguments, output: output if torch.equal(module.weight, first) else output / 2)
    return net


def offset():
    return loop_net(output=Offset(beta=BETA, reset_mechanism="none"), bias=False)


def gated():
    return Recurrent(nn.Identity(), snn.SLSTM(PIXELS, HIDDEN))


def no_readout():
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 2, 3), snn.Leaky(beta=BETA, init_hidden=True, output=True))


def orthogonal():
    net = loop_net()
    torch.nn.utils.parametrizations.orthogonal(net.fc2)
    return net


def spiking(outputs=CLASSES, decode=spikes_of):
    return loop_net(outputs=outputs, output=snn.Leaky(beta=BETA), decode=decode)


def tied():
    net = loop_net(hidden=CLASSES)
    net.other = nn.Linear(CLASSES, CLASSES)
    net.other.weight = net.fc2.weight
    return net


def unequal_steps(net, inputs):
    net.steps = 4 if len(inputs) == 50 else 5
    return net(inputs)


OTHER = loop_net()  # which a forward runs in place of its argument


def clamped():
    net = spiking()
    net.lif2.register_forward_pre_hook(lambda neuron, arguments: (arguments[0], arguments[1].clamp(-0.2, 0.2)))
    return net


def filtered():
    return loop_net(output=snn.Leaky(beta=torch.linspace(0.1, 0.9, CLASSES), reset_mechanism="none"))


def nan_weight():
    net = loop_net()
    with torch.no_grad():
        net.fc1.weight[0, 0] = float("nan")
    return net


def row(build, error, *words, loader=PAIRS, hidden=("auto",), **options):
    """Net, error, words of its message, loader, the runs' hidden=, other options."""
    return build, error, words, loader, hidden, options


def holding():
    net = loop_net()
    net.loss_fn = nn.GaussianNLLLoss()
    return net


def of_labels(change, *words, **options):
    return row(loop_net, DataError, *words, loader=[(x, change(y)) for x, y in PAIRS], **options)


def later(change, *words):
    return row(loop_net, DataError, *words, loader=replaced(2, lambda x, y: (x, change(y))), hidden=BOTH)


def no_readout_layer(name):
    words = f"readout_layer={name!r}", "'fc2' (Linear)", 'readout_layer="fc2"'
    return row(loop_net, ReadoutNotFoundError, *words, readout_layer=name)


POPULATION_WORDS = "40 spiking outputs of 'fc2'", "labels from 0 to 9", "classes=10", "num_classes=10", "classes=40"
SORTED = list(zip(INPUTS[LABELS.argsort()].split(50), LABELS.sort().values.split(50), strict=True))
UNEQUAL = {"loader": batches(250), "forward": unequal_steps, "readout": "membrane_per_step", "hidden": ("keep",)}
CRASHES, WIDTH = "a net that crashes", "samples of another width"
CLAMPED = "changes the state of the output neuron 'lif2' between time steps, as a clamp"
WEAKER = "scores of the written network that differ from those promised"
NONE_OF_THEM = "a net that returns ..., whose values are none of ... of the output layer"
SHAPES = "net(inputs) raised RuntimeError: mat1 and mat2 shapes cannot be multiplied"
SOLVED = {"hidden": ("keep",), "strength": 1e-3}

REFUSED = {
    # Loaders
    "a number for a loader": row(loop_net, DataError, "int", "(input, target) batches", "DataLoader", loader=5),
    "an empty iterator": row(loop_net, DataError, "an empty loader", "at least one (input, target) batch", loader=iter([])),
    "a loader with ..., which draws samples with replacement": row(loop_net, DataError, loader=DRAWN_AGAIN),
    "text for unpack": row(loop_net, OptionError, "unpack='label'", unpack="label"),
    # Batches and samples
    "batch 1 is a dict with the keys ...": row(loop_net, DataError, loader=[{"image": INPUTS, "label": LABELS}]),
    "NaN beyond the samples that choose gains": row(loop_net, DataError, "batch 31", loader=MANY_AND_NAN, hidden=("rescale",)),
    "labels beyond the samples that choose gains": row(loop_net, DataError, "float32", loader=MANY_AND_FLOAT, hidden=("rescale",)),
    "nine samples": row(loop_net, DataError, "9 samples", "at least 10", loader=batches(9), hidden=BOTH),
    # Labels
    "labels of dtype torch.float32": of_labels(lambda y: y.float()),
    "the target of batch 1 is a list of 200 (a str": row(loop_net, DataError, "a tensor", loader=[(INPUTS, ["cat", "dog"] * 100)]),
    "labels of shape ...": of_labels(lambda y: nn.functional.one_hot(y, CLASSES), "argmax"),
    "labels of -1": of_labels(lambda y: y - 1, "-1"),
    "labels of -100": of_labels(lambda y: y.masked_fill(y == 3, -100), "labels of -100", "loss=nn.CrossEntropyLoss()"),
    "labels from 1 to 10": of_labels(lambda y: y + 1),
    "later labels of another dtype": later(lambda y: y.float(), "batch 3 of torch.float32"),
    "later labels of another shape": later(lambda y: nn.functional.one_hot(y, CLASSES), "batch 3 of torch.int64, shape (100, 10)"),
    "later labels below 0": later(lambda y: y - 1, "labels from -1 to 9"),
    "later labels above the classes": later(lambda y: y + 1, "labels from 0 to 10"),
    "later labels for no sample": later(lambda y: torch.cat([y, y[:7]]), "one target for every sample"),
    "a single class": of_labels(lambda y: torch.full_like(y, 7), "a single class, 7", "at least two classes"),
    "values of another width": of_labels(lambda y: torch.rand(len(y), 3), "(samples, 10)", loss="squared"),
    "values that are NaN": of_labels(lambda y: torch.full((len(y), CLASSES), float("nan")), "NaN", loss="squared"),
    # Networks
    "no readout": row(no_readout, ReadoutNotFoundError, "no readout", "'1' (Conv2d)", "nn.Linear", forward=over_time(4)),
    "2 layers that could be the readout": row(
        TwoHeads, AmbiguousReadoutError, "'fc2' (Linear)", "'fc3' (Linear)", 'readout_layer="fc2"'
    ),
    "a hidden layer for a readout": no_readout_layer("fc1"),
    "no layer for a readout": no_readout_layer("nowhere"),
    "no spiking neuron": row(lambda: foreign(nn.ReLU()), UnsupportedModuleError, "ReLU", "snnTorch"),
    "somebody's own neuron": row(lambda: foreign(Spike()), UnsupportedModuleError, "Spike", "snnTorch"),
    "hidden layer ... is silent": row(lambda: divided(loop_net()), SilentLayerError, hidden=("keep",)),
    "a weight that is NaN": row(nan_weight, NetworkError, "'fc1.weight'"),
    "a readout computed from another": row(orthogonal, UnsupportedModuleError, "fc2.weight", "parametriz", **SOLVED),
    "a tied readout": row(tied, UnsupportedModuleError, "tied", "other.weight", **SOLVED),
    "a random net": row(Noisy, NetworkError, "other values each time", "deterministic", hidden=BOTH, strength=1e-3),
    CRASHES: row(Crashing, NetworkError, "ZeroDivisionError: in the user's forward", loader=batches(600, 20), hidden=BOTH),
    "a membrane that is clamped": row(clamped, NetworkError, CLAMPED),
    WEAKER: row(weaker_once_written, WriteError, **SOLVED),
    "an output that rests above zero, without a bias": row(offset, UnsupportedModuleError, "bias=True", hidden=("keep",)),
    # Calls and what they return
    SHAPES: row(loop_net, NetworkError, loader=[(INPUTS.reshape(200, 1, 8, 8), LABELS)]),
    WIDTH: row(
        loop_net,
        NetworkError,
        "batch 3",
        "[100, 32]",
        "drop_last=True",
        loader=replaced(2, lambda x, y: (x[:, :32], y)),
        hidden=("keep",),
    ),
    "a forward pass of a single time step": row(sequential_net, ReconstructionError),
    "a forward or step that runs another net than the one passed": row(lambda: OTHER, NetworkError, forward=lambda _, x: OTHER(x)),
    "a time loop twice": row(loop_net, NetworkError, hidden=("keep",), forward=over_time(4)),
    "a forward without a layer": row(loop_net, NetworkError, hidden=("keep",), forward=lambda net, inputs: inputs),
    "unequal steps": row(loop_net, CaptureError, "batches of 5 and of 4 time steps", "membrane_per_step", "pad all", **UNEQUAL),
    NONE_OF_THEM: row(lambda: loop_net(decode=lambda spikes, membranes: membranes.mean(0) ** 2), ReconstructionError),
    "Classes are decided by the ...": row(lambda: spiking(decode=spikes_and_membranes), ReadoutWarning, hidden=("keep",)),
    "... is not used, and cross-entropy is solved": row(holding, ReadoutWarning, "loss=GaussianNLLLoss", "pass loss="),
    "a dead layer that no initialisation changes": row(gated, DataError, "lower its threshold", hidden=("auto", "keep")),
    # Several outputs a class
    "a population code without its classes": row(population, DataError, *POPULATION_WORDS),
    "classes in order": row(population, DataError, "labels from 0 to 9", loader=SORTED),
    "three classes of ten": row(loop_of, DataError, "10 spiking outputs", "classes=10", loader=first_classes(3)),
    "... spiking outputs of ..., and labels from 0 to 9 alone": row(lambda: spiking(50), DataError),
    "classes that do not divide the outputs": row(
        population, OptionError, "7 classes for a readout of 40 outputs", "divides 40", classes=7
    ),
    "two numbers of classes": row(population, OptionError, "classes=5 with num_classes=10", classes=5, loss=COUNTS),
    "classes=1": row(population, OptionError, "classes=1", "pass your number of classes", classes=1),
    "classes of one output": row(lambda: spiking(1), OptionError, "a single output decides", classes=2),
    "a population of no number": row(population, OptionError, "num_classes=False", loss=SF.ce_count_loss(population_code=True)),
    "a rate over a population": row(population, OptionError, "never sums over a class", loss=SF.ce_rate_loss(**POPULATION)),
}


@pytest.mark.parametrize(("name", "hidden"), [(name, hidden) for name, each in REFUSED.items() for hidden in each[4]])
def test_refused(name, hidden):
    build, error, words, loader, _, options = REFUSED[name]
    torch.manual_seed(0)
    caught = refused(build(), loader, error, *words, hidden=hidden, **options)
    if name in HEADINGS:
        begins = caught.found if isinstance(caught, ReconstructionError) else str(caught)
        begins = begins.replace("RuntimeError: addmm: ", "RuntimeError: ")  # from torch 2.14 on
        assert re.match(re.escape(name).replace(r"\.\.\.", ".*"), begins)
    if name in (CRASHES, WIDTH):
        assert type(caught.__cause__) is (ZeroDivisionError if name == CRASHES else RuntimeError)


def test_every_heading_of_the_page_of_errors_has_a_row():
    assert len(HEADINGS) >= 15
    assert set(HEADINGS) <= REFUSED.keys()


CHANGES = {
    "NaN": (spoiled(float("nan")), "NaN or infinite", "nan_to_num"),
    "infinite": (spoiled(-float("inf")), "NaN or infinite", "nan_to_num"),
    "no sample": (lambda x, y: (x[:0], y[:0]),),
    "a tensor": (lambda x, y: x, "(input, target)"),
    "three parts": (lambda x, y: (x, y, y), "(input, target)"),
    "a dict": (lambda x, y: {"x": x, "y": y}, "(input, target)"),
    "text for a target": (lambda x, y: (x, "cat"), "(input, target)"),
    "None for a target": (lambda x, y: (x, None), "(input, target)"),
    "a scalar for a target": (lambda x, y: (x, torch.tensor(3)), "(input, target)"),
    "fewer targets": (lambda x, y: (x, y[:-7]), "targets"),
}


@pytest.mark.parametrize(("name", "number", "hidden"), [("NaN", 0, "rescale"), *((name, 2, "keep") for name in CHANGES)])
def test_one_bad_batch(name, hidden, number):
    change, *words = CHANGES[name]
    refused(loop_net(), replaced(number, change), DataError, f"batch {number + 1}", *words, hidden=hidden)


@pytest.mark.parametrize("net", [None, nn.Linear], ids=["None", "class"])
def test_what_is_no_network(net):
    with pytest.raises(ReconstructionError, match=r"nn\.Module"):
        convex_init_(net, batches(200))


@pytest.fixture
def room(monkeypatch):
    """Set the bytes that are free on disk, where no memory is."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=0))
    return lambda free: monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))


def test_too_little_room(room):
    room(12 * HIDDEN * 250)
    refused(loop_net(), data_loader(300), DataError, f"300 samples of {HIDDEN} features", "max_samples=250", hidden="rescale")
    report = convex_init_(loop_net(), data_loader(300), hidden="keep", max_samples=250, strength=1e-3)
    assert report.program.samples == 250
    drawn = DataLoader(DATA, 50, sampler=SubsetRandomSampler(range(100)))  # those that a sampler draws count
    assert convex_init_(loop_net(), drawn, hidden="keep", strength=1e-3).program.samples == 100
