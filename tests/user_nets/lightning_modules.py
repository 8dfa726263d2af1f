"""Lightning modules as users write them, each with its own training step and its own test."""

from functools import partial

import lightning.pytorch as pl
import norse.torch as norse
import snntorch.functional as SF
import torch
from snntorch import spikegen, utils
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from torch.nn import functional as F
from torch.optim import Adam

from ..nets import step_through
from .norse_nets import step_cells
from .record import Sizes
from .snntorch_nets import Loop, leaky, sequential

STEPS, HIDDEN, CLASSES, EVENT_STEPS = 10, 200, 10, 6
RATE = 5e-4


def plain(inputs=64, outputs=CLASSES, reset="subtract", steps=STEPS, at=lambda x, step: x):
    """Spikes and membranes of all steps."""
    return Loop(inputs, steps, leaky, leaky(reset_mechanism=reset), sizes=(HIDDEN, outputs), at=at)


def stateful():
    """Neurons keep their states; a script's loop calls it once a step."""
    return sequential("subtract", Sizes(hidden=HIDDEN, classes=CLASSES))


def over_steps(net, x):
    return torch.stack([net(x)[0] for _ in range(STEPS)])


def frame(x, step):
    return x[step]


class Convolutions(nn.Module):
    """Spikes of all steps, from events ``[T, B, 2, 8, 8]``."""

    def __init__(self):
        super().__init__()
        self.conv, self.lif1 = nn.Conv2d(2, 8, 3, padding=1), leaky()
        self.fc, self.lif2 = nn.Linear(128, CLASSES), leaky()

    def forward(self, x):
        synapses = lambda frame: F.max_pool2d(self.conv(frame), 2), lambda spikes: self.fc(spikes.flatten(1))
        return step_through(x, synapses, (self.lif1, self.lif2))[0]


class NorseCells(nn.Module):
    """Voltages of all steps."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(64, HIDDEN, bias=False), norse.LIFCell(norse.LIFParameters(alpha=torch.tensor(100.0)))
        self.out, self.li = nn.Linear(HIDDEN, CLASSES, bias=False), norse.LICell()

    def forward(self, x):
        return step_cells(x, (self.fc, self.out), (self.lif, self.li))


def norse_states():
    return norse.SequentialState(nn.Linear(64, HIDDEN), norse.LIFCell(), nn.Linear(HIDDEN, CLASSES), norse.LICell())


def jelly():
    first, last = (neuron.LIFNode(surrogate_function=surrogate.ATan()) for _ in range(2))
    net = nn.Sequential(layer.Linear(64, HIDDEN), first, layer.Linear(HIDDEN, CLASSES), last)
    functional.set_step_mode(net, "m")
    return net


class Output:
    """Loss and logits, as transformers return them."""

    def __init__(self, loss, logits):
        self.loss, self.logits = loss, logits


def stacked(samples):
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(labels)


def as_dictionary(samples):
    return dict(zip(("image", "label"), stacked(samples), strict=True))


def as_rows(samples):
    """``[T, B, 8]``: a row of the image a step."""
    images, labels = stacked(samples)
    return images.view(-1, 8, 8).transpose(0, 1), labels


def as_events(samples):
    """``[T, B, 2, 8, 8]``: events of bright and of dark pixels."""
    images, labels = stacked(samples)
    bright = images.view(-1, 1, 8, 8)
    drawn = torch.rand((EVENT_STEPS, len(bright), 2, 8, 8), generator=torch.Generator().manual_seed(0))
    return (drawn < torch.cat([bright, 1 - bright], 1)).float(), labels


class Base(pl.LightningModule):
    """The digits as flat images, Adam, and a test that counts spikes."""

    shape, collate, make = (64,), staticmethod(stacked), staticmethod(plain)

    def __init__(self):
        super().__init__()
        self.net = self.make()

    def forward(self, x):
        return self.net(x)

    def scores(self, batch):
        return self(batch[0])[0].sum(0)

    def validation_step(self, batch, batch_idx):
        labels = batch["label"] if isinstance(batch, dict) else batch[1]
        self.log("score", (self.scores(batch).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return Adam(self.parameters(), RATE)


class Tutorial5(Base):
    """Tutorial 5: flattened in the module, cross-entropy of the membranes at every step, tested by spikes."""

    shape = (1, 8, 8)

    def forward(self, x):
        return self.net(x.view(x.size(0), -1))

    def training_step(self, batch, batch_idx):
        _, membranes = self(batch[0])
        loss, loss_fn = torch.zeros(()), nn.CrossEntropyLoss()
        for step in range(STEPS):
            loss = loss + loss_fn(membranes[step], batch[1])
        return loss


class LoopInStep(Base):
    """A Sequential whose neurons keep their states; the time loop is in the step."""

    make = staticmethod(stateful)

    def scores(self, batch):
        return self.run(batch[0]).sum(0)

    def run(self, x):
        utils.reset(self.net)
        return over_steps(self.net, x)

    def training_step(self, batch, batch_idx):
        return SF.ce_rate_loss()(self.run(batch[0]), batch[1])


class Rates(Base):
    """A rate code is drawn in a function that training and validation share; a loss of counts."""

    make = partial(plain, at=frame)

    def shared(self, batch):
        return self(spikegen.rate(batch[0], num_steps=STEPS))[0]

    def scores(self, batch):
        return self.shared(batch).sum(0)

    def training_step(self, batch, batch_idx):
        return SF.mse_count_loss(0.8, 0.2)(self.shared(batch), batch[1])


class NorseMaximum(Base):
    """Norse: the image repeated over time in the step, maximum over time, log_softmax and nll_loss."""

    make = NorseCells

    def scores(self, batch):
        return F.log_softmax(self(3 * batch[0].expand(20, *batch[0].shape)).max(0).values, dim=1)

    def training_step(self, batch, batch_idx):
        return F.nll_loss(self.scores(batch), batch[1])


class Dictionaries(Base):
    """Batches are dictionaries that forward takes whole; label smoothing."""

    collate, make = staticmethod(as_dictionary), partial(plain, reset="none")

    def forward(self, batch):
        return self.net(batch["image"])[1].mean(0)

    def scores(self, batch):
        return self(batch)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch), batch["label"], label_smoothing=0.1)


class RowsOverTime(Base):
    """Rows of the image over time, time first; a loss of counts."""

    collate, make = staticmethod(as_rows), partial(plain, 8, steps=8, at=frame)

    def training_step(self, batch, batch_idx):
        return SF.ce_count_loss()(self(batch[0])[0], batch[1])


class Regression(Base):
    """Regression on the last membrane; its score is an error."""

    make = partial(plain, outputs=1, reset="none")

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self(batch[0])[1][-1].squeeze(1), batch[1].float())

    def validation_step(self, batch, batch_idx):
        self.log("score", self.training_step(batch, batch_idx))


class OneHot(Base):
    """One-hot targets are made in the step; squared error of firing rates."""

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self(batch[0])[0].mean(0), F.one_hot(batch[1], CLASSES).float())


class TwoOptimizers(Base):
    """Manual optimization with two optimizers, of the hidden layer and of the readout."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        loss = SF.ce_count_loss()(self(batch[0])[0], batch[1])
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(loss)
        first.step()
        second.step()
        self.log("train", loss)

    def configure_optimizers(self):
        return [Adam(part.parameters(), RATE) for part in (self.net.fc1, self.net.fc2)]


class Critic(Base):
    """A critic trains on noise before the classifier does, as in a GAN."""

    def __init__(self):
        super().__init__()
        self.critic, self.automatic_optimization = nn.Linear(64, 1), False

    def training_step(self, batch, batch_idx):
        (first, second), judge = self.optimizers(), F.binary_cross_entropy_with_logits
        made, real = self.critic(torch.rand_like(batch[0])), self.critic(batch[0])
        second.zero_grad()
        self.manual_backward(judge(made, torch.zeros_like(made)) + judge(real, torch.ones_like(real)))
        second.step()
        first.zero_grad()
        self.manual_backward(F.cross_entropy(self.scores(batch), batch[1]))
        first.step()

    def configure_optimizers(self):
        return [Adam(part.parameters(), RATE) for part in (self.net, self.critic)]


class SmoothedCounts(nn.Module):
    """Loss of a user's own that calls one of torch."""

    def forward(self, spikes, labels):
        return F.cross_entropy(spikes.sum(0), labels, label_smoothing=0.05)


class LossClass(Base):
    """A loss class of its own, and a step that returns a dictionary and logs beside."""

    def training_step(self, batch, batch_idx):
        loss = SmoothedCounts()(self(batch[0])[0], batch[1])
        if self.logger:
            self.logger.experiment.add_scalar("loss", loss, self.global_step)
        self.log("train", loss, prog_bar=True, on_epoch=True)
        return {"loss": loss, "samples": len(batch[1])}


class Auxiliary(Base):
    """A penalty on firing rates, and a second head."""

    make = partial(plain, reset="none")

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, CLASSES)

    def scores(self, batch):
        return self(batch[0])[1].mean(0)

    def training_step(self, batch, batch_idx):
        spikes, membranes = self(batch[0])
        loss = F.cross_entropy(membranes.mean(0), batch[1])
        return loss + 0.1 * spikes.mean() + 0.1 * F.cross_entropy(self.head(batch[0]), batch[1])


class Masked(Base):
    """A fifth of the labels is ignored."""

    make = partial(plain, reset="none")

    def scores(self, batch):
        return self(batch[0])[1].mean(0)

    def training_step(self, batch, batch_idx):
        labels = torch.where(batch[0].sum(1) % 5 < 1, -1, batch[1])
        return F.cross_entropy(self.scores(batch), labels, ignore_index=-1)


class Events(Base):
    """Events of bright and of dark pixels, time first."""

    collate, make = staticmethod(as_events), Convolutions

    def scores(self, batch):
        return self(batch[0]).sum(0)

    def training_step(self, batch, batch_idx):
        return SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)(self(batch[0]), batch[1])


class Jelly(Base):
    """SpikingJelly in step mode "m": squared error of firing rates, and a reset in the step."""

    make = staticmethod(jelly)

    def scores(self, batch):
        rates = self.net(batch[0].unsqueeze(0).repeat(8, 1, 1)).mean(0)
        functional.reset_net(self.net)
        return rates

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.scores(batch), F.one_hot(batch[1], CLASSES).float())


class NorseSequential(Base):
    """Norse's SequentialState, the loop inside the step, and the mean of its voltages."""

    make = staticmethod(norse_states)

    def scores(self, batch):
        state, voltages = None, []
        for _ in range(STEPS):
            voltage, state = self.net(4 * batch[0], state)
            voltages.append(voltage)
        return torch.stack(voltages).mean(0)

    def training_step(self, batch, batch_idx):
        return nn.CrossEntropyLoss()(self.scores(batch), batch[1])


class ResetInHook(Base):
    """The loss divided as for accumulated batches, and a reset in a hook."""

    make = staticmethod(stateful)

    def on_train_batch_start(self, batch, batch_idx):
        utils.reset(self.net)

    def on_validation_batch_start(self, batch, batch_idx):
        utils.reset(self.net)

    def scores(self, batch):
        return over_steps(self.net, batch[0]).sum(0)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.scores(batch), batch[1]) / 4


class Objects(Base):
    """Forward takes the labels, and returns an object with loss and logits."""

    def forward(self, x, labels=None):
        logits = self.net(x)[0].sum(0)
        return Output(F.cross_entropy(logits, labels), logits)

    def scores(self, batch):
        return self(batch[0], labels=batch[1]).logits

    def training_step(self, batch, batch_idx):
        return self(batch[0], labels=batch[1]).loss


class Mixup(Base):
    """Inputs and targets are mixed in pairs."""

    def training_step(self, batch, batch_idx):
        (x, labels), share = batch, float(torch.distributions.Beta(0.4, 0.4).sample())
        other = torch.randperm(len(x))
        scores = self(share * x + (1 - share) * x[other])[0].sum(0)
        return share * F.cross_entropy(scores, labels) + (1 - share) * F.cross_entropy(scores, labels[other])


MODULES = (
    *(Tutorial5, LoopInStep, Rates, NorseMaximum, Dictionaries, RowsOverTime, Regression, OneHot, TwoOptimizers, Critic, LossClass),
    *(Auxiliary, Masked, Events, Jelly, NorseSequential, ResetInHook, Objects, Mixup),
)
