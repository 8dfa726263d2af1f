"""The callback in Lightning's own loop, on the digits."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback
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
    module = (module or Module)() if not isinstance(module, pl.LightningModule) else module
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


@pytest.mark.parametrize("better", [False, True])
def test_a_judge_of_the_users_own_decides(better):
    """It says the opposite of the held-out loss, or the same; the module comes to it in evaluation mode and leaves as it came."""
    seen = []

    def judge(module):
        assert not module.training
        seen.append(module.net.fc2.weight.detach().clone())
        torch.rand(3)
        return torch.tensor(-float(len(seen)) if better else float(len(seen)))

    made = callback(at_start=False, every_n_epochs=2, judge=judge)
    module, trainer = fit(made)
    plain, _ = fit()
    assert module.losses == plain.losses
    assert len(made.reports) == 1
    assert made.report.loss_after < made.report.loss_before
    assert trainer.callback_metrics["recon/kept"] == float(better)
    assert [abs(float(trainer.callback_metrics[f"recon/judged_{when}"])) for when in ("before", "after")] == [2.0, 3.0]
    assert torch.equal(seen[1], plain.net.fc2.weight)
    assert torch.equal(module.net.fc2.weight, seen[2] if better else seen[1])


@pytest.mark.parametrize("swap", ["evaluate", "overwrite"])
@pytest.mark.parametrize("at_start", [False, True])
def test_an_interrupt_right_after_a_write_leaves_the_trained_net(monkeypatch, swap, at_start):
    """Whatever comes between a write and what belongs to it."""

    def interrupted(*arguments):
        raise SystemError("now")

    made, module = callback(swap=swap, at_start=at_start, keep="always", hidden="rescale"), Module()
    twin = copy.deepcopy(module)
    monkeypatch.setattr(made, "_note", interrupted)
    with pytest.raises(SystemError, match="now"):
        fit(made, module)
    if not at_start:
        fit(None, twin, epochs=1)
    assert_equal(state(module), state(twin))


def test_optimizer_memory_of_written_parameters_is_cleared():
    made = callback(at_start=False, swap="overwrite", keep="always")
    module, trainer = fit(made, epochs=1)
    memory = trainer.optimizers[0].state
    assert set(made.report.parameters) == set(module.net.fc2.parameters())
    assert not set(memory) & set(module.net.fc2.parameters())
    assert set(memory) == set(module.net.fc1.parameters())
    assert all(parameter.grad is None for parameter in module.net.fc2.parameters())


def trained(tmp_path, made, *, ckpt_path=None, epochs=3, saved=None, **options):
    """A run that saves a checkpoint every epoch, in an order of samples that a resumed run repeats."""
    pl.seed_everything(0, verbose=False)
    module = Module()
    saved = saved or pl.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    trainer = trainer_of(made, saved, epochs=epochs, enable_checkpointing=True, **options)
    trainer.fit(module, loader(shuffle=False), validation(), ckpt_path=ckpt_path)
    return module, trainer


@pytest.mark.parametrize("swap", ["evaluate", "overwrite"])
@pytest.mark.parametrize("extra", [{}, {"accumulate_grad_batches": 3}])
def test_resumed_equals_uninterrupted(tmp_path, swap, extra):
    """A run of three epochs, and one that goes on from the checkpoint after its second, bit for bit."""
    made, resumed = (callback(swap=swap, protect=20) for _ in range(2))
    whole, _ = trained(tmp_path, made, **extra)
    again, _ = trained(tmp_path, resumed, ckpt_path=tmp_path / "epoch=1.ckpt", **extra)
    assert_equal(state(again), state(whole))
    assert again.losses == whole.losses[-len(again.losses) :]
    assert len(resumed.reports) == len(made.reports) - 3  # the start and two refits were before
    checkpoint = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    assert any(key.startswith("ReconstructionCallback") for key in checkpoint["callbacks"])


def test_a_finished_run_resumed_keeps_its_refit(tmp_path):
    saved = pl.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}", save_on_train_epoch_end=False)
    whole, _ = trained(tmp_path, callback(keep="always"), saved=saved)
    again, _ = trained(tmp_path, callback(keep="always"), ckpt_path=tmp_path / "epoch=2.ckpt")
    assert again.losses == []
    assert_equal(state(again), state(whole))


def test_a_callback_can_be_used_for_several_runs():
    made = callback(swap="overwrite")
    first, second = fit(made)[0], fit(made)[0]
    assert first.losses == second.losses
    assert len(made.reports) == 3
    assert_equal(state(first), state(second))


@pytest.mark.parametrize("only", [False, True])
def test_a_checkpoint_has_the_refitted_readout(tmp_path, only):
    saved = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_weights_only=only)
    module, _ = trained(tmp_path, callback(at_start=False, keep="always"), epochs=1, saved=saved)
    checkpoint = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    assert torch.equal(checkpoint["state_dict"]["net.fc2.weight"], module.net.fc2.weight)


def test_the_refit_at_max_steps_is_validated_and_saved(tmp_path):
    saved = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=11, save_top_k=-1, filename="last")
    made = callback(at_start=False, every_n_epochs=0, keep="always")
    module, trainer = trained(tmp_path, made, epochs=-1, max_steps=11, saved=saved)
    assert len(made.reports) == 1
    weights = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(weights["net.fc2.weight"], module.net.fc2.weight)
    assert trainer.global_step == 11


def test_refits_come_where_they_are_validated():
    made = callback(at_start=False)
    fit(made, val=validation(), epochs=5, check_val_every_n_epoch=2)
    assert [report.samples for report in made.reports] == [SAMPLES] * 3  # after epochs 2 and 4, and the last


class Stopped(Module):
    """Ends its training by itself."""

    def on_train_epoch_end(self):
        self.trainer.should_stop = self.trainer.current_epoch == 1


def test_early_stopping_gets_its_last_refit():
    made = callback(at_start=False, every_n_epochs=0, keep="always")
    module, trainer = fit(made, Stopped, epochs=9)
    assert trainer.current_epoch == 2
    assert len(made.reports) == 1
    plain, _ = fit(None, Stopped, epochs=9)
    assert module.losses == plain.losses
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


def test_callbacks_that_would_swap_each_others_parameters_are_refused():
    with pytest.raises(OptionError, match="two ReconstructionCallbacks"):
        trainer_of(callback(), callback(net="net")).fit(Module(), loader())
    with pytest.raises(RuntimeError, match="more than one stateful callback"):  # Lightning's own
        trainer_of(callback(), callback(swap="overwrite"))
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")
    with pytest.raises(OptionError, match="EMAWeightAveraging beside refits"):
        trainer_of(callback(), averaging.EMAWeightAveraging()).fit(Module(), loader())


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
            self.net = build_network(64, 48, 10, 8)


class FixedBatch(Module):
    """Takes batches of 50 and no others."""

    def forward(self, inputs):
        return self.net(inputs.view(50, 64))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]).mean(0), batch[1])


class DataModule(pl.LightningDataModule):
    def train_dataloader(self):
        return loader()


WAYS = "manual forward late fixed named data-module accumulated bf16 clipped compiled"


@pytest.mark.parametrize("name", WAYS.split())
def test_the_ways_to_train(name):
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
    assert [report.samples for report in made.reports] == [SAMPLES] * 3
    made = callback(dataloader=list(loader(shuffle=False)))
    fit(made)
    assert [report.samples for report in made.reports] == [SAMPLES] * 3
    made = callback(unpack=lambda batch: (batch["x"], batch["y"]))
    fit(made, Odd(), train=dictionaries())
    assert len(made.reports) == 3


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
        {"judge": 0.5},
    ],
)
def test_options(options):
    with pytest.raises(OptionError, match=f"{next(iter(options))}"):
        ReconstructionCallback(**options)


def test_a_judge_that_gives_no_number_is_refused_before_training():
    module = Module()
    with pytest.raises(OptionError, match="judge gave a NoneType"):
        fit(callback(judge=lambda module: None), module)
    assert not module.losses


def test_sharded_parameters_are_refused():
    class FSDPStrategy:
        pass

    trainer = trainer_of()
    trainer.strategy_name, trainer._accelerator_connector.strategy = "fsdp", FSDPStrategy()
    with pytest.raises(OptionError, match="which shards parameters"):
        callback().setup(trainer, Module(), "fit")


def in_processes(devices, folder, *words):
    """What became of a run in so many processes, with gloo, in an interpreter of its own; see the script."""
    script = Path(__file__).parent / "training" / "two_processes.py"
    command = [sys.executable, "-W", "ignore", str(script), str(devices), str(folder), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, timeout=240, capture_output=True)
    return torch.load(folder / f"{devices}.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_write_what_one_does(tmp_path):
    one, two = (in_processes(devices, tmp_path) for devices in (1, 2))
    assert two["ranks"] == 2
    assert two["apart"] == 0.0  # no bit differs between the ranks, after two epochs with refits
    assert two["solves"] == one["solves"] == 3
    for name in ("net.fc1.weight", "net.fc2.weight", "net.fc2.bias"):
        torch.testing.assert_close(two["start"][name], one["start"][name], rtol=0, atol=1e-6)
    resumed = in_processes(2, tmp_path, "resumed")
    assert resumed["solves"] == 1  # the start and a refit were before
    assert_equal(resumed["end"], two["end"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_solve_one_program_together(tmp_path):
    """Each with half of the samples; the solution is that of one process with all."""
    one, two = (in_processes(devices, tmp_path, "still") for devices in (1, 2))
    assert two["apart"] == 0.0
    assert two["solves"] == one["solves"] == 1
    primal, gap, before, samples, held = two["last"]
    assert (samples, held) == (400, 80)
    assert gap <= 1e-9
    assert primal == pytest.approx(one["last"][0], rel=1e-6)
    assert before == pytest.approx(one["last"][2], rel=0.3)  # of other held-out samples
    assert not torch.equal(two["end"]["net.fc2.weight"], two["start"]["net.fc2.weight"])
    torch.testing.assert_close(two["end"]["net.fc2.weight"], one["end"]["net.fc2.weight"], rtol=1e-4, atol=1e-6)
    found, expected = (run["end"]["net.fc2.bias"] - run["end"]["net.fc2.bias"].mean() for run in (two, one))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # softmax does not see a shift of all
