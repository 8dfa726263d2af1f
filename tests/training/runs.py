"""Runs of a small module in Lightning's own loop, on the digits, for the tests of the callback."""

from collections import Counter
from itertools import count

import lightning.pytorch as pl
import pytest
import snntorch as snn
import torch
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


class Module(pl.LightningModule):
    """A user's module; counts and losses are what its tests look at."""

    def __init__(self, optimizer=lambda parameters: torch.optim.Adam(parameters, 1e-3), hidden=48):
        super().__init__()
        self.net = build_network(64, hidden, 10, STEPS)
        self.make, self.losses, self.seen = optimizer, [], []

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        loss = F.cross_entropy(self.net(inputs).mean(0), labels)
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch, batch_idx):
        inputs, labels = batch
        self.log("val", F.cross_entropy(self.net(inputs).mean(0), labels))

    def on_validation_epoch_end(self):
        self.seen.append(self.net.fc2.weight.detach().clone())

    def configure_optimizers(self):
        return self.make(self.parameters())


class Counting(torch.nn.Module):
    """Output neurons that spike: (T, batch, 10), of which the counts decide."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(64, 48), torch.nn.Linear(48, 10)
        self.lif1, self.lif2 = snn.Leaky(beta=0.9), snn.Leaky(beta=0.9)

    def forward(self, x):
        hidden, output, spikes = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for _ in range(STEPS):
            spiked, hidden = self.lif1(self.fc1(x), hidden)
            spiked, output = self.lif2(self.fc2(spiked), output)
            spikes.append(spiked)
        return torch.stack(spikes)


class Normalised(torch.nn.Module):
    """A batch norm before the net."""

    def __init__(self):
        super().__init__()
        self.norm, self.net = torch.nn.BatchNorm1d(64), build_network(64, 48, 10, STEPS)

    @property
    def fc2(self):
        return self.net.fc2

    def forward(self, x):
        return self.net(self.norm(x))


def data_set(samples=SAMPLES):
    return TensorDataset(DATA.train_inputs[:samples], DATA.train_labels[:samples])


def loader(shuffle=True, **options):
    return DataLoader(data_set(), **{"batch_size": 50, "shuffle": shuffle, **options})


def validation():
    return DataLoader(TensorDataset(DATA.test_inputs[:200], DATA.test_labels[:200]), batch_size=100)


def trainer_of(*callbacks, epochs=2, **options):
    defaults = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=list(callbacks), **{**defaults, **options})


def fit(callback=None, module=None, *, train=None, val=None, ckpt_path=None, seed=0, beside=(), **options):
    """A seeded run, with other callbacks ``beside``; gives the module and the trainer."""
    pl.seed_everything(seed, verbose=False)
    module = (module or Module)() if not isinstance(module, pl.LightningModule) else module
    trainer = trainer_of(*([] if callback is None else [callback]), *beside, **options)
    trainer.fit(module, loader() if train is None else train, val, ckpt_path=ckpt_path)
    return module, trainer


def trained(tmp_path, made, *, ckpt_path=None, epochs=3, saved=None, kind=Module, **options):
    """A run that saves a checkpoint every epoch, in an order of samples that a resumed run repeats."""
    pl.seed_everything(0, verbose=False)
    module = kind()
    saved = saved or pl.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    trainer = trainer_of(made, saved, epochs=epochs, enable_checkpointing=True, **options)
    trainer.fit(module, loader(shuffle=False), validation(), ckpt_path=ckpt_path)
    return module, trainer


def callback(**options):
    initializer = options.pop("of", None) or ConvexInitializer(hidden=options.pop("hidden", "keep"))
    return ReconstructionCallback(initializer, **{"average": None, **options})


def falling():
    """Return a metric that falls at every call: averages and refits are kept."""
    calls = count()
    return lambda module: -float(next(calls))


def averages():
    """Return a metric by which averages are better than what they are of, refits are not, and later weights are."""
    calls = Counter()

    def metric(module):
        step = module.trainer.global_step
        calls[step] += 1
        return -step - 0.5 * (calls[step] == 2)  # the trained weights come first, then the average

    return metric


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


class Stream(IterableDataset):
    def __iter__(self):
        return iter(data_set())


class Odd(Module):
    """Batches that are dictionaries."""

    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["y"]), batch_idx)


def dictionaries():
    return DataLoader([{"x": x, "y": y} for x, y in data_set()], batch_size=50)


def weights(decay, count):
    """Return the weights of ``count`` points in an average, by its definition: 4 / (k + 3) of the k-th, or 1 - decay."""
    shares = [1.0]
    for number in range(2, count + 1):
        taken = max(1 - decay, 4 / (number + 3))
        shares = [share * (1 - taken) for share in shares] + [taken]
    return shares
