"""Who decides whether weights are better: validation data, training samples without them, or a metric."""

import math

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import ConvexInitializer
from snn_recon_plugin.errors import OptionError, ProcessError
from snn_recon_plugin.training.measure import TEMPERATURES

from .runs import DATA, MARKS, TEST, Module, assert_equal, callback, dictionaries, falling, fit, loss_of, state, validation

pytestmark = MARKS
FIRST = DATA.train_inputs[:400], DATA.train_labels[:400]


def judged(trainer):
    return [float(trainer.callback_metrics[f"recon/judged_{when}"]) for when in ("before", "after")]


@pytest.mark.parametrize(
    ("options", "data"),
    [
        ({"val": validation()}, TEST),
        ({"val": validation(), "limit_val_batches": 1}, (TEST[0][:100], TEST[1][:100])),
        ({}, FIRST),  # fewer than 1,000 training samples: all of them
    ],
    ids=["validation data", "limited", "training samples"],
)
def test_data_judge_by_the_loss_at_the_best_temperature(recwarn, options, data):
    module, trainer = fit(callback(at_start=False), epochs=1, **options)
    plain, _ = fit(epochs=1, **options)
    assert trainer.callback_metrics["recon/kept"]
    expected = [min(loss_of(one, *data, 1 / temperature) for temperature in TEMPERATURES) for one in (plain, module)]
    assert judged(trainer) == pytest.approx(expected, rel=1e-5)
    assert judged(trainer)[1] < judged(trainer)[0]
    assert not [warning for warning in recwarn if "training samples decide" in str(warning.message)]


def test_validation_data_are_found_also_where_none_were_read_before():
    """Lightning itself reads them at the first epoch that is validated."""
    made = callback(at_start=False)
    fit(made, val=validation(), num_sanity_val_steps=0, check_val_every_n_epoch=2)
    assert made.report.after.samples == 200


class Unlike(Module):
    """Takes whatever validation data come."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val", 0.0)


@pytest.mark.parametrize(
    ("val", "found"), [(dictionaries(), "batch 1 is"), ([validation(), validation()], "2 loaders of validation data")]
)
def test_validation_data_that_cannot_be_measured_are_left_alone_with_a_warning(val, found):
    made = callback(at_start=False)
    with pytest.warns(UserWarning, match=rf"(?s)training samples decide.*metric=.*{found}"):
        _, trainer = fit(made, Unlike, val=val, epochs=1)
    assert made.report.program.samples == 400
    assert len(judged(trainer)) == 2


def test_samples_without_weight_choose_nothing():
    weight = torch.ones(10)
    weight[0] = 0
    zeros = DATA.test_labels == 0
    val = DataLoader(TensorDataset(DATA.test_inputs[zeros], DATA.test_labels[zeros]), batch_size=100)
    made = callback(of=ConvexInitializer(hidden="keep", loss=torch.nn.CrossEntropyLoss(weight=weight)), average=0.9)
    module, trainer = fit(made, val=val, epochs=1)
    assert [report.undone for report in made.reports] == [True, True]
    assert "recon/judged_after" not in trainer.callback_metrics
    assert_equal(state(module), state(fit(val=val, epochs=1)[0]))


def test_a_process_that_failed_ends_the_run_before_it_begins(monkeypatch):
    def fails(*arguments, **options):
        raise ProcessError("a process that has ended", "all processes", "see that process")

    monkeypatch.setattr("snn_recon_plugin.training.measure.WeightJudge.sum_losses", fails)
    with pytest.raises(ProcessError, match="has ended"):
        fit(callback(), val=validation())


@pytest.mark.parametrize(("slope", "kept"), [(-1.0, True), (0.0, False), (1.0, False)])
def test_a_metric_decides_in_place_of_the_validation_loss(slope, kept):
    """It gets the module in evaluation mode, within validation; what it draws changes no training."""
    seen = []

    def metric(module):
        assert not module.training
        assert module.trainer.validating
        seen.append(module.net.fc2.weight.detach().clone())
        torch.rand(3)
        return torch.tensor(slope * len(seen))

    made = callback(at_start=False, metric=metric)
    module, trainer = fit(made, val=validation(), epochs=1)
    plain, _ = fit(val=validation(), epochs=1)
    assert module.losses == plain.losses
    assert made.report.after.samples == 80  # of the training samples
    assert trainer.callback_metrics["recon/kept"] == float(kept)
    assert judged(trainer) == [2 * slope, 3 * slope]  # the first call is before training
    assert torch.equal(seen[1], plain.net.fc2.weight)
    assert torch.equal(module.net.fc2.weight, seen[2] if kept else seen[1])


@pytest.mark.parametrize("write", ["if_better", "always"])
def test_a_start_that_is_no_better_is_kept_on_request_and_a_refit_never(write):
    made = callback(of=ConvexInitializer(hidden="keep", write=write), metric=lambda module: 0.0)
    module, plain = fit(made, val=validation(), epochs=1)[0], fit(val=validation(), epochs=1)[0]
    assert (module.losses == plain.losses) is (write == "if_better")
    assert [report.undone for report in made.reports] == [write == "if_better", True]


def test_a_metric_that_gives_nan_changes_nothing():
    calls = falling()

    def metric(module):
        return calls(module) if module.trainer.current_epoch == 0 else math.nan

    module, trainer = fit(callback(average=0.9, metric=metric), val=validation(), epochs=2)
    assert torch.equal(module.seen[-1], module.seen[-2])  # the refit of the first epoch, which numbers had chosen
    assert trainer.callback_metrics["recon/held"] == 1
    assert trainer.callback_metrics["recon/kept"] == 0


@pytest.mark.parametrize(
    ("metric", "error", "found"),
    [
        (lambda module: None, OptionError, "metric gave a NoneType"),
        (lambda module: "much", OptionError, "metric gave a str"),
        (lambda module: torch.ones(2), OptionError, "metric gave a Tensor"),
        (lambda module: 1 / 0, ZeroDivisionError, "division by zero"),  # the user's own
    ],
)
def test_a_metric_that_gives_no_number_ends_the_run_before_training(metric, error, found):
    module = Module()
    with pytest.raises(error, match=found):
        fit(callback(metric=metric), module)
    assert not module.losses
