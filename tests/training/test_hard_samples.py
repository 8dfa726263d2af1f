"""The sampler of hard samples: its passes, the updates of a training loop, resuming, ranks, and how it is made."""

import copy
import dataclasses
import io
import pickle
import threading

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from snn_recon_plugin import convex_init_, refit_
from snn_recon_plugin.demo import build_network
from snn_recon_plugin.distributed import SINGLE_PROCESS, SingleProcess
from snn_recon_plugin.errors import DataError, OptionError
from snn_recon_plugin.networks import over_time
from snn_recon_plugin.training.hard_samples import LEAST_KEEP, HardSampler, make_sampler
from snn_recon_plugin.training.hardness import measure_hardness
from snn_recon_plugin.training.measure import TEMPERATURES

from .runs import DATA, data_set

N, CLASSES = 300, 10


def labels_of(count=N):
    return torch.arange(count) % CLASSES


def hardness_of(mean, count=N):
    """Half of the samples easy, and others up to a hardness below 1."""
    values = torch.linspace(-1, 1, count).clamp(min=0)[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    return values * mean / values.mean()


def sampler_of(mean=0.1, count=N, **options):
    return HardSampler(labels_of(count), hardness_of(mean, count), **options)


def scores_of(indices, offset=0):
    """Scores that depend on the sample, for a loop without a network."""
    return torch.randn(N, CLASSES, generator=torch.Generator().manual_seed(7 + offset))[indices]


class Numbers(Dataset):
    """Samples that are their own indices."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        return index


def loader_of(sampler, **options):
    return DataLoader(Numbers(), **{"batch_size": 16, "sampler": sampler, **options})


# -- passes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "keep"), [(0.0, LEAST_KEEP), (0.05, LEAST_KEEP), (0.15, 0.3), (0.25, 0.5), (0.49, 0.98), (0.6, 1.0)]
)
def test_a_pass_keeps_twice_the_mean_of_the_first_hardness(mean, keep):
    hardness = hardness_of(mean).clamp(max=1) if mean < 0.3 else torch.full((N,), mean)
    sampler = HardSampler(labels_of(), hardness)
    chances = sampler.probabilities()
    assert sampler.keep == pytest.approx(keep, abs=1e-4)
    assert float(chances.mean()) == pytest.approx(keep, abs=1e-4)
    assert float(chances.min()) >= 0.1 * keep - 1e-6
    assert float(chances.max()) <= 1
    free = (chances < 1) & (hardness > 1e-3)
    slopes = (chances - 0.1 * keep)[free] / hardness[free]
    assert len(slopes) == 0 or float(slopes.max() - slopes.min()) < 1e-2 * float(slopes.max())


def test_the_share_stays_when_samples_are_learnt_by_heart():
    sampler = sampler_of(0.2)
    sampler.update(torch.arange(N), 9.0 * F.one_hot(labels_of(), CLASSES))
    assert float(sampler.hardness.mean()) < 0.02
    assert sampler.keep == pytest.approx(0.4)
    assert float(sampler.probabilities().mean()) == pytest.approx(0.4, abs=1e-4)


@pytest.mark.parametrize("mean", [0.0, 0.05, 0.2, 0.9])
def test_an_epoch_has_as_many_indices_as_samples(mean):
    sampler = HardSampler(labels_of(), torch.full((N,), mean))
    for _ in range(2):
        indices = list(sampler)
        assert len(indices) == len(sampler) == N
        assert set(indices) <= set(range(N))


def test_all_hard_samples_make_an_ordinary_epoch():
    sampler = HardSampler(labels_of(), torch.full((N,), 0.8))
    one, two = list(sampler), list(sampler)
    assert sorted(one) == sorted(two) == list(range(N))
    assert one != two


def test_hard_samples_come_more_often():
    hardness = torch.zeros(N)
    hardness[:30] = 0.5
    counts = torch.tensor(list(HardSampler(labels_of(), hardness))).bincount(minlength=N)
    assert counts[:30].float().mean() > 4 * counts[30:].float().mean()
    assert counts.max() <= 8


def test_samples_that_contradict_the_network_count_as_easy():
    hardness = torch.full((N,), 0.2)  # as a temperature makes them if a fifth of the labels are wrong
    hardness[:30], hardness[30:60] = 0.95, 0.7
    sampler = HardSampler(labels_of(), hardness)
    chances = sampler.probabilities()
    assert float(chances[0]) == pytest.approx(0.1 * sampler.keep, abs=1e-4)
    assert chances[30] > chances[60] > chances[0]


@pytest.mark.parametrize("classes", [10, 11])
def test_classes_can_be_balanced(classes):
    labels = torch.cat([torch.zeros(200, dtype=torch.int64), torch.arange(1, 11).repeat(10)])
    labels[labels == 10] = classes  # 11: no sample of class 10
    sampler = HardSampler(labels, hardness_of(0.2), balanced=True)
    expected = torch.zeros(classes + 1).index_add(0, labels, sampler.probabilities())[labels.unique()]
    assert torch.allclose(expected, torch.full_like(expected, float(expected.mean())), rtol=1e-3)
    counts = labels[list(sampler)].bincount().float()[labels.unique()]
    assert counts.max() < 2.5 * counts.min()


def test_orders_follow_from_the_seed_alone():
    before = torch.get_rng_state()
    one, same, other = sampler_of(), sampler_of(), sampler_of(seed=1)
    torch.manual_seed(5)
    first = list(one)
    torch.manual_seed(6)
    changed = torch.get_rng_state()
    assert first == list(same)
    assert first != list(other)
    assert list(one) == list(same) != first
    assert torch.equal(torch.get_rng_state(), changed)
    torch.set_rng_state(before)


# -- updates --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_an_update_takes_the_probability_at_the_best_temperature(kind):
    sampler, indices = sampler_of(), torch.arange(50)
    scores = scores_of(indices) + 2 * F.one_hot(labels_of()[indices], CLASSES)
    sampler.update(indices, scores.to(kind).clone().requires_grad_())
    losses = [float(F.cross_entropy(scores / value, labels_of()[:50])) for value in TEMPERATURES]
    best = TEMPERATURES[losses.index(min(losses))]
    expected = 1 - (scores / best).softmax(1)[torch.arange(50), labels_of()[:50]]
    torch.testing.assert_close(sampler.hardness[:50], expected, atol=0.02 if kind is torch.bfloat16 else 1e-5, rtol=0)
    assert torch.equal(sampler.hardness[50:], hardness_of(0.1)[50:])
    assert not sampler.hardness.requires_grad
    larger = sampler_of()
    larger.update(indices, 4 * scores)
    torch.testing.assert_close(larger.hardness[:50], expected, atol=1e-5, rtol=0)


def test_the_temperature_is_of_the_last_batches():
    sampler, indices = sampler_of(), torch.arange(50)
    scores = scores_of(indices) + 2 * F.one_hot(labels_of()[indices], CLASSES)
    sampler.update(indices, scores)
    usual = sampler.hardness[:50].clone()
    sampler.update(torch.tensor([290]), scores[:1])  # alone it would have the lowest temperature
    assert float(sampler.hardness[290]) == pytest.approx(float(usual[0]), abs=0.02)


def test_scores_that_are_nan_are_hard():
    sampler = sampler_of()
    scores = torch.zeros(3, CLASSES)
    scores[1], scores[2, 0] = torch.nan, torch.inf
    sampler.update(torch.tensor([0, 1, 2]), scores)
    assert sampler.hardness[:3].tolist() == pytest.approx([0.9, 1.0, 1.0], abs=1e-6)
    assert bool(torch.isfinite(sampler.probabilities()).all())


def test_one_score_decides_between_two_classes():
    sampler = HardSampler(torch.tensor([0, 1, 1, 0]), torch.full((4,), 0.5))
    sampler.update(torch.arange(4), torch.tensor([[-4.0], [4.0], [0.0], [4.0]]))
    easy, also, even, wrong = sampler.hardness.tolist()
    assert easy == pytest.approx(also)
    assert even == pytest.approx(0.5)
    assert easy < even < wrong


def test_scores_of_other_shapes_are_refused():
    for scores in (torch.zeros(3, CLASSES), torch.zeros(2), torch.zeros(2, 4, CLASSES)):
        with pytest.raises(OptionError, match="for 2 samples"):
            sampler_of().update(torch.tensor([0, 1]), scores)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_visited_indices_are_those_of_the_batches(workers, drop_last):
    sampler = sampler_of()
    loader = loader_of(sampler, num_workers=workers, drop_last=drop_last, prefetch_factor=3 if workers else None)
    for stop in (4, 100, 100):  # the first epoch is cut short
        for number, batch in enumerate(loader):
            assert sampler.unvisited >= len(batch)
            assert torch.equal(sampler.visited(len(batch)), batch)
            if number + 1 == stop:
                break


def test_more_than_was_handed_out_is_not_visited():
    sampler = sampler_of()
    with pytest.raises(OptionError, match="1 samples visited, of 0"):
        sampler.visited(1)
    next(iter(loader_of(sampler)))
    assert len(sampler.visited(16)) == 16
    with pytest.raises(OptionError, match="once a batch"):
        sampler.visited(16)


def test_passes_follow_the_updates_of_their_epoch():
    sampler = sampler_of(0.05)
    for number, batch in enumerate(loader_of(sampler)):
        indices = sampler.visited(len(batch))
        sampler.update(indices, 9.0 * F.one_hot(labels_of()[indices], CLASSES).float())
        if number == 10:
            assert float(sampler.hardness.mean()) < 0.02
    assert len(set(sampler.hardness[sampler.hardness > 0.1].tolist())) < 20


# -- an epoch without updates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "renewed"), [(300, 300), (5000, 1000), (20_000, 2000)])
def test_hardness_is_measured_again_after_an_epoch_without_updates(count, renewed):
    asked = []

    def renew(indices):
        asked.append(indices)
        return torch.full((len(indices),), 0.9)

    sampler = sampler_of(0.05, count, renew=renew)
    next(iter(sampler))
    assert asked == []  # the hardness is new
    next(iter(sampler))
    assert len(asked[0].unique()) == len(asked[0]) == renewed
    assert torch.equal(sampler.hardness[asked[0]], torch.full((renewed,), 0.9))
    sampler.update(torch.arange(2), torch.zeros(2, CLASSES))
    next(iter(sampler))
    assert len(asked) == 1
    next(iter(sampler))
    assert not torch.equal(asked[0], asked[1])


# -- resuming -------------------------------------------------------------------------------------------------------------


def run(sampler, epochs, workers, *, begin=0, save=None, **options):
    """Train for some epochs; return all batches, and the state after batch ``save`` of the second epoch."""
    loader, seen, saved = loader_of(sampler, num_workers=workers, **options), [], None
    for epoch in range(begin, epochs):
        for number, batch in enumerate(loader):
            sampler.update(sampler.visited(len(batch)), scores_of(batch, epoch))
            seen.append(batch.tolist())
            if (epoch, number) == (1, save):
                saved = (io.BytesIO(), len(seen))
                torch.save(sampler.state_dict(), saved[0])
    return seen, saved


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("save", "drop_last"), [(0, False), (6, False), (18, False), (17, True)])
def test_training_resumes_from_any_batch(workers, save, drop_last):
    """18 and 17 are the last batches of an epoch."""
    seen, (file, done) = run(sampler_of(0.05), 3, workers, save=save, drop_last=drop_last)
    file.seek(0)
    again = sampler_of(0.3, renew=lambda indices: torch.ones(len(indices)))
    again.load_state_dict(torch.load(file, weights_only=True))
    begin = 1 if save < 17 else 2
    assert run(again, 3, workers, begin=begin, drop_last=drop_last)[0] == seen[done:]


def test_an_epoch_that_is_cut_short_can_be_ended():
    sampler, again = sampler_of(), sampler_of()
    for number, batch in enumerate(loader_of(sampler, num_workers=2)):
        sampler.update(sampler.visited(len(batch)), scores_of(batch))
        if number == 4:
            break
    sampler.end_epoch()
    again.load_state_dict(sampler.state_dict())
    assert list(again) == list(sampler)


def test_a_loop_that_calls_nothing_resumes_behind_what_was_handed_out():
    sampler, again = sampler_of(), sampler_of()
    given = iter(sampler)
    for _ in range(40):
        next(given)
    again.load_state_dict(sampler.state_dict())
    assert list(again) == list(given)
    again.load_state_dict(sampler.state_dict())
    assert list(again) == list(sampler)


def test_a_new_sampler_has_a_state_too():
    sampler, again = sampler_of(0.7), sampler_of(0.3)
    again.load_state_dict(sampler.state_dict())
    assert list(again) == list(sampler)


def test_states_are_copies_of_the_same_data():
    sampler = sampler_of()
    state = sampler.state_dict()
    sampler.update(torch.arange(N), scores_of(torch.arange(N)))
    assert torch.equal(state["hardness"], hardness_of(0.1))
    again = sampler_of()
    again.load_state_dict(state)
    again.update(torch.arange(N), scores_of(torch.arange(N)))
    _ = again.hardness
    assert torch.equal(state["hardness"], hardness_of(0.1))
    with pytest.raises(OptionError, match="of 300 samples, for 200"):
        sampler_of(count=200).load_state_dict(state)


# -- ranks ----------------------------------------------------------------------------------------------------------------


class Threads(SingleProcess):
    """A process of a group whose processes are threads."""

    is_distributed = True

    def __init__(self, rank, barrier, values):
        self.rank, self.size, self.barrier, self.values = rank, barrier.parties, barrier, values

    def gather(self, value):
        self.values[self.rank] = value
        self.barrier.wait(20)
        found = list(self.values)
        self.barrier.wait(20)
        return found

    def check_equal(self, what, value):
        if len(set(self.gather(value))) > 1:
            raise DataError(what, "the same", "check")


def in_ranks(work, size=2):
    """Return the results of ``work(processes)`` in so many ranks."""
    barrier, values, results = threading.Barrier(size), [None] * size, [None] * size

    def start(rank):
        try:
            results[rank] = work(Threads(rank, barrier, values))
        except BaseException as error:
            barrier.abort()
            results[rank] = error

    threads = [threading.Thread(target=start, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return results


@pytest.mark.parametrize("world", [2, 7])
def test_ranks_share_the_passes_of_one(world):
    whole = list(sampler_of())
    parts = [sampler_of(rank=rank, world=world) for rank in range(world)]
    drawn = [list(part) for part in parts]
    assert {len(part) for part in drawn} == {len(part) for part in parts} == {-(-N // world)}
    together = [index for group in zip(*drawn, strict=True) for index in group]
    assert together[:N] == whole


def test_ranks_learn_of_each_others_updates_between_epochs():
    def work(processes):
        sampler = sampler_of(rank=processes.rank, world=processes.size)
        drawn = []
        for _ in range(2):
            for batch in loader_of(sampler):
                indices = sampler.visited(len(batch))
                assert torch.equal(indices, batch)
                sampler.update(indices, scores_of(indices, processes.rank))
            drawn.append(sampler.hardness.clone())
            sampler.share_hardness(processes)
            drawn.append(sampler.hardness.clone())
        return drawn

    one, two = in_ranks(work)
    assert torch.equal(one[0], hardness_of(0.1))  # passes of an epoch are the same in all ranks
    assert not torch.equal(one[0], one[1])
    for mine, other in zip(one, two, strict=True):
        assert torch.equal(mine, other)


def test_ranks_measure_some_samples_if_none_has_updates():
    def work(processes):
        asked = []

        def renew(indices):
            asked.append(indices)
            return torch.full((len(indices),), 0.3)

        sampler = sampler_of(rank=processes.rank, world=processes.size, renew=renew)
        sampler.share_hardness(processes)  # before training
        list(sampler)
        list(sampler)  # nothing was shared
        assert asked == []
        sampler.share_hardness(processes)
        return sampler.hardness, asked[0]

    (one, asked), (two, same) = in_ranks(work)
    assert torch.equal(asked, same)
    assert torch.equal(one, two)
    assert float(one.max()) == pytest.approx(0.3)


def test_one_process_has_nothing_to_share():
    sampler = sampler_of(renew=lambda indices: torch.ones(len(indices)))
    list(sampler)
    sampler.update(torch.arange(2), torch.zeros(2, CLASSES))
    sampler.share_hardness(SINGLE_PROCESS)
    assert sampler.hardness[:2].tolist() == pytest.approx([0.9, 0.9])
    assert torch.equal(sampler.hardness[2:], hardness_of(0.1)[2:])


def test_a_state_resumes_in_all_ranks():
    samplers = [sampler_of(rank=rank, world=2) for rank in range(2)]
    given = [iter(sampler) for sampler in samplers]
    for _ in range(40):
        for order in given:
            next(order)
    again = [sampler_of(rank=rank, world=2) for rank in range(2)]
    for sampler in again:
        sampler.load_state_dict(samplers[0].state_dict())  # that of rank 0, as in a checkpoint
    assert [list(sampler) for sampler in again] == [list(order) for order in given]


# -- following a network --------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A network of one layer, whose scores are an item of its output."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x):
        return {"scores": self.fc(x)}


INPUTS = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))


def followed(**options):
    torch.manual_seed(0)
    net, sampler = Plain(), sampler_of(**options)
    handle = sampler.follow(net, lambda output: output["scores"])
    return net, sampler, handle


def test_a_hook_updates_from_training_batches_alone():
    net, sampler, handle = followed()
    for batch in loader_of(sampler, num_workers=2):
        expected = sampler_of()
        expected.load_state_dict(sampler.state_dict())
        expected.update(batch, net.fc(INPUTS[batch]))
        with torch.no_grad():
            net(INPUTS[batch])
        net.eval()
        net(INPUTS[batch])
        net.train()
        output = net(x=INPUTS[batch])["scores"]
        assert output.requires_grad
        assert torch.equal(sampler.hardness, expected.hardness)
    assert sampler.unvisited == 0
    handle.remove()
    before = sampler.hardness.clone()
    next(iter(sampler))
    net(INPUTS[:1])
    assert torch.equal(sampler.hardness, before)


def test_a_batch_that_is_run_twice_is_visited_once():
    net, sampler, _ = followed()
    for batch in loader_of(sampler, num_workers=2):
        inputs = INPUTS[batch]
        net(inputs)
        left = sampler.unvisited
        net(inputs)
        assert sampler.unvisited == left
    assert sampler.unvisited == 0


def test_a_buffer_that_is_filled_anew_is_another_batch():
    net, sampler, _ = followed()
    buffer = torch.empty(16, 4)
    for batch in loader_of(sampler, drop_last=True):
        net(buffer.copy_(INPUTS[batch]))
        assert sampler.unvisited == 0


def test_batches_of_other_loaders_are_not_followed():
    net, sampler, _ = followed()
    net(INPUTS[:8])
    order = iter(sampler)
    next(order)
    net(INPUTS[:8])
    net(torch.empty(0, 4))
    assert torch.equal(sampler.hardness, hardness_of(0.1))


def test_training_goes_on_with_outputs_that_have_no_scores():
    net, sampler, _ = followed()
    next(iter(sampler))
    net.register_forward_hook(lambda module, arguments, output: {"losses": output["scores"]}, prepend=True)
    assert set(net(INPUTS[:1])) == {"losses"}
    assert sampler.unvisited == 1


def test_copies_of_a_network_are_not_followed():
    net, sampler, _ = followed()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        next(iter(sampler))
        other(INPUTS[:1])
        assert sampler.unvisited == 1
    net(INPUTS[:1])
    assert sampler.unvisited == 0
    del sampler
    net(INPUTS[:1])  # nothing is left to update


# -- measurement ----------------------------------------------------------------------------------------------------------


def start(data=None, net=None, **options):
    torch.manual_seed(0)
    net = net or build_network(64, 32, 10, 4)
    loader = DataLoader(data or data_set(), 40)
    return net, convex_init_(net, loader, **{"hidden": "keep", "strength": 1e-3, "progress": False, **options})


def expected_hardness(scores, labels):
    best = min(TEMPERATURES, key=lambda value: float(F.cross_entropy(scores / value, labels)))
    return 1 - (scores / best).softmax(1)[torch.arange(len(labels)), labels]


def test_hardness_is_measured_at_the_best_temperature_of_all_samples():
    net, report = start()
    inputs, labels = data_set().tensors
    with torch.no_grad():
        scores = net(inputs).mean(0)
    net.train()
    before, generator = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    loader = DataLoader(data_set(), 64, generator=torch.Generator())
    values, found, decode = measure_hardness(net, loader, report.sample.options, 390, SINGLE_PROCESS)
    assert net.training
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(found, labels[:390])
    torch.testing.assert_close(values, expected_hardness(scores[:390], labels[:390]), atol=1e-4, rtol=0)
    torch.testing.assert_close(decode(net(inputs)), scores)


def test_a_sampler_made_of_a_report_follows_training():
    net, report = start()
    inputs, labels = data_set().tensors
    sampler = make_sampler(report, data_set())
    with torch.no_grad():
        expected = expected_hardness(net(inputs).mean(0), labels)
    torch.testing.assert_close(sampler.hardness, expected, atol=1e-4, rtol=0)
    assert torch.equal(sampler.labels, labels)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(2):
        for x, y in DataLoader(data_set(), 50, sampler=sampler):
            optimizer.zero_grad()
            F.cross_entropy(net(x).mean(0), y).backward()
            optimizer.step()
            assert sampler.unvisited == 0
    assert float(sampler.hardness.mean()) < float(expected.mean())


class Dictionaries(Dataset):
    def __len__(self):
        return 70

    def __getitem__(self, index):
        return {"x": DATA.train_inputs[index], "y": int(DATA.train_labels[index])}


def pair(batch):
    return batch["x"], batch["y"]


class Step(nn.Module):
    """One step in time of two layers."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 32), snn.Leaky(beta=0.9, init_hidden=True)
        self.fc2, self.lif2 = nn.Linear(32, 10), snn.Leaky(beta=0.9, init_hidden=True, reset_mechanism="none", output=True)

    def forward(self, x):
        return self.lif2(self.fc2(self.lif1(self.fc1(x))))[1]


def test_the_options_of_the_call_read_the_data_set():
    """A network that its user steps through time is not followed, but measured again."""
    net, report = start(Dictionaries(), Step(), unpack=pair, forward=over_time(4), readout="membrane_mean")
    sampler = make_sampler(report, Dictionaries(), num_workers=1)
    assert torch.equal(sampler.labels, DATA.train_labels[:70])
    assert not net._forward_hooks
    list(sampler)
    first = sampler.hardness.clone()
    with torch.no_grad():
        net.fc2.weight.zero_()
        net.fc2.bias.zero_()
    next(iter(sampler))
    assert not torch.equal(sampler.hardness, first)
    assert torch.allclose(sampler.hardness, torch.full((70,), 0.9))


class Fixed(nn.Module):
    """A network for batches of 40 alone."""

    def __init__(self):
        super().__init__()
        self.inner = build_network(64, 32, 10, 4)

    def forward(self, x):
        return self.inner(x.view(40, 64))


def test_all_batches_have_the_size_of_the_users():
    net, report = start(net=Fixed())
    sampler = make_sampler(report, data_set(70))
    with torch.no_grad():
        scores = net.inner(DATA.train_inputs[:70]).mean(0)
    torch.testing.assert_close(sampler.hardness, expected_hardness(scores, DATA.train_labels[:70]), atol=1e-4, rtol=0)


def test_ranks_measure_a_data_set_together():
    _, report = start()
    alone = make_sampler(report, data_set(90))

    def work(processes):
        return copy.deepcopy(report.sample.net), processes

    nets = in_ranks(work, 3)

    def measure(processes):
        own = dataclasses.replace(report, _sample=dataclasses.replace(report.sample, net=nets[processes.rank][0]))
        return make_sampler(own, data_set(90), processes=processes)

    for rank, sampler in enumerate(in_ranks(measure, 3)):
        assert torch.allclose(sampler.hardness, alone.hardness, atol=1e-6)
        assert torch.equal(sampler.labels, alone.labels)
        assert list(sampler) == list(alone)[rank::3] if rank == 0 else len(list(sampler)) == 30


def test_the_report_of_a_refit_has_a_sampler():
    net, report = start()
    with torch.no_grad():
        net.fc2.weight.zero_()
    found = refit_(net, DataLoader(data_set(), 40), report)
    assert len(make_sampler(found, data_set(50))) == 50


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])

    def __len__(self):
        return 50


class Values(Dataset):
    """Samples with targets of the test's."""

    def __init__(self, targets):
        self.targets = targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return DATA.train_inputs[index], self.targets[index]


LABELS = DATA.train_labels[:50]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (Stream(), "a data set of type Stream, without a length or indices"),
        ({1, 2}, "a data set of type set"),
        (Values(F.one_hot(LABELS, 10).float()), r"targets of torch.float32, shape \(40, 10\)"),
        (Values(LABELS.float()), r"targets of torch.float32, shape \(40,\)"),
        (Values(LABELS.index_fill(0, torch.tensor([3]), 11)), "11"),
        (Values(LABELS.index_fill(0, torch.tensor([3]), -100)), "a label that the loss ignores"),
        (Values(LABELS.index_fill(0, torch.tensor([49]), -100)), "a label that the loss ignores"),
    ],
)
def test_other_data_are_refused(data, text):
    _, report = start(loss=nn.CrossEntropyLoss())
    with pytest.raises(DataError, match=text):
        make_sampler(report, data)


def test_a_report_that_was_undone_has_no_sampler():
    _, report = start()
    report.undo()
    with pytest.raises(OptionError, match="undone"):
        make_sampler(report, data_set())


def test_ranks_with_data_of_other_lengths_are_refused():
    _, report = start()
    with pytest.raises(DataError, match="samples of the data set"):
        in_ranks(lambda processes: make_sampler(report, data_set(50 + processes.rank), processes=processes))


def test_solves_refuse_a_loader_with_the_sampler():
    """It repeats samples, which would then be among the held-out ones."""
    net, report = start()
    loader = DataLoader(data_set(), 40, sampler=make_sampler(report, data_set()))
    with pytest.raises(DataError, match="a HardSampler, which draws samples with replacement"):
        convex_init_(net, loader, progress=False)
