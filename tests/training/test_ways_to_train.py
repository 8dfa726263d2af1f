"""The ways to train with Lightning that the callback goes along with."""

import lightning.pytorch as pl
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback
from snn_recon_plugin.demo import build_network

from .runs import DATA, MARKS, SAMPLES, STEPS, Module, Odd, Stream, callback, data_set, dictionaries, fit, loader, trainer_of

pytestmark = MARKS


class Manual(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net.fc1.parameters(), 0.01), torch.optim.Adam(self.net.fc2.parameters(), 1e-3)]


class Forwarding(Module):
    """The module itself is the network, through its forward."""

    def forward(self, inputs):
        return self.net(inputs)


class Late(Module):
    """Its net is built when the run begins."""

    def __init__(self):
        super().__init__()
        del self.net

    def configure_model(self):
        if not hasattr(self, "net"):
            self.net = build_network(64, 48, 10, STEPS)


class FixedBatch(Module):
    """Takes batches of 50 and no others."""

    def forward(self, inputs):
        return self.net(inputs.view(50, 64))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]).mean(0), batch[1])


class DataModule(pl.LightningDataModule):
    def train_dataloader(self):
        return loader()


WAYS = "manual forward late fixed named data-module accumulated bf16 clipped"


@pytest.mark.parametrize("name", [*WAYS.split(), pytest.param("compiled", marks=pytest.mark.slow)])
def test_the_ways_to_train(name):
    torch.manual_seed(0)
    made = callback(net="net" if name == "named" else None)
    module = {"manual": Manual, "forward": Forwarding, "late": Late, "fixed": FixedBatch}.get(name, Module)()
    options = {
        "accumulated": {"accumulate_grad_batches": 4},
        "bf16": {"precision": "bf16-mixed"},
        "clipped": {"gradient_clip_val": 1.0},
    }.get(name, {})
    if name == "compiled":
        module.net = torch.compile(module.net, backend="eager")
    if name == "data-module":
        trainer_of(made).fit(module, datamodule=DataModule())
    else:
        fit(made, module, **options)
    assert len(made.reports) == 3
    accuracy = (module.net(DATA.test_inputs).mean(0).argmax(1) == DATA.test_labels).float().mean()
    assert accuracy > 0.7  # without the callback: 0.3


class Pair(Module):
    """Two networks of different widths, and an optimizer for each."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.a, self.b = self.net, build_network(64, 24, 10, STEPS)
        del self.net

    def training_step(self, batch, batch_idx):
        for optimizer, net in zip(self.optimizers(), (self.a, self.b), strict=True):
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(net(batch[0]).mean(0), batch[1]))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(net.parameters(), 1e-3) for net in (self.a, self.b)]


def test_a_callback_for_each_of_two_networks():
    """Their metrics have names of their own, and 32 steps of two optimizers are two epochs of eight batches."""
    made = [callback(net=name) for name in ("a", "b")]
    module = Pair()
    trainer = trainer_of(*made, epochs=-1, max_steps=32)
    trainer.fit(module, loader())
    assert trainer.current_epoch == 2
    assert [len(one.reports) for one in made] == [3, 3]
    for one in made:
        assert trainer.callback_metrics[f"recon/{one.net}/active_neurons"] == one.report.active_neurons
    assert "recon/active_neurons" not in trainer.callback_metrics


def test_other_data_by_arguments():
    made = callback(dataloader=loader(shuffle=False))
    fit(made, train=DataLoader(Stream(), batch_size=50), limit_train_batches=4)
    assert [report.samples for report in made.reports] == [SAMPLES] * 3
    made = callback(dataloader=list(loader(shuffle=False)))
    fit(made)
    assert [report.samples for report in made.reports] == [SAMPLES] * 3


def unpacked(batch):
    return batch["x"], batch["y"]


def test_dictionaries_by_the_initializers_unpack():
    made = callback(of=ConvexInitializer(hidden="keep", unpack=unpacked))
    fit(made, Odd(), train=dictionaries())
    assert len(made.reports) == 3


def test_batches_of_a_batch_sampler_that_was_given():
    whole, given = (
        DataLoader(data_set(), 50, shuffle=True),
        DataLoader(data_set(), batch_sampler=BatchSampler(RandomSampler(data_set()), 50, drop_last=False)),
    )
    reports = []
    for data in (whole, given):
        made = callback()
        fit(made, train=data)
        reports.append([report.samples for report in made.reports])
    assert reports[0] == reports[1] == [SAMPLES] * 3


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_that_is_cut_short(shuffle):
    """In order, what comes after the cut is not the training's, and no solve sees it."""
    inputs = DATA.train_inputs[:SAMPLES].clone()
    if not shuffle:
        inputs[200:] = torch.nan
    made = callback()
    data = DataLoader(TensorDataset(inputs, DATA.train_labels[:SAMPLES]), batch_size=50, shuffle=shuffle)
    fit(made, train=data, limit_train_batches=4)
    assert [report.samples for report in made.reports] == [200] * 3


def test_loss_and_forward_without_an_initializer():
    calls = []

    def forward(net, inputs):
        calls.append(len(inputs))
        return net(inputs)

    made = ReconstructionCallback(loss="bce", forward=forward, average=None)
    fit(made, epochs=1)
    assert {report.loss for report in made.reports} == {"logistic"}
    assert calls
