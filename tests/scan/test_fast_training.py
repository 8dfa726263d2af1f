"""Faster steps in training: the callback and the guard of a plain loop."""

import copy

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from snntorch import utils
from torch.nn import functional

from snn_recon_plugin.scan.installed import FastPass
from snn_recon_plugin.scan.plan import PassPlan
from snn_recon_plugin.training.module_step import FastModuleStep

from ..nets import sequential_net, shallow, spikes_and_membranes
from ..training.runs import MARKS, READ, STEPS, Module, callback, fit, trained
from ..training.test_guard import adam, epoch, started

pytestmark = [*MARKS, pytest.mark.usefixtures("no_other_neurons")]


def is_faster(net):
    return any("forward" in vars(module) for module in net.modules())


class Noted(Module):
    """Notes whether layers of its net have a forward of their own at each step."""

    def __init__(self):
        super().__init__()
        self.faster = []

    def training_step(self, batch, batch_idx):
        self.faster.append(is_faster(self.net))
        return super().training_step(batch, batch_idx)


def test_the_callback_trains_as_without_also_in_a_resumed_run(tmp_path):
    runs = [trained(tmp_path / str(fast), callback(fast=fast), kind=Noted, epochs=2)[0] for fast in (False, True)]
    assert runs[1].losses == pytest.approx(runs[0].losses, rel=1e-3)
    assert [{*run.faster} for run in runs] == [{False}, {True}]
    assert not is_faster(runs[1].net)
    resumed, _ = trained(tmp_path / "True", callback(fast=True), kind=Noted, epochs=3, ckpt_path=tmp_path / "True" / "epoch=1.ckpt")
    assert resumed.faster == [True] * 8


def test_without_a_word_a_run_of_enough_steps_is_faster(tmp_path, monkeypatch):
    runs = []
    for number, least in enumerate((9, 8)):
        monkeypatch.setattr("snn_recon_plugin.callback._LONG", least)
        runs.append(trained(tmp_path / str(number), callback(), kind=Noted, epochs=1)[0])
    assert [{*run.faster} for run in runs] == [{False}, {True}]
    assert len(runs[0].faster) == 8


class SpikingOutputs(Noted):
    """Trains on the membranes of neurons that reset, and returns their spikes too, as snnTorch's tutorial 5."""

    def __init__(self):
        super().__init__()
        self.net = shallow(spikes_and_membranes, steps=STEPS, reset_mechanism="subtract")

    def training_step(self, batch, batch_idx):
        self.faster.append(is_faster(self.net))
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val", self.loss(batch))

    def loss(self, batch):
        return torch.stack([functional.cross_entropy(step, batch[1]) for step in self.net(batch[0])[1]]).sum()


def test_spikes_that_decide_beside_the_loss_leave_steps_fast(tmp_path):
    run, _ = trained(tmp_path, callback(of=READ, fast=True), kind=SpikingOutputs, epochs=1)
    assert {*run.faster} == {True}


def test_the_guard_takes_faster_steps_until_it_is_closed():
    nets = []
    for fast in (False, True):
        net, report = started()
        optimizer = adam(net)
        with report.protect(optimizer, fast=fast):
            assert is_faster(net) is fast
            epoch(net, optimizer)
        assert not is_faster(net)
        nets.append(net)
    torch.testing.assert_close(*(list(net.parameters()) for net in nets), rtol=1e-3, atol=1e-4)


class Outside(Module):
    """Its time loop is in the training step."""

    def __init__(self):
        super().__init__(net=sequential_net(reset_mechanism="subtract"))

    def on_train_batch_start(self, *rest):
        """Keep no weights."""

    def loss(self, batch):
        utils.reset(self.net)
        scores = torch.stack([self.net(batch[0])[1] for _ in range(STEPS)]).mean(0)
        return functional.cross_entropy(scores, batch[1])

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss, prog_bar=True)
        self.log_dict({"twice": 2 * loss.detach()})
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val", self.loss(batch))


class ByBatch(Outside):
    def training_step(self, batch, batch_idx):
        return (1 if batch_idx else 2) * self.loss(batch)


class ByEpoch(Outside):
    def training_step(self, batch, batch_idx):
        return self.weight() * self.loss(batch)

    def weight(self):
        return 1 / (1 + self.current_epoch)


def weight_of(module):
    return module.share


class ByFunction(Outside):
    @property
    def share(self):
        return 1 / (1 + self.trainer.current_epoch)

    def training_step(self, batch, batch_idx):
        return weight_of(self) * self.loss(batch)


class ByMetric(Outside):
    def __init__(self):
        super().__init__()
        self.meter = torchmetrics.MeanMetric()

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.meter(loss.detach())
        return loss


class ByAll(Outside):
    def training_step(self, *given):
        return (1 if given[1:] else 2) * self.loss(given[0])


class Manual(Outside):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        self.manual_backward(self.loss(batch))
        self.optimizers().step()


class Logged(pl.Callback):
    """Notes what is logged after each step."""

    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, module, *rest):
        self.found.append([float(trainer.callback_metrics[name]) for name in ("loss", "twice")])


def passes_of_plans(monkeypatch):
    """Return a list that grows at each pass of a plan: whether the pass has gradients."""
    run, found = PassPlan.run, []

    def noted(plan, inputs, **options):
        found.append(torch.is_grad_enabled())
        return run(plan, inputs, **options)

    monkeypatch.setattr(PassPlan, "run", noted)
    return found


def test_a_loop_in_the_training_step_runs_by_plans_and_logs_as_before(tmp_path, monkeypatch):
    runs, passes = [], passes_of_plans(monkeypatch)
    for fast in (False, True):
        logged = Logged()
        passes.clear()
        module, _ = trained(tmp_path / str(fast), callback(of=READ, fast=fast), kind=Outside, epochs=2, beside=[logged])
        runs.append(torch.tensor(logged.found))
        assert "training_step" not in vars(module)
    assert sum(passes) >= 15  # 16 steps, of which the first is recorded
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(runs[1][:, 1], 2 * runs[1][:, 0])


IN_STEP = "its time loop is in training_step, and its "


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (ByBatch, f"{IN_STEP}training_step reads batch_idx"),
        (ByEpoch, f"{IN_STEP}training_step reads current_epoch"),
        (ByFunction, f"{IN_STEP}training_step reads current_epoch, trainer"),
        (ByAll, f"{IN_STEP}training_step is no function of batch and batch_idx"),
        (Manual, f"{IN_STEP}optimization is manual"),
        (ByMetric, "it takes a tensor that is neither made in the pass"),
    ],
)
def test_a_training_step_that_depends_on_more_than_its_batch_runs_as_it_is_written(kind, reason):
    with pytest.warns(UserWarning, match=f"fast=True changes nothing for this Sequential: {reason}"):
        module, _ = fit(callback(of=READ, fast=True, at_start=False), kind, epochs=1, limit_train_batches=1)
    assert "training_step" not in vars(module)


def test_attributes_that_the_training_step_does_not_read_may_change(tmp_path, monkeypatch):
    class Keeps(Outside):
        def __init__(self):
            super().__init__()
            self.scale = 1.0

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.seen.append(0)
            self.scale = 1.0 if batch_idx < 4 else 2.0

        def loss(self, batch):
            return self.scale * super().loss(batch)

    recorded = []
    record = FastPass.record
    monkeypatch.setattr(FastPass, "record", lambda self, *given: recorded.append(self) or record(self, *given))
    trained(tmp_path, callback(of=READ, fast=True), kind=Keeps, epochs=2)
    assert max(map(recorded.count, recorded)) == 2  # for each scale, not for each length of the list


def test_copies_of_a_module_with_faster_steps_have_its_own():
    module = Outside()
    vars(module)["training_step"] = FastModuleStep(module)
    copied = copy.deepcopy(module)
    assert copied.training_step.__self__ is copied
    assert copied.training_step.__func__ is Outside.training_step
