"""LightningModules as people write them: the bare callback reads their training step.

Steps have no assert: what pytest makes of it reads much of pytest, all of which the callback compares at every pass.
"""

import contextlib

import lightning.pytorch as pl
import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
import torchmetrics
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import ReconstructionCallback

from ..helpers import loop_net, train_data
from ..nets import CLASSES, spikes_and_membranes
from ..user_nets.lightning_modules import Critic, LoopInStep, OneHot, Rates, Tutorial5
from .runs import MARKS, fit

pytestmark = [
    *MARKS,
    pytest.mark.usefixtures("no_other_neurons"),
    pytest.mark.filterwarnings("ignore::snn_recon_plugin.errors.ReadoutWarning"),
]


class Body(pl.LightningModule):
    """A net that returns spikes and membranes; its forward is called by the step."""

    def __init__(self):
        super().__init__()
        self.net = loop_net(output=snn.Leaky(beta=0.9), decode=spikes_and_membranes)

    def forward(self, x):
        return self.net(x)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 5e-4)


class EachStep(Body):
    """Tutorial 5: the loss of the membranes at each step."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        _, membranes = self(x.view(len(x), -1))
        loss = torch.zeros(())
        for step in membranes:
            loss = loss + functional.cross_entropy(step, y)
        self.log("loss", loss, prog_bar=True)
        return loss


class Closure(Body):
    """The optimizer runs the loss."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()

        def closure():
            loss = functional.cross_entropy(self(batch[0].flatten(1))[0].sum(0), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            return loss

        with optimizer.toggle_model():
            optimizer.step(closure)
        self.log_dict({"epoch": float(self.trainer.current_epoch)})


class Scheduled(Body):
    """Learning rates, the loader's length and all loggers are read."""

    def training_step(self, batch, batch_idx):
        done = self.trainer.current_epoch + batch_idx / len(self.trainer.train_dataloader)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = 5e-4 * (1 + done)
        torch.testing.assert_close(self.optimizers().optimizer.param_groups[0]["lr"], 5e-4 * (1 + done))
        self.log("rate", self.lr_schedulers().get_last_lr()[0])
        for logger in self.loggers:
            logger.log_metrics({"rate": self.optimizers().param_groups[0]["lr"]})
        return functional.cross_entropy(self(batch[0].flatten(1))[0].sum(0), batch[1]) * (1 + self.global_step)

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


READ = {
    Scheduled: ("CrossEntropyLoss", "spike_count"),
    Closure: ("CrossEntropyLoss", "spike_count"),
    Tutorial5: ("CrossEntropyLoss", "spike_count"),
    LoopInStep: ("ce_rate_loss", "spike_count"),
    Rates: ("mse_count_loss", "spike_count"),
    Critic: ("CrossEntropyLoss", "spike_count"),
    OneHot: ("MSELoss", "spike_rate"),
}


class Counted:
    """A metric of a user's own."""

    def __init__(self):
        self.batches = 0

    def update(self, scores, labels):
        self.right = (scores.argmax(1) == labels).sum()
        self.batches += 1


class ByMetrics(EachStep):
    """Metrics get the membranes, which reset and are trained; spikes are returned beside."""

    def __init__(self):
        super().__init__()
        self.accuracy, self.counted = torchmetrics.Accuracy(task="multiclass", num_classes=CLASSES), Counted()

    def validation_step(self, batch, batch_idx):
        torch.testing.assert_close(self.trainer.validating or self.trainer.state.fn == "fit", True)
        membranes = self(batch[0].flatten(1))[1].mean(0)
        self.counted.update(membranes, batch[1])
        self.accuracy(membranes.softmax(1), batch[1])
        self.log("accuracy", self.accuracy)


class BySpikes(EachStep):
    """Spikes of an integrator are tested, in a step for tests alone."""

    def __init__(self):
        super().__init__()
        self.net = loop_net(output=snn.Leaky(beta=0.9, reset_mechanism="none"), decode=spikes_and_membranes)

    def test_step(self, batch, batch_idx):
        self.log("accuracy", SF.accuracy_rate(self(batch[0].flatten(1))[0], batch[1]))


TESTED = {ByMetrics: "membrane_mean", BySpikes: "spike_count", EachStep: "spike_count"}


def images(shape=(1, 8, 8)):
    inputs, labels = train_data(200)
    return DataLoader(TensorDataset(inputs.view(-1, *shape), labels), 100, shuffle=True)


@pytest.mark.parametrize("kind", READ, ids=lambda kind: kind.__name__)
def test_a_bare_callback_reads_the_training_step(kind):
    loss, readout = READ[kind]
    made = ReconstructionCallback(at_start=True, hidden="keep", strength=1e-3, best_weights=False)
    module, trainer = fit(made, kind(), train=images(getattr(kind, "shape", (1, 8, 8))), epochs=1)
    start = made.reports[0]
    assert (start.loss, start.readout.kind) == (f"{loss} (training_step)", readout)
    assert start.accuracy_after > 0.6
    assert "recon/heldout_after" in trainer.callback_metrics
    assert not {"log", "optimizers", "manual_backward"} & set(vars(module))
    assert module.trainer is trainer


@pytest.mark.parametrize("kind", TESTED, ids=lambda kind: kind.__name__)
def test_a_bare_callback_reads_what_is_tested(kind):
    made = ReconstructionCallback(at_start=True, hidden="keep", strength=1e-3, best_weights=False)
    module, trainer = fit(made, kind(), train=images(), val=images() if "validation_step" in vars(kind) else None, epochs=1)
    start = made.reports[0]
    assert (start.readout.kind, start.accuracy_after > 0.6) == (TESTED[kind], True)
    assert not {"log", "optimizers"} & set(vars(module))
    if kind is ByMetrics:
        assert module.counted.batches == trainer.num_val_batches[0] + trainer.num_sanity_val_steps


def test_a_start_that_decides_well_is_evaluated_whatever_a_squared_loss_of_membranes_says_of_spikes():
    class Squared(EachStep):
        def training_step(self, batch, batch_idx):
            return SF.mse_membrane_loss()(self(batch[0].flatten(1))[1], batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("right", (self(batch[0].flatten(1))[0].sum(0).argmax(1) == batch[1]).float().mean())

    made = ReconstructionCallback(at_start=True, hidden="keep", strength=1e-3, best_weights=False)
    _, trainer = fit(made, Squared(), train=images(), val=images(), epochs=1)
    assert made.reports[0].readout.kind == "spike_count"
    assert float(trainer.callback_metrics["right"]) > 0.6


def test_a_validation_that_raises_leaves_spikes_with_a_warning():
    class Raises(EachStep):
        def validation_step(self, batch, batch_idx):
            self.log("right", batch["image"])

    made = ReconstructionCallback(at_start=True, hidden="keep", strength=1e-3, best_weights=False)
    with pytest.warns(UserWarning, match="The test was not read, and spikes .*raised TypeError"):
        fit(made, Raises(), train=images(), epochs=1)
    assert made.reports[0].readout.kind == "spike_count"


def test_a_step_that_cannot_be_read_leaves_the_forward_with_a_warning():
    class Raises(Body):
        def forward(self, x):
            return self.net(x.flatten(1))

        def training_step(self, batch, batch_idx):
            scores = self(batch[0])[0].sum(0).log_softmax(1)
            if self.raises:
                raise ZeroDivisionError
            return -scores[torch.arange(len(scores)), batch[1]].mean()  # a formula of its own

    for raises, words in ((False, "training_step calls no loss of torch"), (True, "(?s)was not read.*raised ZeroDivisionError")):
        made, module = ReconstructionCallback(at_start=True, hidden="keep", strength=1e-3, best_weights=False), Raises()
        module.raises = raises
        with pytest.warns(UserWarning, match=words), contextlib.suppress(ZeroDivisionError):
            fit(made, module, train=images(), epochs=1)
        assert made.reports[0].loss == "cross_entropy"


def test_a_step_of_the_users_own():
    def step(module, batch):
        return functional.cross_entropy(module(batch[0].flatten(1))[0].sum(0), batch[1], label_smoothing=0.1)

    made = ReconstructionCallback(at_start=True, step=step, hidden="keep", strength=1e-3)
    fit(made, EachStep(), train=images(), epochs=1)
    assert made.reports[0].loss == "CrossEntropyLoss (step)"
