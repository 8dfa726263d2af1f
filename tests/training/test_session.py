"""When a run is initialised and refitted, what it logs, and when it ends."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback
from snn_recon_plugin.stages import initialize_network
from snn_recon_plugin.training import protect
from snn_recon_plugin.training.judge import Judge
from snn_recon_plugin.training.measure import Judgement

from .runs import DATA, MARKS, SAMPLES, Module, assert_equal, averages, callback, falling, fit, loss_of, saying, state, validation

pytestmark = MARKS
TEST = DATA.test_inputs[:200], DATA.test_labels[:200]


# -- the schedule -------------------------------------------------------------------------------------------------------


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
    """Ends its training by itself."""

    def on_train_epoch_end(self):
        self.trainer.should_stop = self.trainer.current_epoch == 1


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"epochs": 3}, [0, 8, 24]),
        ({"epochs": 3, "val": validation()}, [0, 8, 24]),
        ({"epochs": 1}, [0, 8]),
        ({"epochs": -1, "max_steps": 11}, [0, 8, 11]),
        ({"epochs": 9, "module": Stopped}, [0, 8, 16]),
        ({"epochs": 5, "val": validation(), "check_val_every_n_epoch": 2}, [0, 40]),  # no validation follows the first epoch
        ({"epochs": 2, "val": validation(), "val_check_interval": 3}, [0, 6, 16]),  # batches follow its last validation
        ({"epochs": 3, "val": validation(), "val_check_interval": 0.4}, [0, 6, 24]),
        ({"epochs": 3, "val": validation(), "val_check_interval": 3, "check_val_every_n_epoch": None}, [0, 6, 24]),
        ({"epochs": 3, "val": validation(), "val_check_interval": 12, "check_val_every_n_epoch": None}, [0, 24]),
    ],
    ids=lambda value: str(value) if isinstance(value, list) else None,
)
def test_solves_come_before_training_after_the_first_epoch_and_at_the_end(options, steps):
    made, module = callback(), options.pop("module", Module)()
    logger = Logged(module)
    fit(made, module, logger=logger, **{"num_sanity_val_steps": 0, **options})
    assert logger.steps("objective") == steps
    assert [report.samples for report in made.reports] == [SAMPLES] * len(steps)
    assert made.report == made.reports[-1]


def test_an_early_end_is_refitted_after_its_last_validation():
    made = callback(at_start=False, metric=falling())
    module, trainer = fit(made, Stopped, epochs=9)
    plain, _ = fit(None, Stopped, epochs=9)
    assert trainer.current_epoch == 2
    assert module.losses == plain.losses
    assert not torch.equal(module.net.fc2.weight, plain.net.fc2.weight)


# -- the start ----------------------------------------------------------------------------------------------------------


def size(net):
    """Norm of the readout, relative to a fresh one."""
    return float(sum(value.detach().square().sum() for value in net.fc2.parameters()) / (10 / 3)) ** 0.5


def test_a_run_trains_from_the_smaller_readout_and_evaluates_the_solved_one():
    trained = []

    class Watching(Module):
        def on_train_batch_start(self, batch, batch_idx):
            trained.append(size(self.net))

    made = callback(average=0.99)
    options = {"val": validation(), "epochs": 1, "val_check_interval": 1, "accumulate_grad_batches": 4, "num_sanity_val_steps": 0}
    module, _ = fit(made, Watching, **options)
    solved = made.reports[0].solved
    assert made.reports[0].factor < 1
    assert torch.equal(module.seen[0], solved["fc2.weight"])  # before the first step
    expected = float(sum(value.square().sum() for value in solved.values()) / (10 / 3)) ** 0.5
    assert trained[0] == pytest.approx(made.reports[0].factor * expected, rel=1e-5)


def test_training_starts_below_a_fresh_nets_loss_and_ends_better():
    made = callback()
    module, _ = fit(made, epochs=3)
    plain, _ = fit(epochs=3)
    assert module.losses[0] < 0.75 * plain.losses[0]  # of the smaller readout
    assert loss_of(module, *TEST) < loss_of(plain, *TEST)


def test_by_default_hidden_layers_are_rebuilt():
    made = ReconstructionCallback()
    module, _ = fit(made, epochs=1)
    same, _ = fit(ReconstructionCallback(ConvexInitializer(hidden="reconstruct")), epochs=1)
    assert made.reports[0].layers[0].witnesses is not None
    assert_equal(state(module), state(same))


def test_without_validation_data_the_loss_of_held_out_samples_decides(monkeypatch):
    """Here it is said to be higher after each solve."""

    def worse(*arguments):
        report = initialize_network(*arguments)
        object.__setattr__(report, "solved_loss", report.loss_before + 1e-9)
        return report

    monkeypatch.setattr("snn_recon_plugin.training.refit.initialize_network", worse)
    module, trainer = fit(callback())
    assert_equal(state(module), state(fit()[0]))
    assert trainer.callback_metrics["recon/kept"] == 0


def test_the_same_seed_gives_the_same_bits():
    runs = [fit(callback(average=0.9), val=validation())[0] for _ in range(2)]
    assert runs[0].losses == runs[1].losses
    assert_equal(state(runs[0]), state(runs[1]))


# -- what is logged -----------------------------------------------------------------------------------------------------


def test_metrics_reach_the_logger(tmp_path):
    _, trainer = fit(callback(average=0.9), val=validation(), logger=CSVLogger(tmp_path))
    header = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    names = "objective relative_gap heldout_before heldout_after judged_before judged_after kept averaged active_neurons samples"
    for name in [*names.split(), "seconds", "share", "held", "trained_loss", "loss"]:
        assert f"recon/{name}" in header
        assert f"recon/{name}" in trainer.callback_metrics
    assert 0 < float(trainer.callback_metrics["recon/share"]) < 1


def fast():
    return Module(lambda parameters: torch.optim.Adam(parameters, 1e-2))


def test_the_losses_of_trained_and_of_evaluated_weights_are_logged():
    """As the module's own loss would have them, without a temperature."""
    module, trainer = fit(callback(at_start=False, average=0.9), fast, val=validation(), epochs=1)
    plain, _ = fit(None, fast, val=validation(), epochs=1)
    assert float(trainer.callback_metrics["recon/trained_loss"]) == pytest.approx(loss_of(plain, *TEST), rel=1e-5)
    assert float(trainer.callback_metrics["recon/loss"]) == pytest.approx(loss_of(module, *TEST), rel=1e-5)


def test_the_trained_loss_is_logged_at_every_validation():
    module = Module()
    logger = Logged(module)
    fit(callback(average=0.9), module, val=validation(), epochs=3, logger=logger)
    assert logger.steps("trained_loss") == logger.steps("loss") == logger.steps("held") == [8, 16, 24]


def test_the_length_of_steps_is_logged_when_they_grow_again_too(monkeypatch, caplog):
    """One step is taken back, then two shorter ones are good."""
    losses = iter([0.1, 0.2, 9.0])  # as solved, from the smaller readout, and after a step
    monkeypatch.setattr(Judge, "watch", lambda *_: Judgement(own=next(losses, 0.1), zero=2.3))
    monkeypatch.setattr(protect, "WATCHED_STEPS", 2)
    module = Module()
    logger = Logged(module)
    with caplog.at_level("INFO", logger="snn_recon_plugin"):
        fit(callback(), module, epochs=1, logger=logger)
    assert [(step, value) for step, name, value in logger.found if name == "recon/step_share"] == [(1, 0.25), (3, 1.0)]
    assert "step 1: nearly all that was solved was lost; earlier weights restored" in caplog.text


def lines_of(caplog, *given, **options):
    with caplog.at_level("INFO", logger="snn_recon_plugin"):
        fit(*given, **options)
    return [record.getMessage() for record in caplog.records if record.name == "snn_recon_plugin"]


def test_a_run_tells_its_start_its_refits_and_its_end(caplog):
    made = callback(average=0.9, net="net")
    start, *refits, end = lines_of(caplog, made, val=validation())
    right = f"{100 * made.reports[0].solved_accuracy:.1f} % of 80 held-out samples right"
    assert start == f"net: start: {right}; training goes on from it"
    for line, solve in zip(refits, made._session.solves[1:], strict=True):
        assert line.startswith(f"net: refit: loss {solve.before.loss:.4f} -> {solve.after.loss:.4f}")
        assert line.endswith(", not kept") is not solve.kept
    assert end == f"net: end: the best weights are the last refit's, validation loss {made._session.solves[-1].after.loss:.4f}"


@pytest.mark.parametrize(
    ("options", "start", "end"),
    [
        ({"metric": lambda module: 0.0}, "not kept, since it is no better than the network was", "the trained ones"),
        ({"metric": averages()}, "not kept", "the averaged ones"),
        ({"metric": saying(2.0, 1.0, 4.0, 3.0, 5.0, 4.0, 3.0, 5.0)}, "training goes on from it", "earlier ones"),
    ],
)
def test_lines_name_what_was_chosen(caplog, options, start, end):
    first, *_, last = lines_of(caplog, callback(**{"average": 0.9, **options}))
    assert start in first
    assert end in last


def test_without_validation_data_nothing_is_best(caplog):
    assert [line.split(":")[0] for line in lines_of(caplog, callback(average=0.9))] == ["start", "refit", "refit"]


class OwnBar(pl.callbacks.ProgressBar):
    """Has no more than Lightning's base class asks for."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def disable(self):
        pass

    def print(self, line):
        self.lines.append(line)


@pytest.mark.parametrize("own", [False, True])
def test_lines_are_printed_above_the_progress_bar(capsys, own):
    bar = OwnBar() if own else pl.callbacks.TQDMProgressBar()
    fit(callback(), epochs=1, beside=[bar], enable_progress_bar=True)
    printed = capsys.readouterr().out + "".join(bar.lines if own else [])
    assert "start: " in printed
    assert "refit: loss" in printed


# -- early stopping -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("least", "epochs"), [(0.0, 6), (3.0, 5), (5.0, 3)])
def test_early_stopping_waits_while_the_trained_loss_falls(least, epochs):
    """The start is evaluated all the time, so the monitored loss never changes; the trained one falls to ``least``."""
    numbers = iter([9.0, 8.0, -1.0])  # before training: the trial, and the start, before and after

    def metric(module):
        return next(numbers, max(least, 5.0 - module.trainer.current_epoch))

    stopping = pl.callbacks.EarlyStopping("val", patience=2)
    made = callback(average=0.9, metric=metric)
    _, trainer = fit(made, val=validation(), epochs=6, beside=[stopping])
    assert trainer.callback_metrics["recon/held"] == 1
    assert trainer.current_epoch == epochs


class Flat(Module):
    """Its monitored loss never changes."""

    def validation_step(self, batch, batch_idx):
        self.log("val", 1.0)


def test_early_stopping_is_left_alone_where_later_weights_are_evaluated():
    _, trainer = fit(
        callback(average=0.9, metric=falling()),
        Flat,
        val=validation(),
        epochs=6,
        beside=[pl.callbacks.EarlyStopping("val", patience=2)],
    )
    assert trainer.callback_metrics["recon/held"] == 0
    assert trainer.current_epoch == 3
