"""Refits within a run: the program, its samples, and who chooses its strength."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import ConvexInitializer
from snn_recon_plugin.training import refit

from .runs import DATA, MARKS, SAMPLES, Module, callback, data_set, falling, fit, loss_of, validation

pytestmark = MARKS
TEST = DATA.test_inputs[:200], DATA.test_labels[:200]


def run(val=None, of=None, **options):
    """Return the callback of a run of two epochs, with refits alone."""
    made = callback(of=of, at_start=False, **options)
    fit(made, val=val, num_sanity_val_steps=0)
    assert len(made.reports) == 2
    return made


def test_a_refit_keeps_hidden_layers_and_is_written_as_it_was_solved():
    made = callback(hidden="reconstruct")
    fit(made, lambda: Module(hidden=200), val=validation())
    start, *refits = made.reports
    assert start.fit_loss == "squared_hinge"
    assert all(report.layers[0].witnesses is None for report in refits)
    assert start.factor < 1
    assert [report.factor for report in refits] == [1.0, 1.0]  # nothing is trained from them
    assert all(report.certificate.tol == 1e-4 for report in refits)


def test_validation_data_choose_the_strength_and_are_not_fitted():
    plain, _ = fit(val=validation(), epochs=1)
    first = run(validation()).reports[0]
    assert (first.heldout, first.samples) == (200, SAMPLES)
    assert first.loss_before == pytest.approx(loss_of(plain, *TEST), rel=1e-5)
    assert len(first.path.points) > 1
    assert first.path.chosen.heldout_loss == min(point.heldout_loss for point in first.path.points)


@pytest.mark.parametrize("options", [{}, {"val": validation(), "metric": falling()}], ids=["no validation data", "a metric"])
def test_else_held_out_training_samples_choose_it(options):
    made = run(**options)
    assert [(report.heldout, report.samples) for report in made.reports] == [(80, SAMPLES)] * 2


def test_each_refit_draws_other_samples():
    first, second = run(validation())._session.solves
    assert sorted(first.indices) == sorted(second.indices) == list(range(SAMPLES))
    assert first.indices != second.indices


def test_a_path_begins_a_little_above_the_last_refits_strength():
    first, second = run(validation()).reports
    assert first.strength < second.path.points[0].strength < 10 * first.strength


def test_a_given_program_is_kept():
    made = run(validation(), ConvexInitializer(hidden="keep", fit_loss="squared_hinge"))
    assert [report.fit_loss for report in made.reports] == ["squared_hinge"] * 2


def test_a_given_strength_is_kept():
    made = run(validation(), ConvexInitializer(hidden="keep", strength=0.01))
    assert [(report.strength, report.path, report.heldout) for report in made.reports] == [(0.01, None, 200)] * 2


def test_limits_of_samples(monkeypatch):
    """The initializer's is of fitted samples alone; of many validation samples the first are used."""
    monkeypatch.setattr(refit, "_VALIDATION_SAMPLES", 100)
    made = run(validation(), ConvexInitializer(hidden="keep", max_samples=120))
    assert [(report.heldout, report.samples) for report in made.reports] == [(100, 120)] * 2


def test_validation_samples_whose_label_is_ignored_are_not_counted():
    labels = TEST[1].clone()
    labels[::4] = -100
    made = run(DataLoader(TensorDataset(TEST[0], labels), 100), ConvexInitializer(hidden="keep", loss=torch.nn.CrossEntropyLoss()))
    assert [(report.heldout, report.samples) for report in made.reports] == [(150, SAMPLES)] * 2


@pytest.mark.parametrize("limits", [{}, {"limit_val_batches": 1}])
def test_a_generator_that_training_and_validation_share_goes_on_as_without_refits(limits):
    def losses(made):
        generator = torch.Generator().manual_seed(3)
        train = DataLoader(data_set(), 50, shuffle=True, generator=generator)
        val = DataLoader(data_set(100), 50, shuffle=True, generator=generator)
        return fit(made, train=train, val=val, epochs=3, **limits)[0].losses

    assert losses(callback(at_start=False, average=0.9)) == losses(None)
