"""Refusals before training."""

import copy

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader, WeightedRandomSampler

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback, over_time
from snn_recon_plugin.errors import DataError, NetworkError, OptionError

from .runs import (
    MARKS,
    SAMPLES,
    Module,
    Odd,
    Stream,
    assert_equal,
    callback,
    data_set,
    dictionaries,
    fit,
    loader,
    state,
    trainer_of,
)

pytestmark = MARKS


def test_callbacks_that_would_swap_each_others_parameters_are_refused():
    for other in (callback(net="net"), callback(average=0.5)):
        with pytest.raises(OptionError, match="two ReconstructionCallbacks"):
            trainer_of(callback(), other).fit(Module(), loader())
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")
    with pytest.raises(OptionError, match="EMAWeightAveraging beside refits"):
        trainer_of(callback(), averaging.EMAWeightAveraging()).fit(Module(), loader())


@pytest.mark.parametrize(
    ("train", "found"),
    [
        (lambda: DataLoader(Stream(), batch_size=50), "no indices"),
        (lambda: loader(shuffle=False, sampler=WeightedRandomSampler(torch.ones(SAMPLES), SAMPLES)), "WeightedRandomSampler"),
        (lambda: DataLoader(data_set(), batch_size=None), "makes the batches itself"),
        (lambda: [loader(), loader()], "comes from a"),
        (dictionaries, "batch 1 is"),
    ],
)
def test_data_that_is_refused_before_training(train, found):
    module = Odd() if train is dictionaries else Module()
    before = state(module)
    with pytest.raises(DataError, match=found):
        fit(callback(at_start=False), module, train=train())
    assert_equal(state(module), before)
    assert module.losses == []


def test_a_function_that_does_not_fit_the_batches_is_refused_before_training():
    module = Odd()
    with pytest.raises(DataError, match=r"unpack\(batch\) raised KeyError: 'inputs', for batch 1, a dict with the keys"):
        fit(callback(of=ConvexInitializer(unpack=lambda batch: (batch["inputs"], batch["y"]))), module, train=dictionaries())
    assert module.losses == []


def test_a_dataloader_that_repeats_samples_is_refused_before_training():
    module = Module()
    repeating = loader(shuffle=False, sampler=WeightedRandomSampler(torch.ones(SAMPLES), SAMPLES))
    with pytest.raises(DataError, match="draws samples with replacement"):
        fit(callback(dataloader=repeating), module)
    assert module.losses == []


def test_batches_that_can_be_read_once_are_refused_before_training():
    module = Module()
    with pytest.raises(DataError, match="which can be read once"):
        fit(callback(dataloader=iter(loader())), module)
    assert module.losses == []


class Outside(Module):
    """Its net takes one step, and the time loop is in the training step."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 48), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(48, 10), snn.Leaky(beta=0.9, init_hidden=True)
        )


def test_a_time_loop_that_nobody_named_is_missed_before_training():
    module = Outside()
    with pytest.raises(NetworkError, match="a single time step"):
        fit(callback(), module)
    assert module.losses == []


class Two(Module):
    def __init__(self):
        super().__init__()
        self.other = copy.deepcopy(self.net)


class Stranger(Module):
    """Its optimizer was made for another network."""

    def configure_optimizers(self):
        self.net = copy.deepcopy(self.net)
        return torch.optim.Adam(Module().parameters(), 1e-3)


class Linear(Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(64, 10)


@pytest.mark.parametrize(
    ("make", "options", "error", "found"),
    [
        (Two, {}, NetworkError, "several networks: net, other"),
        (Linear, {}, NetworkError, "without spiking neurons"),
        (Module, {"net": "nett"}, OptionError, "net='nett'"),
        (Stranger, {}, OptionError, "do not hold written parameters"),
    ],
)
def test_modules_that_are_refused_before_training(make, options, error, found):
    module = make()
    with pytest.raises(error, match=found):
        fit(callback(**options), module)
    assert module.losses == []


@pytest.mark.parametrize(
    "options",
    [
        {"at_start": 1},
        {"average": 0},
        {"average": 1.01},
        {"average": True},
        {"initializer": "reconstruct"},
        {"metric": "val_loss"},
        {"loss": "mae"},
        {"forward": 25},
    ],
)
def test_options(options):
    with pytest.raises(OptionError, match=f"{next(iter(options))}"):
        ReconstructionCallback(**options)


def test_loss_and_forward_are_given_in_one_place():
    with pytest.raises(OptionError, match="loss and forward beside an initializer"):
        ReconstructionCallback(ConvexInitializer(), loss="mse", forward=over_time(5))


@pytest.mark.parametrize("name", ["FSDPStrategy", "ModelParallelStrategy"])
@pytest.mark.parametrize("namespace", ["lightning.pytorch", "pytorch_lightning"])
def test_strategies_that_shard_parameters_are_refused_before_training_by_name(name, namespace):
    strategies = pytest.importorskip(f"{namespace}.strategies")
    trainer = trainer_of()
    trainer._accelerator_connector.strategy = getattr(strategies, name)()
    with pytest.raises(OptionError, match=f"the strategy {name}, which shards parameters") as caught:
        callback().setup(trainer, Module(), "fit")
    assert "strategy='ddp'" in caught.value.fix
