"""The loader that solves read."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils import data as sources
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Subset, TensorDataset, default_collate

from snn_recon_plugin.options import Options
from snn_recon_plugin.training.trainer_data import TrainerJudge, explain_obstacle, is_ordered, make_loader

DATA = TensorDataset(torch.rand(20, 3), torch.arange(20))


@pytest.mark.parametrize("data", [DATA, Subset(Subset(DATA, [*range(15, 0, -1)]), np.arange(3, 15))], ids=["whole", "subset"])
def test_tensors_are_read_a_batch_at_a_time(data):
    """To the same batches as sample by sample, which a collate function of the user's own needs."""
    order = torch.randperm(len(data))[:11].tolist()
    loaders = (DataLoader(data, collate_fn=collate) for collate in (lambda batch: [*default_collate(batch)], default_collate))
    plain, quick = (make_loader(loader, order, 4, seed=0) for loader in loaders)
    assert plain.batch_size == 4
    assert quick.batch_size is None
    assert len(plain) == len(quick) == 3
    for one, two in zip(plain, quick, strict=True):
        assert isinstance(two, list)
        for first, second in zip(one, two, strict=True):
            assert torch.equal(first, second)
            assert first.dtype == second.dtype


class Wrapper(DistributedSampler):
    """As Lightning wraps a sampler of the user's own under DDP."""


class Own(sources.BatchSampler):
    """A batch sampler of the user's own."""


@pytest.mark.parametrize(
    ("loader", "obstacle"),
    [
        (DataLoader(DATA, sampler=DistributedSampler(DATA, num_replicas=2, rank=0)), ""),
        (DataLoader(DATA, sampler=Wrapper(DATA, num_replicas=2, rank=0)), "drawn by a Wrapper"),
        (DataLoader(DATA, batch_size=None), "makes the batches itself"),
        (DataLoader(DATA, batch_sampler=Own(RandomSampler(DATA), 2, False)), "drawn by a Own"),
    ],
)
def test_data_that_can_be_read_by_another_loader(loader, obstacle):
    assert obstacle in explain_obstacle(loader)
    assert bool(explain_obstacle(loader)) is bool(obstacle)


def test_what_comes_in_order_under_ddp_too():
    assert is_ordered(sources.SequentialSampler(DATA))
    assert not is_ordered(RandomSampler(DATA))
    for shuffle in (False, True):
        assert is_ordered(DistributedSampler(DATA, num_replicas=2, rank=0, shuffle=shuffle)) is not shuffle


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_ordered_epoch_that_is_cut_short_has_no_samples_behind_the_cut(shuffle):
    judge = TrainerJudge.__new__(TrainerJudge)
    trainer = SimpleNamespace(train_dataloader=DataLoader(DATA, 5, shuffle=shuffle), num_training_batches=2, world_size=1)
    judge.trainer, judge.dataloader, judge.unpack, judge.options = trainer, None, None, Options()
    indices = judge.samples(None).indices
    assert len(indices) == 10
    assert (max(indices) >= 10) is shuffle
