import random

import numpy as np
import pytest
import torch

from snn_recon_plugin import convex_init_
from snn_recon_plugin.hidden import choose_gain

from .helpers import (
    accuracy,
    assert_as_before,
    batches,
    data_loader,
    divided,
    lived_in,
    loop_net,
    snapshot,
    train_data,
    values,
)

READOUT = ("fc2.weight", "fc2.bias")


def one_shot(pairs):
    yield from pairs


@pytest.mark.usefixtures("one_rate")
@pytest.mark.parametrize("hidden", ["keep", "rescale"])
def test_loaders_of_all_kinds_give_the_same_bits(hidden):
    written = []
    kinds = [batches(200), tuple(batches(200)), one_shot(batches(200)), data_loader(200), iter(data_loader(200))]
    for loader in kinds if hidden == "keep" else kinds[1:4]:
        net = divided(loop_net(), 3)
        report = convex_init_(net, loader, hidden=hidden, strength=1e-2)
        assert report.samples == 200
        written.append(values(net))
    assert all(other == written[0] for other in written)


@pytest.mark.usefixtures("one_rate")
def test_a_one_shot_loader_is_read_once_and_to_its_end():
    drawn = []

    def counting():
        for number, batch in enumerate(batches(300, 30)):
            drawn.append(number)
            yield batch

    report = convex_init_(loop_net(), counting())
    assert drawn == list(range(10))
    assert report.samples == 300


def test_pairs_may_be_lists_and_labels_of_any_integer_dtype():
    written = []
    for kind in (lambda y: y, lambda y: y.to(torch.uint8), lambda y: y.to(torch.int32), lambda y: y.tolist()):
        net = loop_net()
        convex_init_(net, [[inputs, kind(labels)] for inputs, labels in batches(200)], hidden="keep", strength=1e-3)
        written.append(values(net))
    assert all(other == written[0] for other in written)


@pytest.mark.usefixtures("one_rate")
@pytest.mark.parametrize("hidden", ["keep", "rescale"])
def test_max_samples_reads_no_more_than_needed(hidden):
    drawn = []

    def counting():
        for number, batch in enumerate(batches(600, 60)):
            drawn.append(number)
            yield batch

    report = convex_init_(loop_net(), counting(), hidden=hidden, max_samples=150)
    assert (report.samples, report.heldout, report.exactness.samples) == (150, 30, 150)
    assert drawn == [0, 1, 2]


@pytest.mark.parametrize("hidden", ["keep", "rescale"])
def test_samples_beyond_max_samples_play_no_part(hidden):
    inputs, labels = train_data(300)
    other = labels.clone()
    other[100:] = other[100:].flip(0)
    written = []
    for target in (labels, other):
        net = divided(loop_net(seed=3))
        if hidden == "keep":
            divided(net, 0.05)
        convex_init_(net, [(inputs, target)], hidden=hidden, max_samples=100, strength=1e-3)
        written.append(values(net))
    assert written[0] == written[1]


def test_max_samples_above_what_there_is():
    report = convex_init_(loop_net(), data_loader(200), hidden="keep", max_samples=10_000, strength=1e-3)
    assert report.samples == 200


@pytest.mark.usefixtures("one_rate")
def test_a_shuffling_loader():
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    net, again = loop_net(), loop_net()
    report = convex_init_(net, data_loader(300, shuffle=True, generator=generator), strength=1e-3)
    assert torch.equal(generator.get_state(), state)
    convex_init_(again, data_loader(300, shuffle=True, generator=generator), strength=1e-3)
    assert values(net) == values(again)
    assert report.exactness.max_difference <= 1e-4
    assert accuracy(net) >= 0.8


# -- determinism ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_rate")
def test_the_same_seed_gives_the_same_bits_whatever_the_generators_were_at():
    written, reports = [], []
    for stir in (0, 1, 99):
        net = divided(loop_net(), 3)
        torch.manual_seed(stir)
        np.random.seed(stir)
        random.seed(stir)
        report = convex_init_(net, data_loader(200, shuffle=True))
        written.append(values(net))
        told = report.to_dict()
        del told["seconds"], told["trace"]
        reports.append(told)
    assert written[0] == written[1] == written[2]
    assert reports[0] == reports[1] == reports[2]


def test_another_seed_holds_out_other_samples():
    reports = [convex_init_(loop_net(), batches(300), hidden="keep", strength=1e-3, seed=seed) for seed in (0, 1)]
    assert [report.seed for report in reports] == [0, 1]
    assert reports[0].loss_after != reports[1].loss_after
    assert reports[0].certificate.primal == pytest.approx(reports[1].certificate.primal, rel=1e-5)


def test_seed_and_loss_reach_the_choice_of_gains(monkeypatch):
    seen = {}

    def record(task, number):
        seen.update(loss=task.loss.name, seed=task.seed)
        return choose_gain(task, number)

    monkeypatch.setattr("snn_recon_plugin.stages.build.choose_gain", record)
    convex_init_(loop_net(), batches(100), hidden="rescale", loss="squared", seed=6, strength=1e-2)
    assert seen == {"loss": "squared", "seed": 6}


def test_the_users_generators_are_as_found():
    net = lived_in(loop_net())
    torch.manual_seed(11)
    np.random.seed(12)
    random.seed(13)
    before = snapshot(net)
    convex_init_(net, data_loader(200, shuffle=True), hidden="keep")
    assert_as_before(net, before, written=READOUT)
