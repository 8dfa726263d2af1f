"""When a run is initialised and refitted, what it logs, and when it ends."""

import contextlib
import copy

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch.utils.data import DataLoader

from snn_recon_plugin import ConvexInitializer
from snn_recon_plugin.demo import build_network
from snn_recon_plugin.text_table import rate

from .runs import (
    MARKS,
    SAMPLES,
    TEST,
    Module,
    assert_equal,
    callback,
    data_set,
    falling,
    fit,
    loss_of,
    saying,
    trainer_of,
    validation,
)

pytestmark = MARKS


class Logged(DummyLogger):
    """Keeps metrics, each with the number of steps that the module had taken."""

    def __init__(self, module):
        super().__init__()
        self.module, self.found = module, []

    def log_metrics(self, metrics, step=None):
        self.found += [(len(self.module.losses), name, value) for name, value in metrics.items()]

    def steps(self, name):
        return [step for step, known, _ in self.found if known == f"recon/{name}"]


class Stopped(Module):
    def on_train_epoch_end(self):
        self.trainer.should_stop = self.trainer.current_epoch == 1


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"epochs": 3, "val": validation()}, [0, 24]),
        ({"epochs": -1, "max_steps": 11}, [0, 11]),
        ({"epochs": 13, "module": Stopped}, [0, 16]),
        ({"epochs": 3, "val": validation(), "val_check_interval": 5, "check_val_every_n_epoch": None}, [0, 24]),  # none at the end
    ],
    ids=lambda value: str(value) if isinstance(value, list) else None,
)
def test_solves_come_before_training_and_at_the_end(options, steps):
    made, module = callback(fast=False), options.pop("module", Module)()
    logger = Logged(module)
    fit(made, module, logger=logger, **{"num_sanity_val_steps": 0, **options})
    assert logger.steps("objective") == steps
    assert [report.program.samples for report in made.reports] == [SAMPLES] * len(steps)
    assert made.report == made.reports[-1]


def test_a_run_trains_from_the_smaller_readout_and_evaluates_the_solved_one():
    made = callback(of=ConvexInitializer(hidden="keep"), best_weights=True)
    options = {"val": validation(), "epochs": 1, "val_check_interval": 1, "accumulate_grad_batches": 4, "num_sanity_val_steps": 0}
    module, _ = fit(made, **options)
    start = made.reports[0]
    assert start.factor < 1
    assert torch.equal(module.seen[0], start.solved_weights["fc2.weight"])  # before the first step
    for name, solved in start.solved_weights.items():
        torch.testing.assert_close(module.weights[0][f"net.{name}"], start.factor * solved)


def test_metrics_reach_loggers_and_the_trainer():
    """Losses of the trained and of the evaluated weights as the module's own loss would have them, without a temperature."""
    module = Module(lambda parameters: torch.optim.Adam(parameters, 1e-2))
    logger, alone = Logged(module), copy.deepcopy(module)
    _, trainer = fit(callback(at_start=False, best_weights=True), module, val=validation(), epochs=3, logger=logger)
    fit(None, alone, val=validation(), epochs=3)
    solved = "objective relative_gap heldout_before heldout_after judged_before judged_after kept active_neurons samples"
    for names, steps in ((f"{solved} seconds share", [24]), ("trained_loss loss held", [8, 16, 24])):
        for name in names.split():
            assert logger.steps(name) == steps
            assert f"recon/{name}" in trainer.callback_metrics
    assert 0 < float(trainer.callback_metrics["recon/share"]) < 1
    assert float(trainer.callback_metrics["recon/trained_loss"]) == pytest.approx(loss_of(alone, *TEST), rel=1e-5)
    assert float(trainer.callback_metrics["recon/loss"]) == pytest.approx(loss_of(module, *TEST), rel=1e-5)


def test_a_net_that_is_better_than_its_start_is_protected():
    trained = Module()
    fit(callback(), trained, val=validation(), epochs=4)
    module, before = Module(lambda parameters: torch.optim.SGD(parameters, 3.0, momentum=0.9), trained.net), loss_of(trained, *TEST)
    made = callback()
    fit(made, module, val=validation(), epochs=2)
    assert made.reports[0].undone
    assert loss_of(module, *TEST) <= before + 1e-6


@pytest.mark.parametrize(
    ("options", "start", "end"),
    [
        ({"metric": lambda module: 0.0}, "not kept, since it is no better than the network was", "the trained ones"),
        ({"metric": saying(2.0, 1.0, 4.0, 3.0, 5.0, 4.0, 3.0, 5.0)}, "training goes on from it", "earlier ones"),
        ({"metric": falling(), "net": "net"}, "training goes on from it", "the last refit's"),
        ({}, "training goes on from it", None),  # without validation data nothing is best
    ],
)
def test_lines_name_what_was_chosen(caplog, options, start, end):
    with caplog.at_level("INFO", logger="snn_recon_plugin"):
        made = callback(best_weights=True, **options)
        fit(made)
    prefix = "net: " if "net" in options else ""
    first, *lines = [record.getMessage() for record in caplog.records if record.name == "snn_recon_plugin"]
    right = f"{rate(made.reports[0].solved.accuracy, 80)} of 80 held-out samples right"
    assert first.startswith(f"{prefix}start: {right}; ")
    assert start in first
    refit, *last = lines
    assert refit.startswith(f"{prefix}refit: loss ")
    assert refit.endswith(", not kept") is made.report.undone
    assert [line.split(",")[0] for line in last] == ([] if end is None else [f"{prefix}end: the best weights are {end}"])


def test_lines_are_printed_above_the_progress_bar(capsys):
    fit(callback(), epochs=1, beside=[pl.callbacks.TQDMProgressBar()], enable_progress_bar=True)
    printed = capsys.readouterr().out
    assert "start: " in printed
    assert "refit: loss" in printed


class Flat(Module):
    """Its monitored loss never changes."""

    def validation_step(self, batch, batch_idx):
        self.log("val", 1.0)


def falling_to(least):
    """Return a metric that rates the start best, and by which the trained weights improve until some number."""
    numbers = iter([9.0, 8.0, -1.0])  # before training: the trial, and the start, before and after
    return lambda module: next(numbers, max(least, 5.0 - module.trainer.current_epoch))


@pytest.mark.parametrize(("metric", "held", "epochs"), [(falling_to(0.0), 1, 6), (falling_to(5.0), 1, 3), (falling(), 0, 3)])
def test_early_stopping_waits_while_the_trained_loss_falls_if_the_evaluated_weights_do_not_change(metric, held, epochs):
    stopping = pl.callbacks.EarlyStopping("val", patience=2)
    _, trainer = fit(callback(best_weights=True, metric=metric), Flat, val=validation(), epochs=6, beside=[stopping])
    assert trainer.callback_metrics["recon/held"] == held
    assert trainer.current_epoch == epochs


class OnPlateau(Flat):
    """Its rate is reduced once the monitored loss has not changed for some epochs."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=2, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val"}}


@pytest.mark.parametrize(("metric", "share"), [(falling_to(0.0), 1.0), (falling_to(5.0), 0.5)])
def test_a_rate_on_a_plateau_stays_while_the_trained_loss_falls(metric, share):
    _, trainer = fit(callback(best_weights=True, metric=metric), OnPlateau, val=validation(), epochs=5)
    optimizer = trainer.optimizers[0]
    assert optimizer.param_groups[0]["lr"] == share * optimizer.defaults["lr"]


# -- weights that users' hooks see, and the net that is left when one of them raises ----------------------------------------
INSIDE = [f"on_validation_{when}" for when in ("epoch_start", "batch_start", "batch_end", "epoch_end")]
LATE = ["on_validation_start", "on_validation_end", "on_train_end", "on_fit_end"]
TRAINING = ["on_fit_start", "on_train_start", "on_train_batch_start", "on_before_optimizer_step", "on_train_epoch_end"]
WATCHED = [*TRAINING, *INSIDE, *LATE, "on_save_checkpoint", "state_dict", "training_step", "validation_step"]
# Those at which the evaluated weights may be in the net, and one of training.
HOOKS = [("callback before", hook) for hook in ("on_validation_epoch_start", "on_validation_epoch_end", *LATE)]
HOOKS += [("callback after", hook) for hook in ("on_train_epoch_end", "on_validation_batch_end", "on_save_checkpoint", *LATE)]
HOOKS += [("module", hook) for hook in ("training_step", "validation_step", "on_validation_epoch_end", "state_dict", "on_fit_end")]


class StopError(Exception):
    """Raised by a user's hook."""


def small():
    return Module(net=build_network(64, 12, 10, 4))


def made():
    return callback(at_start=False, metric=falling(), best_weights=True)


def weights_of(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def watched(base, notice):
    """A class whose hooks call ``notice(hook, self)`` first."""

    def hook_of(name):
        def hook(self, *arguments, **options):
            notice(name, self)
            return getattr(base, name)(self, *arguments, **options)

        return hook

    return type("Watched", (base,), {name: hook_of(name) for name in WATCHED if hasattr(base, name)})


def run(folder, own, owner, stop=None):
    """A run of two epochs with a validation and a checkpoint each, which may end at some call of a hook of the owner's.

    Gives the module, and the weights at each call of each hook.
    """
    seen = {}

    def notice(hook, of):
        if isinstance(of, Module) and of is not module:  # a private copy, whose training step is read
            return
        seen.setdefault(hook, []).append(weights_of(module))
        if stop == (hook, len(seen[hook])):
            raise StopError

    pl.seed_everything(0, verbose=False)
    module = small()
    if owner == "module":
        module.__class__ = watched(Module, notice)
    users = watched(pl.Callback, notice)()
    callbacks = [*([users] if owner == "callback before" else []), *own, *([users] if owner == "callback after" else [])]
    checkpoints = pl.callbacks.ModelCheckpoint(folder, save_top_k=-1)
    trainer = trainer_of(*callbacks, checkpoints, epochs=2, enable_checkpointing=True)
    with contextlib.nullcontext() if stop is None else pytest.raises(StopError):
        trainer.fit(module, DataLoader(data_set(100), 50), DataLoader(data_set(40), 20))
    return module, seen


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return {owner: run(tmp_path_factory.mktemp("plain"), [], owner)[1] for owner in ("callback before", "callback after", "module")}


@pytest.mark.parametrize(("owner", "hook"), HOOKS)
def test_a_hook_that_raises_leaves_the_trained_net(tmp_path, plain, owner, hook):
    """At its last call in a run, that is after a refit unless the hook comes early."""
    expected = plain[owner][hook]
    module, _ = run(tmp_path, [made()], owner, (hook, len(expected)))
    assert_equal(weights_of(module), expected[-1])


@pytest.mark.parametrize(
    ("owner", "more"),
    [
        ("callback before", {"on_validation_end"}),
        ("callback after", {"on_validation_start", "on_train_end"}),
        ("module", {"on_validation_start", "validation_step", "state_dict", "on_train_end"}),
    ],
)
def test_hooks_see_the_trained_weights_but_in_validation(tmp_path, plain, owner, more):
    """Those of the module, and of callbacks on either side; after training, they see the evaluated weights."""
    _, seen = run(tmp_path, [made()], owner)
    assert {hook: len(found) for hook, found in seen.items()} == {hook: len(found) for hook, found in plain[owner].items()}
    others = {
        hook
        for hook, found in seen.items()
        for one, two in zip(found, plain[owner][hook], strict=True)
        if any(not torch.equal(one[name], two[name]) for name in one)
    }
    assert others == {*INSIDE, "on_fit_end", *more}


def test_a_hook_that_raises_after_the_end_leaves_the_evaluated_net():
    class Late(pl.Callback):
        def teardown(self, trainer, pl_module, stage):
            self.seen = weights_of(pl_module)
            raise StopError

    late, module = Late(), small()
    with pytest.raises(StopError):
        fit(made(), module, beside=[late], epochs=1)
    assert_equal(weights_of(module), late.seen)


def test_weights_that_a_hook_changes_after_an_epoch_are_trained_on():
    class Halves(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            with torch.no_grad():
                pl_module.net.fc2.weight.mul_(0.5)

    one, two = (fit(own, beside=[Halves()], epochs=3)[0] for own in (made(), None))
    assert one.losses == two.losses
