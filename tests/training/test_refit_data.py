"""The loader that solves read."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from snn_recon_plugin.training.refit_data import (
    count_epoch_samples,
    explain_obstacle,
    is_ordered,
    make_loader,
    training_batches,
)

from .runs import Stream


def pairs(batch):
    return default_collate(batch)


@pytest.mark.parametrize("subset", [False, True])
def test_tensors_are_read_a_batch_at_a_time(subset):
    """To the same batches as sample by sample, which a collate function of the user's own needs."""
    data: Dataset = TensorDataset(torch.rand(20, 3), torch.arange(20))
    if subset:
        data = Subset(Subset(data, torch.randperm(20)[:15].tolist()), np.arange(3, 15))
    order = torch.randperm(len(data))[:11].tolist()
    loaders = (DataLoader(data, collate_fn=collate) for collate in (pairs, default_collate))
    plain, quick = (make_loader(loader, order, 4, seed=0) for loader in loaders)
    assert plain.batch_size == 4
    assert quick.batch_size is None
    assert len(plain) == len(quick) == 3
    for one, two in zip(plain, quick, strict=True):
        assert isinstance(two, list)
        for first, second in zip(one, two, strict=True):
            assert torch.equal(first, second)
            assert first.dtype == second.dtype


def test_a_given_loader_has_as_many_samples_as_it_draws():
    data = TensorDataset(torch.rand(20, 1))
    assert count_epoch_samples(None, DataLoader(data, batch_size=4)) == 20
    assert count_epoch_samples(None, DataLoader(data, batch_size=4, sampler=SubsetRandomSampler(range(6)))) == 6
    for unknown in (DataLoader(Stream(), batch_size=4), DataLoader(data, batch_size=None), [data[:4]]):
        assert count_epoch_samples(None, unknown) is None


def test_samplers_that_are_not_the_trainers_own():
    class Wrapper(DistributedSampler):
        """As Lightning wraps a sampler of the user's own under DDP."""

    data = TensorDataset(torch.rand(8, 1))
    for kind, fine in ((DistributedSampler, True), (Wrapper, False)):
        loader = DataLoader(data, sampler=kind(data, num_replicas=2, rank=0))
        assert (explain_obstacle(loader) == "") is fine
    assert "makes the batches itself" in explain_obstacle(DataLoader(data, batch_size=None))
    own = BatchSampler(RandomSampler(data), 2, False)
    own.__class__ = type("Own", (BatchSampler,), {})
    assert "drawn by a Own" in explain_obstacle(DataLoader(data, batch_sampler=own))


def test_what_comes_in_order_under_ddp_too():
    data = TensorDataset(torch.rand(8, 1))
    assert is_ordered(SequentialSampler(data))
    assert not is_ordered(RandomSampler(data))
    for shuffle in (False, True):
        assert is_ordered(DistributedSampler(data, num_replicas=2, rank=0, shuffle=shuffle)) is not shuffle


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_ordered_epoch_that_is_cut_short_has_no_samples_behind_the_cut(shuffle):
    data_set = TensorDataset(torch.rand(40, 1), torch.arange(40))
    trainer = SimpleNamespace(train_dataloader=DataLoader(data_set, 5, shuffle=shuffle), num_training_batches=2, world_size=1)
    settings = SimpleNamespace(dataloader=None, initializer=SimpleNamespace(unpack=None))
    indices = training_batches(trainer, settings, None, seed=0).indices
    assert len(indices) == 10
    assert (max(indices) >= 10) is shuffle
