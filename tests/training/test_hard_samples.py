"""The sampler of hard samples: its passes, the updates of a training loop, resuming, and how it is made."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from snn_recon_plugin import convex_init_, refit_
from snn_recon_plugin.demo import build_network
from snn_recon_plugin.distributed import SingleProcess
from snn_recon_plugin.errors import DataError, OptionError
from snn_recon_plugin.networks.calls.forward import over_time, plain_forward
from snn_recon_plugin.networks.calls.record import StoredBatch, record
from snn_recon_plugin.networks.private.quiet import quiet
from snn_recon_plugin.networks.private.workbench import private_copy
from snn_recon_plugin.scan.passes import fast_passes
from snn_recon_plugin.training.hard_samples import LEAST_KEEP, HardSampler
from snn_recon_plugin.training.measure import TEMPERATURES

from ..nets import sequential_net
from ..scan.loops import Products
from .runs import DATA, SAMPLES, Stream, data_set

N, CLASSES = 300, 10
LABELS = torch.arange(N) % CLASSES


def hardness_of(mean, count=N):
    """Half of the samples easy, and others up to a hardness below 1."""
    values = torch.linspace(-1, 1, count).clamp(min=0)[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    return values * mean / values.mean()


def sampler_of(mean=0.1, count=N, **options):
    return HardSampler(torch.arange(count) % CLASSES, hardness_of(mean, count), **options)


def scores_of(indices):
    """Scores that depend on the sample, for a loop without a network."""
    return torch.randn(N, CLASSES, generator=torch.Generator().manual_seed(7))[indices]


def loader_of(sampler, **options):
    """Samples that are their own indices."""
    return DataLoader(range(N), **{"batch_size": 16, "sampler": sampler, **options})


@pytest.mark.parametrize(
    ("mean", "keep"), [(0.0, LEAST_KEEP), (0.05, LEAST_KEEP), (0.15, 0.3), (0.25, 0.5), (0.49, 0.98), (0.6, 1.0)]
)
def test_a_pass_keeps_twice_the_mean_of_the_first_hardness(mean, keep):
    hardness = hardness_of(mean) if mean < 0.3 else torch.full((N,), mean)
    sampler = HardSampler(LABELS, hardness)
    chances = sampler.probabilities()
    assert sampler.keep == pytest.approx(keep, abs=1e-4)
    assert float(chances.mean()) == pytest.approx(keep, abs=1e-4)
    assert 0.1 * keep - 1e-6 <= float(chances.min()) <= float(chances.max()) <= 1
    free = (chances < 1) & (hardness > 1e-3)
    slopes = (chances - 0.1 * keep)[free] / hardness[free]
    assert len(slopes) == 0 or float(slopes.max() - slopes.min()) < 1e-2 * float(slopes.max())
    indices = list(sampler)
    assert len(indices) == len(sampler) == N
    assert set(indices) <= set(range(N))
    assert keep < 1 or sorted(indices) == list(range(N))
    sampler.update(torch.arange(N), 9.0 * F.one_hot(LABELS, CLASSES))  # learnt by heart: the share stays
    assert float(sampler.hardness.mean()) < 0.02
    assert float(sampler.probabilities().mean()) == pytest.approx(keep, abs=1e-4)


def test_hard_samples_come_more_often_but_not_those_that_contradict_the_network():
    hardness = torch.zeros(N)
    hardness[:30] = 0.5
    counts = torch.tensor(list(HardSampler(LABELS, hardness))).bincount(minlength=N)
    assert counts[:30].float().mean() > 4 * counts[30:].float().mean()
    assert counts.max() <= 8
    hardness = torch.full((N,), 0.2)  # as a temperature makes them if a fifth of the labels are wrong
    hardness[:30], hardness[30:60] = 0.95, 0.7
    sampler = HardSampler(LABELS, hardness)
    chances = sampler.probabilities()
    assert float(chances[0]) == pytest.approx(0.1 * sampler.keep, abs=1e-4)
    assert chances[30] > chances[60] > chances[0]


def test_orders_follow_from_the_seed_alone():
    one, same, other = sampler_of(), sampler_of(), sampler_of(seed=1)
    torch.manual_seed(5)
    first = list(one)
    torch.manual_seed(6)
    changed = torch.get_rng_state()
    assert first == list(same) != list(other)
    assert list(one) == list(same) != first
    assert torch.equal(torch.get_rng_state(), changed)


def at_the_best_temperature(scores, labels):
    best = min(TEMPERATURES, key=lambda value: float(F.cross_entropy(scores / value, labels)))
    return 1 - (scores / best).softmax(1)[torch.arange(len(labels)), labels]


@pytest.mark.parametrize(("kind", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-5), (torch.bfloat16, 0.02)])
def test_an_update_takes_the_probability_at_the_best_temperature(kind, error):
    sampler, indices = sampler_of(), torch.arange(50)
    scores = scores_of(indices) + 2 * F.one_hot(LABELS[:50], CLASSES)
    sampler.update(indices, scores.to(kind).clone().requires_grad_())
    torch.testing.assert_close(sampler.hardness[:50], at_the_best_temperature(scores, LABELS[:50]), atol=error, rtol=0)
    assert torch.equal(sampler.hardness[50:], hardness_of(0.1)[50:])
    assert not sampler.hardness.requires_grad
    usual = float(sampler.hardness[0])
    sampler.update(torch.tensor([290]), scores[:1])  # alone it would have the lowest temperature, but the last batches count
    assert float(sampler.hardness[290]) == pytest.approx(usual, abs=0.03)


def test_scores_that_are_nan_are_hard_and_one_score_decides_between_two_classes():
    sampler, scores = sampler_of(), torch.zeros(3, CLASSES)
    scores[1], scores[2, 0] = torch.nan, torch.inf
    sampler.update(torch.arange(3), scores)
    assert sampler.hardness[:3].tolist() == pytest.approx([0.9, 1.0, 1.0], abs=1e-6)
    assert bool(torch.isfinite(sampler.probabilities()).all())
    sampler = HardSampler(torch.tensor([0, 1, 1, 0]), torch.full((4,), 0.5))
    sampler.update(torch.arange(4), torch.tensor([[-4.0], [4.0], [0.0], [4.0]]))
    easy, also, even, wrong = sampler.hardness.tolist()
    assert easy == pytest.approx(also)
    assert even == pytest.approx(0.5)
    assert easy < even < wrong


@pytest.mark.parametrize(("workers", "drop_last"), [(0, False), (2, True)])
def test_visited_indices_are_those_of_the_batches(workers, drop_last):
    sampler = sampler_of()
    loader = loader_of(sampler, num_workers=workers, drop_last=drop_last, prefetch_factor=3 if workers else None)
    for stop in (4, 100):  # the first epoch is cut short
        for number, batch in enumerate(loader):
            assert torch.equal(sampler.visited(len(batch)), batch)
            if number + 1 == stop:
                break
    with pytest.raises(OptionError, match="once a batch"):
        sampler.visited(17)


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


@pytest.mark.parametrize("stop", [0, 8, 100])
def test_training_resumes_with_the_next_epoch(stop):
    """From a copy of the state that is saved before training, within an epoch, or at its end."""
    sampler, again = sampler_of(0.7), sampler_of(0.3)
    for number, batch in enumerate(loader_of(sampler)):
        if number == stop:
            break
        sampler.update(sampler.visited(len(batch)), scores_of(batch))
    state, file = sampler.state_dict(), io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    kept = sampler.hardness.clone()
    assert torch.equal(again.hardness, kept)
    assert list(again) == list(sampler)
    again.load_state_dict(state)
    for one in (sampler, again):
        one.update(torch.arange(N), scores_of(torch.arange(N)))
        assert not torch.equal(one.hardness, kept)
    assert torch.equal(state["hardness"], kept)


INPUTS = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))


def followed():
    torch.manual_seed(0)
    net, sampler = nn.Linear(4, CLASSES), sampler_of()
    return net, sampler, sampler.follow(net, lambda output: 2 * output)


def test_a_hook_updates_from_training_batches_alone():
    net, sampler, handle = followed()
    net(INPUTS[:8])  # of another loader, before this one is read
    for batch in loader_of(sampler, num_workers=2):
        expected = sampler_of()
        expected.load_state_dict(sampler.state_dict())
        expected.update(batch, 2 * net.forward(INPUTS[batch]))  # no hook runs
        with torch.no_grad():
            net(INPUTS[batch])
        net.eval()
        net(INPUTS[batch])
        net.train()
        net(torch.empty(0, 4))
        assert net(input=INPUTS[batch]).requires_grad
        assert torch.equal(sampler.hardness, expected.hardness)
    assert sampler.unvisited == 0
    handle.remove()
    before = sampler.hardness.clone()
    next(iter(sampler))
    net(INPUTS[:1])
    assert torch.equal(sampler.hardness, before)


def test_a_batch_that_is_run_twice_is_visited_once_and_a_buffer_that_is_filled_anew_is_another_batch():
    net, sampler, _ = followed()
    buffer = torch.empty(16, 4)
    for batch in loader_of(sampler, num_workers=2, drop_last=True):
        inputs = buffer.copy_(INPUTS[batch])
        net(inputs)
        left = sampler.unvisited
        net(inputs)
        assert sampler.unvisited == left
    assert sampler.unvisited < 16


def test_copies_outputs_without_scores_and_batches_of_other_loaders_are_not_followed():
    net, sampler, _ = followed()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        next(iter(sampler))
        other(INPUTS[:1])
        net(INPUTS[:8])
        assert sampler.unvisited == 1
    handle = net.register_forward_hook(lambda module, arguments, output: {"losses": output}, prepend=True)
    assert set(net(INPUTS[:1])) == {"losses"}
    assert sampler.unvisited == 1
    assert torch.equal(sampler.hardness, hardness_of(0.1))
    handle.remove()
    net(INPUTS[1:2])
    assert sampler.unvisited == 0
    del sampler
    net(INPUTS[:1])  # nothing is left to update


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = build_network(64, 32, 10, 4)

    def forward(self, x):
        return self.inner(x.view(40, 64))


def test_copies_of_a_net_that_is_followed_run_by_plans():
    net, sampler = build_network(4, 8, CLASSES, 5), sampler_of()
    sampler.follow(net, lambda output: output)
    copied, counts = private_copy(net), []
    with quiet(copied, seed=0), fast_passes(copied):
        for _ in range(3):
            with Products() as seen:
                record(copied, StoredBatch(INPUTS[:8], slice(0, 8)), plain_forward)
            counts.append(seen.count)
    assert counts[2] == 2 < counts[0]


def start(data=None, net=None, **options):
    torch.manual_seed(0)
    net = net or build_network(64, 32, 10, 4)
    loader = DataLoader(data or data_set(), 40)
    return net, convex_init_(net, loader, **{"hidden": "keep", "strength": 1e-3, "progress": False, **options})


def test_a_sampler_made_of_a_report_follows_training():
    net, report = start(net=Fixed())
    net.train()
    generator = torch.get_rng_state()
    for count in (70, SAMPLES):  # of a data set that has a part of a batch too
        sampler = report.sampler(data_set(count))
        inputs, labels = data_set(count).tensors
        with torch.no_grad():
            expected = at_the_best_temperature(net.inner(inputs).mean(0), labels)
        torch.testing.assert_close(sampler.hardness, expected, atol=1e-4, rtol=0)
        assert torch.equal(sampler.labels, labels)
    assert net.training
    assert torch.equal(torch.get_rng_state(), generator)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    loader = DataLoader(data_set(), 40, sampler=sampler)
    for _ in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(x).mean(0), y).backward()
            optimizer.step()
            assert sampler.unvisited == 0
    assert float(sampler.hardness.mean()) < float(expected.mean())
    with pytest.raises(DataError, match="a HardSampler, which draws samples with replacement"):
        convex_init_(net, loader, progress=False)  # repeated samples would be among the held-out ones


def test_the_options_of_the_call_read_the_data_set():
    """A network that its user steps through time is not followed, but measured again."""
    data = [{"x": x, "y": int(y)} for x, y in data_set(70)]
    options = {"unpack": lambda batch: (batch["x"], batch["y"]), "forward": over_time(4), "readout": "membrane_mean"}
    net, report = start(data, sequential_net(), **options)
    sampler = report.sampler(data, num_workers=1)
    assert torch.equal(sampler.labels, DATA.train_labels[:70])
    assert not net._forward_hooks
    list(sampler)
    with torch.no_grad():
        net[2].weight.zero_()
        net[2].bias.zero_()
    next(iter(sampler))
    assert torch.allclose(sampler.hardness, torch.full((70,), 0.9))


def with_targets(targets):
    return list(zip(DATA.train_inputs[:50], targets, strict=True))


FIRST = DATA.train_labels[:50]
VALUES = with_targets(F.one_hot(FIRST, 10) / 2)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (Stream(), "a data set of type Stream, without a length or indices"),
        (VALUES, r"shape \(40, 10\)"),
        (with_targets(FIRST.index_fill(0, torch.tensor([3]), 11)), "11"),
        (with_targets(FIRST.index_fill(0, torch.tensor([49]), -100)), "a label that the loss ignores"),
    ],
)
def test_other_data_are_refused(data, text):
    _, report = start(loss=nn.CrossEntropyLoss())
    with pytest.raises(DataError, match=text):
        report.sampler(data)


class Two(SingleProcess):
    """As ``Shards`` of two processes says of itself."""

    is_distributed = True


def test_other_reports_scores_and_states_are_refused():
    with pytest.raises(OptionError, match="processes that share the samples"):
        start(shards=Two())[1].sampler(data_set())
    net, report = start()
    net.fc2.weight.data.zero_()
    found = refit_(net, DataLoader(data_set(), 40), report)
    assert len(found.sampler(data_set(50))) == 50
    found.undo()
    with pytest.raises(OptionError, match="undone"):
        found.sampler(data_set())
    with pytest.raises(DataError, match=r"targets of torch.float32, shape \(40, 10\)"):
        start(VALUES, loss="squared")[1].sampler(VALUES)
    for shape in [(3, CLASSES), (2,), (2, 4, CLASSES)]:
        with pytest.raises(OptionError, match="for 2 samples"):
            sampler_of().update(torch.tensor([0, 1]), torch.zeros(shape))
    with pytest.raises(OptionError, match="of 300 samples, for 200"):
        sampler_of(count=200).load_state_dict(sampler_of().state_dict())
