"""The callback in Lightning's own loop, on the digits."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback, ReconstructionError
from snn_recon_plugin.demo import build_network, load_digits_data
from snn_recon_plugin.errors import DataError, NetworkError, OptionError

# Lightning's advice on workers, validation loaders and log intervals.
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]

DATA = load_digits_data()
SAMPLES = 400


class Module(pl.LightningModule):
    """A user's module; counts and losses are what its tests look at."""

    def __init__(self, optimizer=lambda parameters: torch.optim.Adam(parameters, 1e-3), hidden=48):
        super().__init__()
        self.net = build_network(64, hidden, 10, 8)
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


def data_set(samples=SAMPLES):
    return TensorDataset(DATA.train_inputs[:samples], DATA.train_labels[:samples])


def loader(shuffle=True, **options):
    return DataLoader(data_set(), **{"batch_size": 50, "shuffle": shuffle, **options})


def validation():
    return DataLoader(TensorDataset(DATA.test_inputs[:200], DATA.test_labels[:200]), batch_size=100)


def trainer_of(*callbacks, epochs=2, **options):
    defaults = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=list(callbacks), **{**defaults, **options})


def fit(callback=None, module=None, *, train=None, val=None, ckpt_path=None, seed=0, **options):
    """A seeded run; gives the module and the trainer."""
    pl.seed_everything(seed, verbose=False)
    module = Module() if module is None else module
    trainer = trainer_of(*([] if callback is None else [callback]), **options)
    trainer.fit(module, loader() if train is None else train, val, ckpt_path=ckpt_path)
    return module, trainer


def callback(**options):
    return ReconstructionCallback(ConvexInitializer(hidden=options.pop("hidden", "keep")), **{"max_share": 2.0, **options})


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def loss_of(module, inputs, labels):
    with torch.no_grad():
        return float(F.cross_entropy(module.net(inputs).mean(0), labels))


def test_start_refits_and_end():
    made = callback()
    module, trainer = fit(made, epochs=3)
    assert len(made.reports) == 4  # the start and three epochs
    assert made.report is made.reports[-1]
    plain, _ = fit(epochs=3)
    assert module.losses[0] < 0.5 * plain.losses[0]
    held = DATA.test_inputs, DATA.test_labels
    assert loss_of(module, *held) < loss_of(plain, *held)
    assert trainer.callback_metrics["recon/kept"] in (0.0, 1.0)


def test_evaluate_leaves_training_as_it_is():
    """Not a bit of the training differs from one without the callback; validation and the end have the refitted readout."""
    made = callback(at_start=False, keep="always")
    module, _ = fit(made, val=validation())
    plain, _ = fit(val=validation())
    assert module.losses == plain.losses
    assert len(made.reports) == 2
    assert not torch.equal(module.net.fc2.weight, plain.net.fc2.weight)
    assert torch.equal(module.net.fc1.weight, plain.net.fc1.weight)
    assert torch.equal(module.seen[-1], module.net.fc2.weight)
    assert not torch.equal(module.seen[-1], plain.seen[-1])


def test_a_validation_within_an_epoch_sees_the_training_as_it_is():
    made = callback(at_start=False, keep="always", every_n_epochs=1)
    module, _ = fit(made, val=validation(), val_check_interval=4, num_sanity_val_steps=0)
    plain, _ = fit(val=validation(), val_check_interval=4, num_sanity_val_steps=0)
    same = [torch.equal(one, two) for one, two in zip(module.seen, plain.seen, strict=True)]
    assert same == [True, False, True, False]


def test_overwrite_trains_on_from_what_was_written():
    made = callback(at_start=False, swap="overwrite", keep="always", protect=3)
    module, _ = fit(made)
    plain, _ = fit()
    steps = SAMPLES // 50
    assert module.losses[:steps] == plain.losses[:steps]
    assert module.losses[steps] < plain.losses[steps]


@pytest.mark.parametrize("swap", ["evaluate", "overwrite"])
def test_what_is_not_better_is_not_kept(monkeypatch, swap):
    """Judged by the loss on held-out samples; here it is said to be higher after."""
    plain_initialize = ConvexInitializer.initialize

    def worse(self, net, batches):
        report = plain_initialize(self, net, batches)
        object.__setattr__(report, "loss_after", report.loss_before + 1e-9)
        return report

    monkeypatch.setattr(ConvexInitializer, "initialize", worse)
    made = callback(swap=swap)
    module, trainer = fit(made)
    plain, _ = fit()
    assert module.losses == plain.losses
    assert_equal(state(module), state(plain))
    assert trainer.callback_metrics["recon/kept"] == 0


def test_optimizer_memory_of_written_parameters_is_cleared():
    made = callback(at_start=False, swap="overwrite", keep="always")
    module, trainer = fit(made, epochs=1)
    memory = trainer.optimizers[0].state
    assert set(made.report.parameters) == set(module.net.fc2.parameters())
    assert not set(memory) & set(module.net.fc2.parameters())
    assert set(memory) == set(module.net.fc1.parameters())
    assert all(parameter.grad is None for parameter in module.net.fc2.parameters())


@pytest.mark.parametrize("swap", ["evaluate", "overwrite"])
@pytest.mark.parametrize("extra", [{}, {"accumulate_grad_batches": 3}])
def test_resumed_equals_uninterrupted(tmp_path, swap, extra):
    """A run of three epochs, and one that is stopped after the second and goes on from its checkpoint, bit for bit."""

    def options():
        # the shuffle's generator is not part of a checkpoint
        return {"train": loader(shuffle=False), "val": validation(), **extra}

    def saved():
        return pl.callbacks.ModelCheckpoint(tmp_path, save_last=True, save_top_k=-1, filename="{epoch}")

    def run(epochs, ckpt_path=None):
        made, module = callback(swap=swap, protect=20), Module()
        pl.seed_everything(0, verbose=False)
        torch.manual_seed(0)
        module = Module()
        trainer = trainer_of(made, saved(), epochs=3, enable_checkpointing=True, **extra)
        trainer.fit_loop.max_epochs = 3
        if epochs == 2:
            trainer.callbacks.insert(0, Stop(2))
        trainer.fit(module, options()["train"], options()["val"], ckpt_path=ckpt_path)
        return module, made

    whole, made = run(3)
    again, resumed = run(3, tmp_path / "epoch=1.ckpt")
    assert_equal(state(again), state(whole))
    assert again.losses == whole.losses[-len(again.losses) :]
    assert len(resumed.reports) == len(made.reports) - 3  # the start and two refits were before
    checkpoint = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    assert any(key.startswith("ReconstructionCallback") for key in checkpoint["callbacks"])


class Stop(pl.Callback):
    """Ends a run after some epochs."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def test_a_checkpoint_has_the_refitted_readout(tmp_path):
    made = callback(at_start=False, keep="always")
    saved = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    pl.seed_everything(0, verbose=False)
    module = Module()
    trainer_of(made, saved, epochs=1, enable_checkpointing=True).fit(module, loader(), validation())
    weights = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(weights["net.fc2.weight"], module.net.fc2.weight)


def test_early_stopping_gets_its_last_refit():
    made = callback(at_start=False, every_n_epochs=0, keep="always")
    module, trainer = fit(made, epochs=9, max_steps=11)
    assert len(made.reports) == 1
    assert trainer.global_step == 11
    plain, _ = fit(epochs=9, max_steps=11)
    assert torch.equal(module.net.fc1.weight, plain.net.fc1.weight)
    assert not torch.equal(module.net.fc2.weight, plain.net.fc2.weight)


def test_the_same_seed_gives_the_same_bits():
    runs = [fit(callback(swap="overwrite"))[0] for _ in range(2)]
    assert runs[0].losses == runs[1].losses
    assert_equal(state(runs[0]), state(runs[1]))


def test_metrics_reach_the_logger(tmp_path):
    logger = CSVLogger(tmp_path)
    _, trainer = fit(callback(), logger=logger)
    text = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    names = (
        "objective",
        "relative_gap",
        "heldout_before",
        "heldout_after",
        "kept",
        "active_neurons",
        "samples",
        "seconds",
        "share",
    )
    for name in names:
        assert f"recon/{name}" in text
        assert f"recon/{name}" in trainer.callback_metrics
    assert 0 < float(trainer.callback_metrics["recon/share"]) < 1


def test_a_refit_that_fails_does_not_end_the_training(monkeypatch):
    def fail(self, net, batches):
        raise DataError("nothing", "something", "give it")

    monkeypatch.setattr(ConvexInitializer, "initialize", fail)
    with pytest.warns(UserWarning, match="training goes on"):
        module, _ = fit(callback(at_start=False))
    plain, _ = fit()
    assert_equal(state(module), state(plain))
    with pytest.raises(DataError):
        fit(callback())


def test_nothing_happens_in_a_dev_run_or_a_validation():
    made = callback()
    fit(made, fast_dev_run=True, val=validation())
    module = Module()
    before = state(module)
    trainer_of(made).validate(module, validation(), verbose=False)
    assert made.report is None
    assert_equal(state(module), before)


def test_two_callbacks_in_one_trainer(tmp_path):
    one, two = callback(every_n_epochs=1, at_start=False), callback(every_n_epochs=2, at_start=False)
    pl.seed_everything(0, verbose=False)
    module = Module()
    saved = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}")
    trainer_of(one, two, saved, epochs=2, enable_checkpointing=True).fit(module, loader(), validation())
    assert (len(one.reports), len(two.reports)) == (2, 1)


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


class DataModule(pl.LightningDataModule):
    def train_dataloader(self):
        return loader()


@pytest.mark.parametrize("name", ["manual", "forward", "named", "data module", "accumulated", "bf16", "clipped", "compiled"])
def test_the_ways_to_train(name):
    made = callback(net="net" if name == "named" else None)
    module = {"manual": Manual, "forward": Forwarding}.get(name, Module)()
    options = {
        "accumulated": {"accumulate_grad_batches": 4},
        "bf16": {"precision": "bf16-mixed"},
        "clipped": {"gradient_clip_val": 1.0},
    }.get(name, {})
    if name == "compiled":
        module.net = torch.compile(module.net, backend="eager")
    if name == "data module":
        trainer_of(made).fit(module, datamodule=DataModule())
    else:
        fit(made, module, **options)
    assert len(made.reports) == 3
    accuracy = (module.net(DATA.test_inputs).mean(0).argmax(1) == DATA.test_labels).float().mean()
    assert accuracy > 0.85


class Stream(IterableDataset):
    def __iter__(self):
        return iter(data_set())


class Odd(Module):
    """Batches that are dictionaries."""

    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["y"]), batch_idx)


def dictionaries():
    return DataLoader([{"x": x, "y": y} for x, y in data_set()], batch_size=50)


def test_other_data_by_arguments():
    made = callback(dataloader=loader(shuffle=False))
    fit(made, train=DataLoader(Stream(), batch_size=50), limit_train_batches=4)
    assert made.reports[0].samples == SAMPLES
    made = callback(unpack=lambda batch: (batch["x"], batch["y"]))
    fit(made, Odd(), train=dictionaries())
    assert len(made.reports) == 3


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
        (Stranger, {}, OptionError, "do not hold the readout"),
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
        {"keep": "sometimes"},
        {"swap": "never"},
        {"every_n_epochs": -1},
        {"every_n_epochs": True},
        {"protect": 1.5},
        {"hidden_rate": 0},
        {"max_share": 0},
        {"max_share": True},
        {"initializer": "reconstruct"},
    ],
)
def test_options(options):
    with pytest.raises(OptionError, match=f"{next(iter(options))}"):
        ReconstructionCallback(**options)


def test_several_processes_are_refused():
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    with pytest.raises(ReconstructionError, match="2 processes"):
        callback().setup(trainer, Module(), "fit")
