from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset, WeightedRandomSampler

from snn_recon_plugin import convex_init_, diagnose, over_time
from snn_recon_plugin.errors import DataError
from snn_recon_plugin.stages.stream import Stream, binary_labels, check_room, one_hot_labels, refuse_repeats
from snn_recon_plugin.tables import Tables

from ..helpers import assert_as_before, loop_net, snapshot

DATA = TensorDataset(torch.rand(20, 4), torch.arange(20))


def pairs(*sizes):
    """Batches whose inputs tell their number."""
    return [(torch.full((size, 4), float(number)), torch.full((size,), number)) for number, size in enumerate(sizes)]


def numbers(stream):
    return [int(batch.inputs[0, 0]) for batch in stream]


def test_a_head_and_then_all_batches_each_drawn_once():
    drawn = []

    def counted():
        for number, batch in enumerate(pairs(2, 3, 4, 5)):
            drawn.append(number)
            yield batch

    stream = Stream(counted())
    assert drawn == [0]
    head, targets = stream.head(4)
    assert drawn == [0, 1]
    assert targets.tolist() == [0, 0, 1, 1, 1]
    assert [batch.rows for batch in head] == [slice(0, 2), slice(2, 5)]
    assert [batch.inputs.shape for batch in head] == [(2, 4), (3, 4)]
    assert [len(stream.head(samples)[0]) for samples in (1, 2, 3, 5, 6, 100, 1)] == [1, 1, 2, 2, 3, 4, 1]
    assert numbers(stream) == [0, 1, 2, 3]
    assert drawn == [0, 1, 2, 3]


def test_batches_go_where_the_net_is_and_a_list_of_labels_becomes_a_tensor():
    head, targets = Stream([(torch.zeros(2, 4), [5, 6])], torch.device("meta")).head(1)
    assert head[0].inputs.device.type == targets.device.type == "meta"
    assert Stream([(torch.zeros(2, 4), [5, 6])]).head(1)[1].tolist() == [5, 6]


class Nominal(IterableDataset):
    def __iter__(self):
        return iter(DATA)

    def __len__(self):  # an upper bound
        return 10**12


@pytest.mark.parametrize(
    ("loader", "batches", "samples"),
    [
        (DataLoader(DATA, 8), 3, 20),
        (pairs(2, 3), 2, None),
        (iter(pairs(2)), None, None),
        (DataLoader(Nominal(), 4), None, None),
        (DataLoader(DATA, batch_sampler=[[0, 1], [2, 3]]), None, None),  # of the user's own
        (DataLoader(DATA, batch_size=None, sampler=[[0, 1], [2]]), None, None),
    ],
)
def test_how_many_there_are(loader, batches, samples):
    stream = Stream(loader)
    assert stream.total_samples == samples
    if batches is not None:
        assert len(stream) == batches
    else:
        with pytest.raises(TypeError, match="that may give fewer"):
            len(stream)


def test_a_loader_that_fills_one_buffer_is_copied_and_a_list_is_not():
    inputs, labels = torch.empty(2, 4), torch.empty(2, dtype=torch.int64)
    stream = Stream((inputs.fill_(number), labels.fill_(number)) for number in range(3))
    head, targets = stream.head(4)
    assert [float(batch.inputs[0, 0]) for batch in head] == [0, 1]
    assert targets.tolist() == [0, 0, 1, 1]
    assert numbers(stream) == [0, 1, 2]
    listed = pairs(2)
    assert Stream(listed).head(1)[0][0].inputs is listed[0][0]


@pytest.mark.parametrize("names", [("cat", "dog", "cat"), np.array(["cat", "dog", "cat"])], ids=["tuple", "array"])
def test_names_of_classes_are_numbered_as_the_message_says(names):
    with pytest.raises(DataError, match="for names of classes pass ") as caught:
        Stream([(torch.zeros(3, 2), names)]).head(1)
    typed = caught.value.fix.partition("pass unpack=")[2].partition(", with the list")[0]
    unpack = eval(typed, {"torch": torch, "names": ["cat", "dog"]})
    assert Stream([(torch.zeros(3, 2), names)], unpack=unpack).head(1)[1].tolist() == [0, 1, 0]


def test_labels_in_another_form():
    assert binary_labels(torch.tensor([[1.0], [0.0]])).tolist() == [1, 0]
    assert one_hot_labels(torch.eye(3)[[2, 0]]).tolist() == [2, 0]
    of_no_class = torch.eye(3)[[2, 0]] * torch.tensor([[1.0], [0.0]])
    for others in (torch.rand(2, 3), 2 * torch.eye(3), of_no_class, torch.eye(3, dtype=torch.int64), torch.ones(3, 1)):
        assert one_hot_labels(others) is others


@pytest.mark.parametrize("batch", [{"label": 1, "image": 2}, (1, 2, 3), torch.zeros(3)], ids=["dict", "triple", "tensor"])
def test_what_to_type_for_batches_that_are_no_pairs(batch):
    with pytest.raises(DataError, match="pass step=train_batch"):
        Stream([batch])
    with pytest.raises(DataError, match=r"unpack\(batch\) raised") as caught:
        Stream([batch], unpack=lambda batch: batch["nothing"]["here"])
    assert "correct unpack" in caught.value.fix
    assert caught.value.__cause__ is not None


# -- labels that the loss ignores ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("time_first", [False, True])
def test_samples_with_an_ignored_label_are_left_out(time_first):
    labels = torch.tensor([0, -100, 2, -100])
    inputs = torch.arange(4.0)[:, None].expand(4, 5)
    given = inputs.T if time_first else inputs
    stream = Stream([(given, labels), (given, torch.full((4,), -100)), (given, labels)], ignored=-100)
    kept = [((batch.inputs.T if time_first else batch.inputs)[:, 0].tolist(), batch.targets.tolist()) for batch in stream]
    assert kept == [([0, 2], [0, 2])] * 2


def test_a_sample_with_a_label_at_any_step_is_kept():
    labels = torch.tensor([[0, -100], [-100, -100], [1, 2]])
    (batch,) = Stream([(torch.arange(3.0)[:, None, None].expand(3, 2, 5), labels)], ignored=-100)
    assert batch.inputs[:, 0, 0].tolist() == [0, 2]
    assert torch.equal(batch.targets, labels[[0, 2]])


def test_labels_that_are_all_ignored_are_named():
    with pytest.raises(DataError, match="4 samples whose labels are all -100"):
        Stream([(torch.rand(4, 3), torch.full((4,), -100))], ignored=-100)


@pytest.mark.parametrize("known", ["forward", "loader"])
def test_an_ignored_label_where_there_are_as_many_features_as_samples(known):
    inputs, labels = torch.arange(4.0)[:, None].expand(4, 4), torch.tensor([0, -100, 2, -100])
    loader = [(inputs, labels)] if known == "forward" else DataLoader(TensorDataset(inputs, labels), 4)
    (batch,) = Stream(loader, ignored=-100, batch_dim=0 if known == "forward" else None)
    assert batch.inputs.tolist() == [[0.0] * 4, [2.0] * 4]
    assert batch.targets.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("inputs", "labels", "word"),
    [
        (torch.zeros(2, 2), torch.tensor([0, -100]), "first or second axis"),
        (torch.zeros(2, 2), torch.tensor([[0, -100], [-100, -100]]), "first or second axis"),
    ],
    ids=["either axis", "steps"],
)
def test_ignored_labels_that_cant_be_left_out(inputs, labels, word):
    with pytest.raises(DataError, match=word):
        Stream([(inputs, labels)], ignored=-100)


# -- room -------------------------------------------------------------------------------------------------------------------
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.mark.parametrize(
    ("room", "device", "in_memory", "words", "fix"),
    [
        (0, CPU, 4 * 100 * 50, "51 samples of 100 features", "max_samples=10, or set TMPDIR to a folder on a larger disk"),
        (3 * 4 * 100 * 50, CPU, 0, "51 samples of 100 features", "max_samples=50, or set TMPDIR to a folder on a larger disk"),
        (3 * 4 * 100 * 50, GPU, 0, "free on cuda:0", "max_samples=50"),
    ],
)
def test_room_for_three_copies_of_the_features(monkeypatch, room, device, in_memory, words, fix):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=room))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (room, 2**40))
    tables = Tables(largest=in_memory)
    check_room(50, 100, device, tables)
    check_room(None, 100, device, tables)  # an unknown number is not refused
    with pytest.raises(DataError, match=words) as caught:
        check_room(51, 100, device, tables)
    assert caught.value.fix == f"pass {fix}"
    with pytest.raises(DataError, match=rf"about 1117\.6 GiB where 0\.0 GiB are free {'on' if device is GPU else 'in'}"):
        check_room(10**9, 100, device, tables)


LARGE, LABELS = torch.zeros(1).expand(10, 2**20), torch.arange(10) % 2  # samples of 4 MiB, of which sixteen are 64 MiB


@pytest.mark.parametrize(
    ("batches", "limit", "kept"),
    [
        ([(torch.rand(300, 3), torch.arange(300))], None, [256]),
        ([(torch.rand(100, 3), torch.arange(100))] * 4, None, [100, 100, 56]),
        ([(torch.rand(40, 3), torch.arange(40))] * 3, 50, [40, 10]),
        ([(LARGE, LABELS), (LARGE, LABELS)], None, [10, 6]),
        ([(torch.zeros(1).expand(2, 2**25), LABELS[:2])], None, [1]),  # one is kept however large
    ],
)
def test_the_first_samples_are_kept_for_training_to_be_watched_by(batches, limit, kept):
    found = Stream(batches).sample(limit)
    assert [len(targets) for _, targets in found] == kept
    for (inputs, targets), (all_inputs, all_targets) in zip(found, batches, strict=False):
        assert torch.equal(inputs, all_inputs[: len(inputs)])
        assert torch.equal(targets, all_targets[: len(targets)])


# -- samplers ---------------------------------------------------------------------------------------------------------------
WEIGHTED = WeightedRandomSampler(torch.ones(20), 20)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"sampler": WEIGHTED}, "WeightedRandomSampler, which draws"),
        ({"sampler": RandomSampler(DATA, replacement=True)}, "RandomSampler, which draws"),
        ({"sampler": RandomSampler(DATA, num_samples=30)}, "RandomSampler of 30 samples over 20"),
        ({"batch_sampler": BatchSampler(WEIGHTED, 5, False)}, "WeightedRandomSampler"),
    ],
)
def test_samples_that_are_drawn_again_are_refused(options, found):
    """Held-out samples would be copies of fitted ones."""
    net = loop_net()
    before = snapshot(net)
    for call in (convex_init_, diagnose):
        with pytest.raises(DataError, match=found) as caught:
            call(net, DataLoader(DATA, **options))
        assert "shuffle=True" in caught.value.fix
        assert "weight=" in caught.value.fix
    assert_as_before(net, before)


def test_samplers_that_draw_each_sample_once():
    once = WeightedRandomSampler(torch.ones(20), 20, replacement=False)
    for options in ({"shuffle": True}, {"sampler": once}, {"batch_size": None}, {"batch_sampler": [[0, 1], [2, 3]]}):
        refuse_repeats(DataLoader(DATA, **options))
    refuse_repeats(pairs(4))


# -- axes -------------------------------------------------------------------------------------------------------------------
def sequences(samples, steps, time_dim=1):
    inputs = torch.zeros(samples, steps, 3)
    return inputs.movedim(1, time_dim), torch.arange(samples) % 2


STACKED = DataLoader(TensorDataset(*sequences(12, 4)), 4)  # of as many steps as samples in a batch


def test_batches_that_are_stacked_and_unpacked():
    swapped = Stream(STACKED, batch_dim=1, unpack=lambda batch: (batch[0].transpose(0, 1), batch[1]))
    assert len(swapped.head(12)[1]) == 12


@pytest.mark.parametrize(
    ("right", "wrong", "forward", "found", "time_dim"),
    [
        ([sequences(6, 4, 0)], [sequences(6, 4, 1)], over_time(time_dim=0), "samples on axis 0", 1),
        ([sequences(6, 4, 1)], [sequences(6, 4, 0)], over_time(time_dim=1), "samples on axis 1", 0),
        ([sequences(6, 6, 0)], STACKED, over_time(), "4 samples on axis 0", 1),
        (STACKED, [sequences(5, 4, 0)], over_time(4), "5 samples on axis 1", 0),
    ],
    ids=["time first", "batch first", "stacked", "static"],
)
def test_time_and_batch_taken_for_each_other(right, wrong, forward, found, time_dim):
    assert Stream(right, batch_dim=forward.batch_dim).head(6)
    with pytest.raises(DataError) as caught:
        Stream(wrong, batch_dim=forward.batch_dim)
    assert found in caught.value.found
    assert f"over_time(time_dim={time_dim})" in caught.value.fix
    Stream(wrong, batch_dim=over_time(time_dim=time_dim).batch_dim)
