"""Who decides whether weights are better, and by what."""

import gc
import math

import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback
from snn_recon_plugin.demo import build_network
from snn_recon_plugin.errors import ProcessError
from snn_recon_plugin.networks import Inspections
from snn_recon_plugin.training import judge as judge_module
from snn_recon_plugin.training.measure import TEMPERATURES, Sums, measure_loss

from .runs import DATA, MARKS, Module, callback, fit, loss_of, validation

pytestmark = MARKS


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
    """By the loss of the module's own scores, at the best temperature."""
    made = callback(at_start=False, every_n_epochs=2, judge="validation")
    module, trainer = fit(made, val=validation(), **options)
    plain, _ = fit(val=validation(), **options)
    assert module.losses == plain.losses
    before, after = (float(trainer.callback_metrics[f"recon/judged_{when}"]) for when in ("before", "after"))
    count = 100 if options else 200
    held = DATA.test_inputs[:count], DATA.test_labels[:count]
    assert before == pytest.approx(min(loss_of(plain, *held, 1 / temperature) for temperature in TEMPERATURES), rel=1e-5)
    assert trainer.callback_metrics["recon/kept"]
    assert after < before
    assert after == pytest.approx(min(loss_of(module, *held, 1 / temperature) for temperature in TEMPERATURES), rel=1e-5)


def test_validation_data_are_found_also_where_none_were_read_before():
    """Lightning itself reads them at the first epoch that is validated."""
    made = callback(at_start=False, judge="validation", every_n_epochs=2)
    _, trainer = fit(made, val=validation(), num_sanity_val_steps=0, check_val_every_n_epoch=2)
    assert len(made.reports) == 1
    assert "recon/judged_after" in trainer.callback_metrics


def test_a_loss_of_several_steps_is_the_mean_over_them():
    """One label a sample, and a loss at every step or of the mean."""
    net, losses = Module().net, []
    batch = [(DATA.train_inputs[:100], DATA.train_labels[:100])]
    membranes = net(batch[0][0]).detach()
    every = torch.stack([F.cross_entropy(step, batch[0][1]) for step in membranes]).mean()
    for options in ({"loss": SF.ce_rate_loss()}, {}):
        found = measure_loss(net, batch, ConvexInitializer(**options))
        assert found.zero / found.weight == pytest.approx(math.log(10))
        losses.append(found.loss / found.weight)
    assert losses == pytest.approx([float(every), float(F.cross_entropy(membranes.mean(0), batch[0][1]))], rel=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


class Sequences(torch.nn.Module):
    """Inputs (T, batch, 64) to membranes at every step."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(64, 48), torch.nn.Linear(48, 10)
        self.lif1, self.lif2 = snn.Leaky(beta=0.9), snn.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x):
        hidden, output, membranes = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for step in x:
            spikes, hidden = self.lif1(self.fc1(step), hidden)
            _, output = self.lif2(self.fc2(spikes), output)
            membranes.append(output)
        return torch.stack(membranes)


@pytest.mark.parametrize("weight", [None, torch.linspace(0.5, 2, 10)])
def test_a_loss_at_every_step_is_summed_over_batches_of_any_length(weight):
    net, options = Sequences(), ConvexInitializer(loss=SF.ce_rate_loss(weight=weight))
    batches = [(DATA.train_inputs[:50].expand(steps, 50, 64), DATA.train_labels[:50]) for steps in (4, 6)]
    one, two = (measure_loss(net, [batch], options) for batch in batches)
    assert measure_loss(net, batches, options) == one.plus(two)


def test_an_inspection_keeps_no_batch_in_memory():
    """It is kept for as long as training takes."""
    net, inputs, inspections = Module().net, DATA.train_inputs[:100].clone(), Inspections()
    storage = StorageWeakRef(inputs.untyped_storage())
    measure_loss(net, [(inputs, DATA.train_labels[:100])], ConvexInitializer(), inspections)
    del inputs
    gc.collect()
    assert storage.expired()


def test_samples_without_weight_give_no_judgement():
    weight = torch.ones(10)
    weight[0] = 0
    inputs, labels = DATA.test_inputs, DATA.test_labels
    val = DataLoader(TensorDataset(inputs[labels == 0], labels[labels == 0]), batch_size=100)
    made = ReconstructionCallback(ConvexInitializer(hidden="keep", loss=torch.nn.CrossEntropyLoss(weight=weight)), max_share=2.0)
    fit(made, val=val, epochs=1)
    assert len(made.reports) == 2
    assert all(not report.replaced for report in made.reports)


@pytest.mark.parametrize("loss", ["logistic", "cross_entropy"])
def test_the_scale_of_class_scores_does_not_count(loss):
    net, batches, options = build_network(64, 48, 10, 8), validation(), ConvexInitializer(hidden="keep", loss=loss, progress=False)
    options.initialize(net, batches)

    def measured():
        return measure_loss(net, batches, options)

    before = measured()
    with torch.no_grad():
        for parameter in net.fc2.parameters():
            parameter.mul_(2)
    after = measured()
    assert after.loss != pytest.approx(before.loss, rel=0.01)
    assert after.judgement() == pytest.approx(before.judgement(), rel=1e-3)


def test_values_have_no_temperature():
    net, inputs, labels = build_network(64, 48, 1, 8), DATA.test_inputs[:100], DATA.test_labels[:100] % 2
    found = measure_loss(net, [(inputs, labels[:, None].float())], ConvexInitializer(loss="squared"))
    assert found.judgement() == found.loss / 100


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


def test_a_process_that_failed_ends_the_run_before_it_begins(monkeypatch):
    def fails(*arguments, **options):
        raise ProcessError("a process that has ended", "all processes", "see that process")

    monkeypatch.setattr(judge_module, "measure_loss", fails)
    with pytest.raises(ProcessError, match="has ended"):
        fit(callback(), val=validation())


def test_a_judge_finds_the_trainer_validating():
    stages = []

    def judge(module):
        stages.append(module.trainer.validating)
        return 0.0

    fit(callback(at_start=False, judge=judge), epochs=1)
    assert stages == [True] * 3


def test_sums_of_batches_give_the_mean():
    total = Sums(1.0, 6.0, 3.0, (3.0, 2.0)).plus(Sums(3.0, 2.0, 1.0, (0.0, 6.0)))
    assert total == Sums(4.0, 8.0, 4.0, (3.0, 8.0))
    assert total.judgement() == 0.75


def test_what_weighs_nothing_has_no_judgement():
    assert math.isnan(Sums().judgement())
