"""Runs of a small module in Lightning's own loop, on the digits, for the tests of the callback."""

from collections import OrderedDict
from functools import cache
from itertools import count

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback
from snn_recon_plugin.demo import build_network, load_digits_data

# Lightning's advice on workers, validation loaders and log intervals.
MARKS = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]

DATA = load_digits_data()
SAMPLES, STEPS = 400, 4
TEST = DATA.test_inputs[:200], DATA.test_labels[:200]


class Body:
    """A user's module, of either namespace of Lightning.

    It keeps its weights before each batch, its losses, and the readout at each validation.
    """

    def __init__(self, optimizer=lambda parameters: torch.optim.Adam(parameters, 1e-3), net=None):
        super().__init__()
        self.net = build_network(64, 48, 10, STEPS) if net is None else net
        self.make, self.weights, self.losses, self.seen = optimizer, [], [], []

    def on_train_batch_start(self, batch, batch_idx):
        self.weights.append(state(self))

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        loss = F.cross_entropy(self.net(inputs).mean(0), labels)
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch, batch_idx):
        inputs, labels = batch
        self.log("val", F.cross_entropy(self.net(inputs).mean(0), labels))

    def on_validation_epoch_end(self):
        self.seen.append(list(self.net.parameters())[-2].detach().clone())  # the readout's weight

    def configure_optimizers(self):
        return self.make(self.parameters())


class Module(Body, pl.LightningModule):
    pass


def normalised():
    return nn.Sequential(OrderedDict(norm=nn.BatchNorm1d(64), net=build_network(64, 48, 10, STEPS)))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(data_set())


class Odd(Module):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["y"]), batch_idx)

    def validation_step(self, batch, batch_idx):
        return super().validation_step((batch["x"], batch["y"]) if isinstance(batch, dict) else batch, batch_idx)


def data_set(samples=SAMPLES):
    return TensorDataset(DATA.train_inputs[:samples], DATA.train_labels[:samples])


def loader(shuffle=True, **options):
    return DataLoader(data_set(), **{"batch_size": 50, "shuffle": shuffle, **options})


@cache
def validation():
    return DataLoader(TensorDataset(*TEST), batch_size=100)


def dictionaries():
    return DataLoader([{"x": x, "y": y} for x, y in data_set()], batch_size=50)


READ = ConvexInitializer(hidden="keep", strength=0.01)  # what it lacks is read from the training step


def callback(**options):
    """A callback with quick solves, of one strength.  Its loss is given: passes that read the training step take longer."""
    usual = {"hidden": options.pop("hidden", "keep"), "strength": 0.01, "loss": "cross_entropy"}
    initializer = options.pop("of", None) or ConvexInitializer(**usual)
    return ReconstructionCallback(initializer, **{"at_start": True, "best_weights": False, **options})


def trainer_of(*callbacks, epochs=2, of=pl, **options):
    defaults = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return of.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=list(callbacks), **{**defaults, **options})


def fit(callback=None, module=None, *, train=None, val=None, ckpt_path=None, beside=(), **options):
    """A seeded run, with other callbacks ``beside``; gives the module and the trainer."""
    pl.seed_everything(0, verbose=False)
    module = module if isinstance(module, nn.Module) else (module or Module)()
    trainer = trainer_of(*([] if callback is None else [callback]), *beside, **options)
    trainer.fit(module, loader() if train is None else train, val, ckpt_path=ckpt_path)
    return module, trainer


@cache
def plain(module=None, **options):
    """The module after a run without the callback, to be read only."""
    return fit(None, module, **options)[0]


def trained(folder, made, *, epochs=3, saved=None, kind=Module, beside=(), **options):
    """A run that saves a checkpoint every epoch, in an order of samples that a resumed run repeats."""
    saved = saved or pl.callbacks.ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")
    options = {"train": loader(shuffle=False), "val": validation(), "enable_checkpointing": True, **options}
    return fit(made, kind, beside=[*beside, saved], epochs=epochs, **options)


def falling():
    """Return a metric that falls at every call: refits are kept."""
    calls = count()
    return lambda module: -float(next(calls))


def rising():
    """Return a metric that rises at every call: the first weights stay the best."""
    calls = count()
    return lambda module: float(next(calls))


def saying(*numbers):
    """Return a metric that gives these numbers, one a call, after the call that tries it before training."""
    said = iter([9.0, *numbers])
    return lambda module: next(said)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def loss_of(module, inputs, labels, scale=1.0):
    with torch.no_grad():
        return float(F.cross_entropy(scale * module.net(inputs).mean(0), labels))
