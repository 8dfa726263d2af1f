from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset, WeightedRandomSampler

from snn_recon_plugin import convex_init_, diagnose, over_time
from snn_recon_plugin.errors import DataError
from snn_recon_plugin.stages.loader import refuse_repeats
from snn_recon_plugin.stages.stream import Stream, check_room
from snn_recon_plugin.tables import Tables

from ..helpers import assert_as_before, loop_net, sequential_net, snapshot, train_data


def pairs(*sizes):
    """Batches whose inputs tell their number."""
    return [(torch.full((size, 4), float(number)), torch.full((size,), number)) for number, size in enumerate(sizes)]


def numbers(stream):
    return [int(batch.inputs[0, 0]) for batch in stream]


def counted(batches, drawn):
    for number, batch in enumerate(batches):
        drawn.append(number)
        yield batch


def test_a_head_and_then_all_batches_each_drawn_once():
    drawn = []
    stream = Stream(counted(pairs(2, 3, 4, 5), drawn))
    assert drawn == [0]
    head, targets = stream.head(4)
    assert drawn == [0, 1]
    assert targets.tolist() == [0, 0, 1, 1, 1]
    assert [batch.rows for batch in head] == [slice(0, 2), slice(2, 5)]
    assert [batch.inputs.shape for batch in head] == [(2, 4), (3, 4)]
    assert numbers(stream) == [0, 1, 2, 3]
    assert drawn == [0, 1, 2, 3]


@pytest.mark.parametrize(("samples", "count"), [(1, 1), (2, 1), (3, 2), (5, 2), (9, 3), (100, 3)])
def test_a_head_holds_what_was_asked_for_or_all(samples, count):
    stream = Stream(pairs(2, 3, 4))
    assert len(stream.head(samples)[0]) == count
    # A longer head begins with the same batches.
    assert len(stream.head(100)[1]) == 9
    assert len(stream.head(samples)[0]) == count
    assert numbers(stream) == [0, 1, 2]


def test_inputs_and_targets_go_where_the_net_is():
    head, targets = Stream(pairs(2), torch.device("meta")).head(1)
    assert head[0].inputs.device.type == "meta"
    assert targets.device.type == "meta"


def test_a_list_of_labels_becomes_a_tensor():
    _, targets = Stream([(torch.zeros(2, 4), [5, 6])]).head(1)
    assert targets.tolist() == [5, 6]


def test_how_many_there_are():
    data = TensorDataset(torch.zeros(10, 4), torch.zeros(10))

    class Endless(IterableDataset):
        def __iter__(self):
            yield from data

    assert (len(Stream(DataLoader(data, 4))), Stream(DataLoader(data, 4)).total_samples) == (3, 10)
    assert (len(Stream(pairs(2, 3))), Stream(pairs(2, 3)).total_samples) == (2, None)
    for unknown in (iter(pairs(2)), DataLoader(Endless(), 4)):
        stream = Stream(unknown)
        assert stream.total_samples is None
        with pytest.raises(TypeError):
            len(stream)


@pytest.mark.parametrize("loader", [None, 3, torch.zeros(2, 2), "text", {"x": 1}])
def test_what_is_no_loader(loader):
    with pytest.raises(DataError, match=rf"a loader of type {type(loader).__name__}"):
        Stream(loader)


@pytest.mark.parametrize("loader", [[], iter(()), DataLoader([])])
def test_an_empty_loader(loader):
    with pytest.raises(DataError, match="an empty loader"):
        Stream(loader)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (torch.zeros(2, 4), "batch 2 is tensor"),
        ((torch.full((2, 4), float("nan")), torch.zeros(2, dtype=torch.int64)), "batch 2 holds 8 NaN"),
        ((torch.zeros(2, 4), torch.zeros(2)), r"batch 2 of torch.float32, shape \(2,\); batch 1 has torch.int64"),
        ((torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.int64)), r"batch 2 of torch.int64, shape \(2, 3\)"),
    ],
)
def test_a_bad_batch_in_the_head(second, message):
    stream = Stream([*pairs(2), second])
    assert len(stream.head(1)[1]) == 2
    with pytest.raises(DataError, match=message):
        stream.head(3)


def test_a_loader_that_fills_one_buffer():
    inputs, labels = torch.empty(2, 4), torch.empty(2, dtype=torch.int64)

    def reused():
        for number in range(3):
            yield inputs.fill_(number), labels.fill_(number)

    stream = Stream(reused())
    head, targets = stream.head(4)
    assert [float(batch.inputs[0, 0]) for batch in head] == [0, 1]
    assert targets.tolist() == [0, 0, 1, 1]
    assert numbers(stream) == [0, 1, 2]


def test_a_list_is_not_copied():
    listed = pairs(2)
    assert Stream(listed).head(1)[0][0].inputs is listed[0][0]


def test_a_length_that_is_a_bound_is_not_trusted():
    class Nominal:
        def __iter__(self):
            return iter(pairs(2))

        def __len__(self):
            return 10**12

    with pytest.raises(TypeError, match="Nominal that may give fewer"):
        len(Stream(Nominal()))


@pytest.mark.parametrize(
    ("batch", "unpack"),
    [
        ({"label": torch.ones(2), "image": torch.zeros(2, 4)}, lambda batch: (batch["image"], batch["label"])),
        ((torch.zeros(2, 4), torch.ones(2), [3, 4]), lambda batch: (batch[0], batch[1])),
    ],
    ids=["dict", "triple"],
)
def test_batches_that_are_unpacked(batch, unpack):
    stream = Stream([batch], unpack=unpack)
    _, targets = stream.head(1)
    assert targets.tolist() == [1, 1]
    assert [batch.inputs.shape for batch in stream] == [(2, 4)]


@pytest.mark.parametrize(
    ("batch", "fix"),
    [
        ({"label": 1, "image": 2}, "unpack=lambda batch: (batch['image'], batch['label'])"),
        ({"events": 1, "length": 2, "y": 3}, "unpack=lambda batch: (batch['events'], batch['y'])"),
        ((1, 2, 3), "unpack=lambda batch: (batch[0], batch[1])"),
        (torch.zeros(3), "DataLoader(TensorDataset(inputs, targets))"),
    ],
    ids=["dict", "three keys", "triple", "tensor"],
)
def test_what_to_type_for_batches_that_are_no_pairs(batch, fix):
    with pytest.raises(DataError) as caught:
        Stream([batch])
    assert fix in caught.value.fix
    with pytest.raises(DataError, match=r"unpack\(batch\) raised") as caught:
        Stream([batch], unpack=lambda batch: batch["nothing"]["here"])
    assert fix in caught.value.fix
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("time_first", [False, True])
def test_samples_with_an_ignored_label_are_left_out(time_first):
    labels = torch.tensor([0, -100, 2, -100])
    inputs = torch.arange(4.0)[:, None].expand(4, 5)
    given = inputs.T if time_first else inputs
    rest = (given, torch.full((4,), -100))
    stream = Stream([(given, labels), rest, (given, labels)], ignored=-100)
    kept = [(batch.inputs.T if time_first else batch.inputs) for batch in stream]
    assert [part[:, 0].tolist() for part in kept] == [[0, 2], [0, 2]]
    assert [batch.targets.tolist() for batch in stream_of(given, labels)] == [[0, 2]]


def stream_of(inputs, labels):
    return Stream([(inputs, labels)], ignored=-100)


@pytest.mark.parametrize(
    ("inputs", "labels", "word"),
    [
        (torch.zeros(2, 2), torch.tensor([0, -100]), "first or second axis"),
        (torch.zeros(2, 5), torch.tensor([[0, -100, 1], [0, 1, 2]]), "at every step"),
    ],
    ids=["either axis", "steps"],
)
def test_ignored_labels_that_cant_be_left_out(inputs, labels, word):
    with pytest.raises(DataError, match=word):
        stream_of(inputs, labels)


def test_an_error_of_the_loader_comes_through():
    def broken():
        yield from pairs(2)
        raise OSError("disk gone")

    stream = Stream(broken())
    with pytest.raises(OSError, match="disk gone"):
        stream.head(3)


# -- room -------------------------------------------------------------------------------------------------------------------

CPU, IN_FILES = torch.device("cpu"), Tables(largest=0)


@pytest.fixture
def free(monkeypatch):
    return lambda value: monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=value))


def test_features_in_memory_need_no_disk(free):
    free(0)
    check_room(50, 100, CPU, Tables(largest=4 * 100 * 50))
    with pytest.raises(DataError, match="51 samples of 100 features"):
        check_room(51, 100, CPU, Tables(largest=4 * 100 * 50))


def test_files_that_fit_and_files_that_do_not(free):
    free(12 * 100 * 50)  # three float32 copies of 100 features
    check_room(50, 100, CPU, IN_FILES)
    with pytest.raises(DataError, match="51 samples of 100 features") as caught:
        check_room(51, 100, CPU, IN_FILES)
    assert caught.value.fix == "pass max_samples=50, or set TMPDIR to a folder on a larger disk"


def test_the_message_in_gigabytes(free):
    free(2**30)
    with pytest.raises(DataError, match=r"about 11\.2 GiB where 1\.0 GiB are free in .*temporary files"):
        check_room(10**6, 1000, CPU, IN_FILES)


def test_a_proposal_that_the_initializer_takes(free):
    free(0)
    with pytest.raises(DataError, match="max_samples=10"):
        check_room(100, 100, CPU, IN_FILES)


def test_an_unknown_number_of_samples_is_not_refused(free):
    free(0)
    check_room(None, 1000, CPU, IN_FILES)


def test_the_memory_of_a_gpu_is_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (12 * 100 * 50, 2**40))
    check_room(50, 100, torch.device("cuda:0"), IN_FILES)
    with pytest.raises(DataError, match="free on cuda:0") as caught:
        check_room(51, 100, torch.device("cuda:0"), IN_FILES)
    assert caught.value.fix == "pass max_samples=50"


@pytest.mark.parametrize(
    ("sizes", "limit", "kept"), [([300], None, [256]), ([100] * 4, None, [100, 100, 56]), ([40] * 3, 50, [40, 10])]
)
def test_the_first_samples_are_kept_for_training_to_be_watched_by(sizes, limit, kept):
    batches = [(torch.rand(size, 3), torch.arange(size) % 2) for size in sizes]
    found = Stream(batches).sample(limit)
    assert [len(targets) for _, targets in found] == kept
    for position in (0, 1):
        whole = torch.cat([batch[position] for batch in batches])
        assert torch.equal(torch.cat([part[position] for part in found]), whole[: sum(kept)])


def test_fewer_are_kept_where_samples_are_large():
    """Sixteen samples of 4 MiB are 64 MiB; one is kept however large."""
    large = torch.zeros(1).expand(10, 2**20)
    labels = torch.arange(10) % 2
    assert [len(targets) for _, targets in Stream([(large, labels), (large, labels)]).sample()] == [10, 6]
    assert [len(targets) for _, targets in Stream([(torch.zeros(1).expand(2, 2**25), labels[:2])]).sample()] == [1]


# -- samplers ---------------------------------------------------------------------------------------------------------------


def drawn_by(sampler):
    data = TensorDataset(*train_data(200))
    return DataLoader(data, 50, sampler=sampler(data))


REPEATING = {
    "weighted": (lambda data: WeightedRandomSampler(torch.ones(len(data)), len(data)), "WeightedRandomSampler, which draws"),
    "random": (lambda data: RandomSampler(data, replacement=True), "RandomSampler, which draws"),
    "random, longer": (lambda data: RandomSampler(data, num_samples=300), "RandomSampler of 300 samples over 200"),
}


@pytest.mark.parametrize("name", REPEATING)
def test_samples_that_are_drawn_again_are_refused(name):
    """Held-out samples would be copies of fitted ones."""
    sampler, found = REPEATING[name]
    net = loop_net()
    before = snapshot(net)
    for call in (convex_init_, diagnose):
        with pytest.raises(DataError, match=found) as caught:
            call(net, drawn_by(sampler))
        assert "shuffle=True" in caught.value.fix
        assert "weight=" in caught.value.fix
    assert_as_before(net, before)


def test_samples_that_are_drawn_again_by_a_batch_sampler_of_the_users_own():
    data = TensorDataset(torch.rand(20, 2), torch.arange(20))
    sampler = BatchSampler(WeightedRandomSampler(torch.ones(20), 20), 5, False)
    with pytest.raises(DataError, match="WeightedRandomSampler"):
        refuse_repeats(DataLoader(data, batch_sampler=sampler))


def test_samplers_that_draw_each_sample_once():
    data = TensorDataset(torch.rand(20, 2), torch.arange(20))
    fine = [
        DataLoader(data, 4, shuffle=True),
        DataLoader(data, 4, sampler=WeightedRandomSampler(torch.ones(20), 20, replacement=False)),
        DataLoader(data, batch_sampler=[[0, 1], [2, 3]]),
        DataLoader(data, batch_size=None),
        [(torch.rand(4, 2), torch.arange(4))],
    ]
    for loader in fine:
        refuse_repeats(loader)


def test_batches_of_the_users_own_sampler_are_an_unknown_number_of_samples():
    class Huge(Dataset):
        def __len__(self):
            return 10**10

        def __getitem__(self, index):
            return torch.zeros(4), index

    stream = Stream(DataLoader(Huge(), batch_sampler=[[0, 1], [2, 3]]))
    assert stream.total_samples is None
    assert [len(batch.targets) for batch in stream] == [2, 2]
    assert Stream(DataLoader(TensorDataset(*train_data(20)), batch_size=None, sampler=[[0, 1], [2]])).total_samples is None


# -- axes -------------------------------------------------------------------------------------------------------------------


def sequences(samples, steps, time_dim=1):
    inputs = torch.zeros(samples, steps, 3)
    return inputs.movedim(1, time_dim), torch.arange(samples) % 2


@pytest.mark.parametrize(("time_dim", "fix"), [(0, 1), (1, 0)])
def test_time_and_batch_taken_for_each_other(time_dim, fix):
    right, wrong = sequences(6, 4, time_dim), sequences(6, 4, 1 - time_dim)
    assert len(Stream([right], over_time=over_time(time_dim=time_dim)).head(6)[1]) == 6
    with pytest.raises(DataError, match=f"samples on axis {time_dim}") as caught:
        Stream([wrong], over_time=over_time(time_dim=time_dim))
    assert caught.value.fix.startswith(f"pass forward=over_time(time_dim={fix});")


def test_a_loader_that_stacks_samples_has_them_first_even_if_there_are_as_many_steps():
    loader = DataLoader(TensorDataset(*sequences(12, 4)), 4)
    with pytest.raises(DataError, match="4 samples on axis 0"):
        Stream(loader, over_time=over_time())
    assert len(Stream(loader, over_time=over_time(time_dim=1)).head(12)[1]) == 12
    assert len(Stream(loader, over_time=over_time(), unpack=lambda batch: (batch[0].transpose(0, 1), batch[1])).head(12)[1]) == 12
    with pytest.raises(DataError, match=r"over_time\(time_dim=1\)"):
        convex_init_(
            sequential_net(), DataLoader(TensorDataset(torch.rand(24, 8, 64), torch.arange(24) % 10), 8), forward=over_time()
        )


def test_static_inputs_have_samples_first():
    with pytest.raises(DataError, match="5 samples on axis 1") as caught:
        Stream([sequences(5, 4, 0)], over_time=over_time(4))
    assert caught.value.fix == "pass forward=over_time(time_dim=0) for inputs [time, batch, ...]"


@pytest.mark.parametrize("known", ["forward", "loader"])
def test_an_ignored_label_where_there_are_as_many_features_as_samples(known):
    inputs, labels = torch.arange(4.0)[:, None].expand(4, 4), torch.tensor([0, -100, 2, -100])
    loader = [(inputs, labels)] if known == "forward" else DataLoader(TensorDataset(inputs, labels), 4)
    (batch,) = Stream(loader, ignored=-100, over_time=over_time(10) if known == "forward" else None)
    assert batch.inputs.tolist() == [[0.0] * 4, [2.0] * 4]
    assert batch.targets.tolist() == [0, 2]
