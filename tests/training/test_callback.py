"""When a run is initialised and refitted, what it logs, and when it ends."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from snn_recon_plugin import ConvexInitializer
from snn_recon_plugin.text_table import rate

from .runs import MARKS, SAMPLES, TEST, Module, averages, callback, falling, fit, loss_of, saying, validation

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
    made = callback(of=ConvexInitializer(hidden="keep"), average=0.99)
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
    _, trainer = fit(callback(at_start=False, average=0.9), module, val=validation(), epochs=3, logger=logger)
    fit(None, alone, val=validation(), epochs=3)
    solved = "objective relative_gap heldout_before heldout_after judged_before judged_after kept averaged active_neurons samples"
    for names, steps in ((f"{solved} seconds share", [24]), ("trained_loss loss held", [8, 16, 24])):
        for name in names.split():
            assert logger.steps(name) == steps
            assert f"recon/{name}" in trainer.callback_metrics
    assert 0 < float(trainer.callback_metrics["recon/share"]) < 1
    assert float(trainer.callback_metrics["recon/trained_loss"]) == pytest.approx(loss_of(alone, *TEST), rel=1e-5)
    assert float(trainer.callback_metrics["recon/loss"]) == pytest.approx(loss_of(module, *TEST), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "start", "end"),
    [
        ({"metric": lambda module: 0.0}, "not kept, since it is no better than the network was", "the trained ones"),
        ({"metric": averages()}, "not kept", "the averaged ones"),
        ({"metric": saying(2.0, 1.0, 4.0, 3.0, 5.0, 4.0, 3.0, 5.0)}, "training goes on from it", "earlier ones"),
        ({"metric": falling(), "net": "net"}, "training goes on from it", "the last refit's"),
        ({}, "training goes on from it", None),  # without validation data nothing is best
    ],
)
def test_lines_name_what_was_chosen(caplog, options, start, end):
    with caplog.at_level("INFO", logger="snn_recon_plugin"):
        made = callback(average=0.9, **options)
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
    _, trainer = fit(callback(average=0.9, metric=metric), Flat, val=validation(), epochs=6, beside=[stopping])
    assert trainer.callback_metrics["recon/held"] == held
    assert trainer.current_epoch == epochs
