"""When refits come, what they are of, and what is kept."""

from itertools import count

import pytest
import snntorch as snn
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback
from snn_recon_plugin.networks import inspect_network
from snn_recon_plugin.pipeline import initialize_network, task
from snn_recon_plugin.training import protect, session
from snn_recon_plugin.training.judge import Judge
from snn_recon_plugin.training.measure import Sums

from .runs import DATA, MARKS, SAMPLES, Module, assert_equal, callback, data_set, fit, loss_of, state, validation

pytestmark = MARKS


def test_start_refits_and_end():
    made = callback()
    module, trainer = fit(made, epochs=3)
    assert len(made.reports) == 4  # the start and three epochs
    assert made.report is made.reports[-1]
    plain, _ = fit(epochs=3)
    assert module.losses[0] < 0.6 * plain.losses[0]  # of the smaller readout
    held = DATA.test_inputs, DATA.test_labels
    assert loss_of(module, *held) < loss_of(plain, *held)
    assert trainer.callback_metrics["recon/kept"] in (0.0, 1.0)


def test_a_start_relies_on_the_inspection_of_the_checks_and_a_refit_on_none(monkeypatch):
    """An inspection takes several passes; refits follow steps that may have changed the output neuron's leak."""
    inspected = []
    monkeypatch.setattr(task, "inspect_network", lambda *given, **named: inspected.append(1) or inspect_network(*given, **named))
    made = callback()
    fit(made, val=validation(), epochs=2)
    refits = len(made.reports) - 1
    assert refits == 2
    assert len(inspected) == 1 + refits


class LeakEach(Module):
    """Hidden neurons with a leak each."""

    def __init__(self):
        super().__init__()
        self.net.lif1 = snn.Leaky(beta=torch.linspace(0.8, 0.95, 48))


def test_by_default_hidden_layers_are_rebuilt():
    made = ReconstructionCallback()
    module, _ = fit(made, epochs=1)
    given = ReconstructionCallback(ConvexInitializer(hidden="reconstruct"))
    same, _ = fit(given, epochs=1)
    assert made.reports[0].layers[0].witnesses is not None
    assert_equal(state(module), state(same))


def test_a_layer_that_cannot_be_rebuilt_is_rescaled_and_the_report_says_why():
    made = ReconstructionCallback(ConvexInitializer(hidden="reconstruct", heterogeneous=False))
    fit(made, LeakEach, epochs=1)
    (layer,) = made.reports[0].layers
    assert layer.witnesses is None
    assert "units with their own beta; unit_parameters=True rebuilds them" in layer.reason


def test_what_is_not_better_is_not_kept(monkeypatch):
    """Judgement by the loss on held-out samples; here it is said to be higher after."""

    def worse(*arguments):
        report = initialize_network(*arguments)
        object.__setattr__(report, "loss_after", report.loss_before + 1e-9)
        return report

    monkeypatch.setattr("snn_recon_plugin.training.refit.initialize_network", worse)
    made = callback()
    module, trainer = fit(made)
    plain, _ = fit()
    assert module.losses == plain.losses
    assert_equal(state(module), state(plain))
    assert trainer.callback_metrics["recon/kept"] == 0


def test_a_last_refit_has_samples_enough_to_hold_some_out():
    """A fifth of 40 are 8, and a solve takes ten."""
    made = callback(at_start=False, max_share=0.1)
    fit(made, train=DataLoader(data_set(40), batch_size=10), epochs=1)
    assert [report.samples for report in made.reports] == [10]


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
    runs = [fit(callback())[0] for _ in range(2)]
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


def test_the_length_of_steps_is_logged_when_they_grow_again_too(monkeypatch):
    """One step is taken back, then two shorter ones are good."""
    losses = iter([0.1, 0.2, 9.0])  # as solved, from the smaller readout, and after a step
    monkeypatch.setattr(Judge, "watch", lambda *_: Sums(loss=next(losses, 0.1), weight=1.0, zero=2.3))
    monkeypatch.setattr(protect, "WATCHED_STEPS", 2)
    logged = []
    monkeypatch.setattr(session, "log_metrics", lambda trainer, metrics: logged.append(metrics.get("recon/step_share")))
    fit(callback(keep="always", every_n_epochs=0, at_end=False), epochs=1)
    assert [share for share in logged if share is not None] == [0.25, 1.0]


def test_a_refit_goes_on_with_the_program_whose_strength_was_found():
    made = callback(hidden="reconstruct", keep="always")
    _, trainer = fit(made, lambda: Module(hidden=200), epochs=2)
    start, *refits = made.reports
    assert start.fit_loss == "squared_hinge"
    assert all((report.fit_loss, report.strength, report.path) == ("squared_hinge", start.strength, None) for report in refits)
    assert made.state_dict()["fit_loss"] == "squared_hinge"
    assert trainer.callback_metrics["recon/kept"] == 1.0
    narrow = callback(keep="always")
    fit(narrow, lambda: Module(hidden=12), epochs=2)
    assert {report.fit_loss for report in narrow.reports} == {"cross_entropy"}
    assert len({report.strength for report in narrow.reports}) == 1


def test_a_strength_is_chosen_again_near_the_last_after_two_solves_that_were_not_kept():
    calls = count()
    made = callback(at_start=False, judge=lambda module: float(next(calls)), max_share=10.0)  # ever worse
    fit(made, epochs=4)
    first, second, *later = made.reports
    begun, best = first.path.points[0].strength / first.path.points[2].strength, first.strength
    assert (second.path, second.strength) == (None, best)
    for report in later:
        assert report.path.points[0].strength == pytest.approx(begun * best)
        assert report.path.best == len(report.path.points) - 2  # one that brings nothing ends it
        best = report.strength


def test_a_refused_starts_strength_is_forgotten():
    """It was of hidden layers that are gone."""
    calls = count()
    made = callback(judge=lambda module: float(next(calls)), max_share=10.0)
    fit(made, epochs=1)
    alone = callback(at_start=False, judge=lambda module: float(next(calls)), max_share=10.0)
    fit(alone, epochs=1)
    assert made.reports[1].path.points[0].strength == pytest.approx(alone.reports[0].path.points[0].strength, rel=0.1)


def test_a_kept_solves_strength_outlives_one_that_is_not_kept():
    verdicts = iter([0.0, 0.0, -1.0, -1.0, -2.0])  # once to see that it can be asked; of two solves, before and after
    made = callback(at_start=False, average=None, judge=lambda module: next(verdicts, 0.0), max_share=10.0)
    fit(made, epochs=3)
    first, *later = made.reports
    assert all(report.path is None and report.strength == first.strength for report in later)
