"""Refusals before training."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, WeightedRandomSampler

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback, over_time
from snn_recon_plugin.errors import DataError, NetworkError, OptionError

from ..nets import sequential_net
from .runs import MARKS, READ, Module, Odd, Stream, assert_equal, callback, data_set, dictionaries, fit, loader, state, trainer_of

pytestmark = MARKS


def repeating():
    return loader(shuffle=False, sampler=WeightedRandomSampler(torch.ones(400), 400))


def two_networks():
    module = Module()
    module.other = copy.deepcopy(module.net)
    return module


def strange_optimizer():
    """A module whose optimizer was made for another network."""
    return Module(lambda parameters: torch.optim.Adam(Module().parameters(), 1e-3))


@pytest.mark.parametrize(
    ("make", "options", "train", "error", "found"),
    [
        (Module, {}, DataLoader(Stream(), batch_size=50), DataError, "no indices"),
        (Module, {}, repeating(), DataError, "WeightedRandomSampler"),
        (Module, {}, DataLoader(data_set(), batch_size=None), DataError, "makes the batches itself"),
        (Module, {}, [loader(), loader()], DataError, "comes from a"),
        (
            Odd,
            {"of": ConvexInitializer(unpack=lambda batch: (batch["inputs"], batch["y"]))},
            dictionaries(),
            DataError,
            r"unpack\(batch\) raised KeyError: 'inputs', for batch 1, a dict with the keys",
        ),
        (Module, {"of": READ}, dictionaries(), NetworkError, "the training step raised .*, for a batch a dict with the keys"),
        (Module, {"dataloader": iter(loader())}, None, DataError, "which can be read once"),
        pytest.param(
            lambda: Module(net=sequential_net()),
            {},
            None,
            NetworkError,
            "a single time step",
            marks=pytest.mark.filterwarnings("ignore:training_step was not read"),
        ),
        (lambda: Module(net=nn.Linear(64, 10)), {}, None, NetworkError, "without spiking neurons"),
        (two_networks, {}, None, NetworkError, "several networks: net, other"),
        (Module, {"net": "nett"}, None, OptionError, "net='nett'"),
        (strange_optimizer, {}, None, OptionError, "do not hold written parameters"),
    ],
)
def test_runs_that_are_refused_before_training(make, options, train, error, found):
    module = make()
    before = state(module)
    with pytest.raises(error, match=found):
        fit(callback(**options), module, train=train)
    assert_equal(state(module), before)
    assert module.losses == []


def test_callbacks_that_would_swap_each_others_parameters_are_refused():
    for other in (callback(net="net"), callback(best_weights=True)):
        with pytest.raises(OptionError, match="two ReconstructionCallbacks"):
            fit(callback(), beside=[other])


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"at_start": 1}, "at_start"),
        ({"average": 0.9}, "(?s)an option average.*To fix: leave it out: Lightning.*best_weights=False"),
        ({"best_weights": 1}, "best_weights"),
        ({"hard_samples": True}, "(?s)an option hard_samples.*To fix: leave it out$"),
        ({"damping": 0.0}, "damping"),
        ({"damping": True}, "damping"),
        ({"damping": "half"}, "damping"),
        ({"fast": "yes"}, "fast="),
        ({"initializer": "reconstruct"}, "initializer"),
        ({"metric": "val_loss"}, "metric"),
        ({"loss": "mae"}, "loss"),
        ({"forward": 25}, "forward"),
        ({"initializer": ConvexInitializer(), "loss": "mse", "forward": over_time(5)}, "forward and loss beside an initializer"),
    ],
)
def test_options(options, found):
    with pytest.raises(OptionError, match=found):
        ReconstructionCallback(**options)


@pytest.mark.parametrize(
    ("namespace", "name"), [("lightning.pytorch", "FSDPStrategy"), ("pytorch_lightning", "ModelParallelStrategy")]
)
def test_strategies_that_shard_parameters_are_refused_before_training_by_name(namespace, name):
    strategies = pytest.importorskip(f"{namespace}.strategies")
    trainer = trainer_of()
    trainer._accelerator_connector.strategy = getattr(strategies, name)()
    with pytest.raises(OptionError, match=f"the strategy {name}, which shards parameters") as caught:
        callback().setup(trainer, Module(), "fit")
    assert "strategy='ddp'" in caught.value.fix
