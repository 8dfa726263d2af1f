"""Loaders, seeds and processes: which samples count, and the same bits from the same samples."""

import functools
import random

import numpy as np
import pytest
import snntorch.functional as SF
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from snn_recon_plugin import convex_init_
from snn_recon_plugin.distributed import SingleProcess

from .helpers import batches, data_loader, divided, train_data, values
from .nets import PIXELS, loop_net

pytestmark = pytest.mark.usefixtures("one_rate")


def counting(drawn, count, size):
    """Yield batches once, and write down the number of each."""
    for number, batch in enumerate(batches(count, size)):
        drawn.append(number)
        yield batch


def reused():
    """Yield one buffer, filled again for each batch."""
    inputs, labels = (torch.empty_like(part) for part in batches(100)[0])
    for new_inputs, new_labels in batches(300, 100):
        yield inputs.copy_(new_inputs), labels.copy_(new_labels)


def with_ignored():
    extra, _ = train_data(400)
    return [(torch.cat([x, extra[-3:]]), torch.cat([y, y.new_full((3,), -100)])) for x, y in batches(300, 100)]


class Nominal(IterableDataset):
    """A stream whose length is an upper bound."""

    def __iter__(self):
        return iter(zip(*train_data(300), strict=True))

    def __len__(self):
        return 10**12


LOADERS = {
    "a tuple": (lambda: tuple(batches(300, 100)), {}),
    "a generator": (lambda: counting([], 300, 100), {}),
    "an iterator": (lambda: iter(data_loader(300, 100)), {}),
    "labels of uint8": (lambda: [(x, y.to(torch.uint8)) for x, y in batches(300, 100)], {}),
    "labels in a list": (lambda: [[x, y.tolist()] for x, y in batches(300, 100)], {}),
    "dictionaries": (
        lambda: [{"x": x, "y": y, "z": 0 * y} for x, y in batches(300, 100)],
        {"unpack": lambda batch: (batch["x"], batch["y"])},
    ),
    "a buffer that is filled again": (reused, {}),
    "a nominal length": (lambda: DataLoader(Nominal(), batch_size=100), {}),
    "ignored labels": (with_ignored, {"loss": nn.CrossEntropyLoss()}),
    "sparse inputs": (lambda: [(x.to_sparse(), y) for x, y in batches(300, 100)], {"forward": lambda net, x: net(x.to_dense())}),
}
CHOSEN = [("a buffer that is filled again", "reconstruct"), ("a generator", "rescale"), ("ignored labels", "rescale")]


@functools.cache
def bits_after(name, hidden):
    make, options = LOADERS[name]
    net = divided(loop_net(steps=5), 3)
    assert convex_init_(net, make(), hidden=hidden, strength=1e-3, progress=False, **options).program.samples == 300
    return values(net)


@pytest.mark.parametrize(("name", "hidden"), [*((name, "keep") for name in LOADERS), *CHOSEN])
def test_loaders_of_all_kinds_give_the_same_bits(name, hidden):
    assert bits_after(name, hidden) == bits_after("a tuple", hidden)


@pytest.mark.parametrize(
    ("hidden", "limit", "samples", "expected"),
    [("auto", None, 300, 5), ("keep", 150, 150, 3), ("rescale", 150, 150, 3), ("keep", 10_000, 300, 5)],
)
def test_a_loader_is_read_once_and_no_further_than_needed(hidden, limit, samples, expected):
    drawn = []
    report = convex_init_(loop_net(), counting(drawn, 300, 60), hidden=hidden, max_samples=limit)
    assert drawn == list(range(expected))
    assert (report.program.samples, report.after.samples, report.exactness.samples) == (samples, samples // 5, samples)


def test_the_same_seed_gives_the_same_bits_whatever_the_generators_were_at():
    written, reports = [], []
    for stir in (0, 1, 99):
        net = divided(loop_net(), 3)
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(stir)
        told = convex_init_(net, data_loader(200, shuffle=True)).to_dict()
        written.append(values(net))
        del told["seconds"], told["program"]["trace"]
        reports.append(told)
    assert written[0] == written[1] == written[2]
    assert reports[0] == reports[1] == reports[2]


def test_another_seed_holds_out_other_samples_and_draws_other_rows():
    nets = [loop_net(), loop_net()]
    reports = [convex_init_(net, batches(300), hidden="reconstruct", strength=1e-3, seed=seed) for seed, net in enumerate(nets)]
    assert [report.seed for report in reports] == [0, 1]
    assert not torch.equal(nets[0].fc1.weight, nets[1].fc1.weight)
    kept = [convex_init_(loop_net(), batches(300), hidden="keep", strength=1e-3, seed=seed) for seed in (0, 1)]
    assert kept[0].after.loss != kept[1].after.loss
    assert kept[0].certificate.primal == pytest.approx(kept[1].certificate.primal, rel=1e-5)


class ComparedError(Exception):
    """End of the comparison of processes."""


class Recorded(SingleProcess):
    """Records what processes compare before they start."""

    is_distributed = True

    def __init__(self):
        self.found = {}

    def check_equal(self, what, value):
        self.found[what] = value
        if "checksum" in what:
            raise ComparedError


def compared(net, **options):
    shards = Recorded()
    with pytest.raises(ComparedError):
        convex_init_(net, batches(20), shards=shards, **options)
    return shards.found


def other_leak():
    net = loop_net()
    net.lif1.beta.fill_(0.5)
    return net


@pytest.mark.parametrize(
    ("build", "options", "other"),
    [
        (other_leak, {}, {}),  # beta and threshold of snnTorch are buffers
        (loop_net, {"loss": nn.CrossEntropyLoss()}, {"loss": nn.CrossEntropyLoss(torch.arange(1.0, 11))}),
        (loop_net, {"loss": nn.CrossEntropyLoss()}, {"loss": nn.CrossEntropyLoss(ignore_index=3)}),
        (loop_net, {"loss": SF.mse_count_loss(0.8)}, {"loss": SF.mse_count_loss(0.7)}),
    ],
    ids=["beta", "class weights", "ignored label", "target counts"],
)
def test_processes_compare_buffers_and_all_of_a_loss(build, options, other):
    assert compared(loop_net(), **options) == compared(loop_net(), **options) != compared(build(), **other)


def test_labels_of_two_classes_may_be_bools():
    kept = []
    for change in (torch.Tensor.bool, torch.Tensor.tolist, torch.Tensor.long):
        net = loop_net(outputs=2)
        convex_init_(net, [(x, change(y > 4)) for x, y in batches(100)], hidden="keep", strength=1e-3)
        kept.append(values(net))
    assert kept[0] == kept[1] == kept[2]


@pytest.mark.parametrize("hidden", ["keep", "reconstruct"])
def test_a_class_that_occurs_once(hidden):
    inputs, labels = train_data(200)
    kept = (labels != 3) | (torch.arange(200) == int((labels == 3).nonzero()[0]))
    report = convex_init_(loop_net(), [(inputs[kept], labels[kept])], hidden=hidden, strength=1e-3)
    assert report.exactness.samples == int(kept.sum())
    assert report.accuracy_written > 0.8


class Noisy(Dataset):
    """Draws its noise anew at each pass, and keeps what it drew."""

    def __init__(self):
        self.drawn = []

    def __len__(self):
        return 200

    def __getitem__(self, number):
        self.drawn.append((train_data()[0][number] + 0.5 * torch.randn(PIXELS), train_data()[1][number]))
        return self.drawn[-1]


def test_a_report_is_of_the_samples_that_the_line_drew():
    net, data = loop_net(), Noisy()
    report = convex_init_(net, DataLoader(data, 50, shuffle=True), strength=1e-3)
    inputs, labels = map(torch.stack, zip(*data.drawn, strict=True))
    assert len(inputs) == 200
    with torch.no_grad():
        assert report.accuracy_written == pytest.approx(float((net(inputs).mean(0).argmax(1) == labels).double().mean()))
