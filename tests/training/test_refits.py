"""When refits come, what they leave in the net, and what is kept."""

from itertools import count

import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback
from snn_recon_plugin.convex import CrossEntropy, Logistic, Squared
from snn_recon_plugin.errors import WriteError
from snn_recon_plugin.training.judge import Judged, _hits, loss_on

from .runs import DATA, MARKS, SAMPLES, Module, assert_equal, callback, data_set, fit, loss_of, state, validation

pytestmark = MARKS


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
    made = ReconstructionCallback()
    fit(made, LeakEach, epochs=1)
    (layer,) = made.reports[0].layers
    assert layer.witnesses is None
    assert "a beta of their own; unit_parameters=True rebuilds them" in layer.reason


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


@pytest.mark.parametrize("options", [{}, {"limit_val_batches": 1}])
def test_validation_data_as_the_judge(options):
    """The loss on them before and after is what the module itself would log."""
    made = callback(at_start=False, every_n_epochs=2, judge="validation")
    module, trainer = fit(made, val=validation(), **options)
    plain, _ = fit(val=validation(), **options)
    assert module.losses == plain.losses
    before, after = (float(trainer.callback_metrics[f"recon/judged_{when}"]) for when in ("before", "after"))
    count = 100 if options else 200
    held = DATA.test_inputs[:count], DATA.test_labels[:count]
    assert before == pytest.approx(loss_of(plain, *held), rel=1e-5)
    assert trainer.callback_metrics["recon/kept"]
    assert after < before
    assert after == pytest.approx(loss_of(module, *held), rel=1e-5)  # it was better


def test_validation_data_are_found_also_where_none_were_read_before():
    """Lightning itself reads them at the first epoch that is validated."""
    made = callback(at_start=False, judge="validation", every_n_epochs=2)
    _, trainer = fit(made, val=validation(), num_sanity_val_steps=0, check_val_every_n_epoch=2)
    assert len(made.reports) == 1
    assert "recon/judged_after" in trainer.callback_metrics


def test_a_lower_loss_is_not_enough_where_accuracy_falls():
    best = Judged(0.5, 0.9)
    assert best.better_than(Judged(0.6, 0.9))
    assert best.better_than(Judged(0.6))  # no classes, or a judge of the user's own
    assert not best.better_than(Judged(0.6, 0.91))
    assert not best.better_than(Judged(0.5, 0.8))
    assert not Judged().better_than(best)


def test_what_is_decided_over_several_steps_is_judged_so():
    """One label a sample, a loss at every step, of which most say another class than their mean."""
    net, losses = Module().net, []
    batch = [(DATA.train_inputs[:100], DATA.train_labels[:100])]
    for options in ({"loss": SF.ce_rate_loss()}, {}):
        total, right, weight, _, count = loss_on(ConvexInitializer(**options), net, batch)
        assert count == 100
        outputs = net(batch[0][0])
        mean = (outputs.mean(0).argmax(1) == batch[0][1]).double().mean()
        assert right / weight == pytest.approx(float(mean))
        losses.append(total / weight)
    assert losses[0] != losses[1]
    steps = (outputs.argmax(2) == batch[0][1]).double().mean()
    assert abs(float(steps - mean)) > 1e-3


def test_samples_that_all_weigh_nothing_say_nothing():
    weight = torch.ones(10)
    weight[0] = 0
    inputs, labels = DATA.test_inputs, DATA.test_labels
    val = DataLoader(TensorDataset(inputs[labels == 0], labels[labels == 0]), batch_size=100)
    made = ReconstructionCallback(ConvexInitializer(hidden="keep", loss=torch.nn.CrossEntropyLoss(weight=weight)), max_share=2.0)
    fit(made, val=val, epochs=1)
    assert len(made.reports) == 2
    assert all(not report.replaced for report in made.reports)


def test_a_last_refit_has_samples_enough_to_hold_some_out():
    """A fifth of 40 are 8, and a solve takes ten."""
    made = callback(at_start=False, max_share=0.1)
    fit(made, train=DataLoader(data_set(40), batch_size=10), epochs=1)
    assert [report.samples for report in made.reports] == [10]


def test_accuracy_is_of_classes_alone():
    scores, labels = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1, 1])
    assert _hits(CrossEntropy(), scores, labels).tolist() == [1, 0, 1]
    assert _hits(Logistic(), scores[:, 1:], labels).tolist() == [1, 0, 1]
    assert _hits(Squared(), scores, scores).isnan().all()


@pytest.mark.parametrize("judge", ["auto", "held_out"])
def test_validation_data_judge_where_there_are_any(judge):
    made = callback(at_start=False, every_n_epochs=2, judge=judge)
    _, trainer = fit(made, val=validation())
    assert len(made.reports) == 1
    assert ("recon/judged_after" in trainer.callback_metrics) == (judge == "auto")


def test_held_out_samples_judge_where_there_are_none(recwarn):
    made = callback(at_start=False, every_n_epochs=2)
    _, trainer = fit(made)
    assert len(made.reports) == 1
    assert "recon/judged_after" not in trainer.callback_metrics
    assert not [warning for warning in recwarn if "judge" in str(warning.message)]


class OtherBatches(Module):
    """Whose validation batches are no pairs."""

    def validation_step(self, batch, batch_idx):
        super().validation_step((batch["x"], batch["y"]), batch_idx)


def test_validation_data_that_cannot_judge_are_left_alone_with_a_warning():
    rows = [{"x": DATA.test_inputs[k], "y": DATA.test_labels[k]} for k in range(100)]
    made = callback(at_start=False, every_n_epochs=2)
    with pytest.warns(UserWarning, match=r"can't judge refits; held-out.*judge='held_out'"):
        _, trainer = fit(made, OtherBatches, val=DataLoader(rows, 50))
    assert len(made.reports) == 1
    assert "recon/judged_after" not in trainer.callback_metrics


def test_a_judge_finds_the_trainer_validating():
    stages = []

    def judge(module):
        stages.append(module.trainer.validating)
        return 0.0

    fit(callback(at_start=False, judge=judge), epochs=1)
    assert stages == [True] * 3


def test_undoing_a_report_during_a_loan_and_after_it():
    """During it the trained readout comes back; after it there is nothing to undo, least of all in a net that has gone on."""

    class Undoes(Module):
        def on_validation_epoch_end(self):
            if made.report is not None and len(made.reports) == 2:
                made.report.undo()

    made = callback(at_start=False, keep="always")
    module, _ = fit(made, Undoes, val=validation())
    plain, _ = fit(val=validation())
    assert module.losses == plain.losses
    assert_equal(state(module), state(plain))
    assert [report.parameters for report in made.reports] == [[], []]
    with pytest.raises(WriteError):
        made.reports[0].undo()


def test_optimizer_memory_of_written_parameters_is_cleared():
    made = callback(at_start=False, swap="overwrite", keep="always")
    module, trainer = fit(made, epochs=1)
    memory = trainer.optimizers[0].state
    assert set(made.report.parameters) == set(module.net.fc2.parameters())
    assert not set(memory) & set(module.net.fc2.parameters())
    assert set(memory) == set(module.net.fc1.parameters())
    assert all(parameter.grad is None for parameter in module.net.fc2.parameters())


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
