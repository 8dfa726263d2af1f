"""Targets of a training step: tensors of the batch, in another form, or made in the step."""

import math

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional as sj_functional
from spikingjelly.activation_based import neuron
from torch import nn
from torch.nn import functional

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import DataError, NetworkError
from snn_recon_plugin.read.loss_calls import StepWatch

from ..helpers import batches, train_data
from ..nets import BETA, CLASSES, PIXELS
from .steps import QUICK, both, ce

pytestmark = pytest.mark.usefixtures("no_other_neurons")


def test_rows_of_two_levels_stand_for_classes_with_these_targets():
    """As rows of values, which the batch itself holds."""
    nets, levels = [both("none"), both("none")], 0.2 + 1.8 * torch.eye(CLASSES)
    marked = convex_init_(nets[0], batches(300), step=lambda net, b: functional.mse_loss(net(b[0])[1][-1], levels[b[1]]), **QUICK)
    rows = [(inputs, levels[labels]) for inputs, labels in batches(300)]
    given = convex_init_(nets[1], rows, step=lambda net, b: functional.mse_loss(net(b[0])[1][-1], b[1]), **QUICK)
    assert torch.allclose(nets[0].fc2.weight, nets[1].fc2.weight, rtol=1e-3, atol=1e-5)
    assert marked.after.loss == pytest.approx(given.after.loss, rel=1e-3)
    assert marked.accuracy_after > 0.6


@pytest.mark.parametrize("step", [lambda net, b: ce(net(b[0])[0].sum(0), b[1]), None], ids=["step", "bare"])
def test_floating_one_hot_rows_are_classes_for_a_cross_entropy(step):
    nets, rows = [both(), both()], [(inputs, torch.eye(CLASSES)[labels]) for inputs, labels in batches(300, 100)]
    reports = [convex_init_(net, data, step=step, **QUICK) for net, data in zip(nets, (rows, batches(300, 100)), strict=True)]
    assert torch.equal(nets[0].fc2.weight, nets[1].fc2.weight)
    assert reports[0].accuracy_after == reports[1].accuracy_after > 0.6
    with pytest.raises(DataError, match=r"batch 4 of torch\.float32"):
        convex_init_(both(), [*rows, (rows[0][0], rows[0][1] / 2)], step=step, **QUICK)


def test_ignored_labels_of_a_step():
    def step(net, batch):
        masked = torch.where(batch[0].sum(1) % 5 < 1, -1, batch[1])
        return functional.cross_entropy(net(batch[0])[0].sum(0), masked, ignore_index=-1)

    inputs, _ = train_data(300)
    report = convex_init_(both(), batches(300), step=step, **QUICK)
    assert report.program.samples == int((inputs.sum(1) % 5 >= 1).sum())


def test_mixed_targets_are_named():
    def step(net, batch):
        scores = net(batch[0])[0].sum(0)
        return 0.7 * ce(scores, batch[1]) + 0.3 * ce(scores, batch[1].flip(0))

    with pytest.warns(UserWarning, match="2 times for the same scores"):
        convex_init_(both(), batches(300), step=step, **QUICK)


TARGETS = {  # inputs and targets of a batch, and the runs of a step on it: targets, features, and the written net's check
    "of the batch": (lambda x, y: (x, torch.eye(CLASSES)[y]), 2),
    "made": (lambda x, y: (x, x.mean(1, keepdim=True) * torch.eye(CLASSES)[y]), 3),
    "mixed": (lambda x, y: mixed(x, torch.eye(CLASSES)[y]), 3),  # and more to see how far draws differ
}


def mixed(*values):
    order, share = torch.randperm(len(values[0])), float(torch.rand(()))
    return (share * each + (1 - share) * each[order] for each in values)


@pytest.mark.parametrize("name", TARGETS)
def test_targets_of_a_step_that_reads_values_take_one_more_run_with_the_draws_of_the_others(name):
    make, runs = TARGETS[name]
    seen = {}

    def step(net, batch):
        inputs, rows = make(*batch)
        seen.setdefault(float(batch[0].sum()), []).append(rows)
        return functional.mse_loss(net(inputs)[1].mean(0), rows)

    loader = batches(600, 100)
    convex_init_(both("none"), loader, step=step, **QUICK)
    for inputs, _ in loader[-2:]:  # behind those that are read and inspected
        first, *others = seen[float(inputs.sum())]
        assert len(others) + 1 == runs or name == "mixed"
        assert all(torch.equal(first, other) for other in others[: runs - 1])


def of_the_batch(net, batch):
    return functional.mse_loss(net(batch[0])[1].mean(0), batch[1])


def made(net, batch):
    return functional.mse_loss(net(batch[0])[1].mean(0), batch[0].mean(1, keepdim=True) * batch[1])


def drawn(net, batch):
    shifts = torch.rand(len(batch[0]), 1)
    return functional.mse_loss(net(batch[0] * shifts)[1].mean(0), shifts * batch[1])


def drawn_by_python(net, batch):
    assert float(batch[1].sum()) > 0  # no record of a pass holds a value that Python reads
    return drawn(net, batch)


def rows_of_values(count):
    return [(inputs, torch.eye(CLASSES)[labels]) for inputs, labels in batches(count, 100)]


@pytest.fixture
def runs(monkeypatch):
    """Count the runs of steps, without a change of the steps themselves, which would keep their passes from being planned."""
    counted, run = [], StepWatch.run
    monkeypatch.setattr(StepWatch, "run", lambda *args: (counted.append(1), run(*args))[1])
    return counted


def test_made_targets_take_as_many_runs_for_any_number_of_batches(runs):
    """The runs of the first 256 samples, of another batch, and of one that is recorded; then a plan makes them without the net."""
    more = []
    for count in (500, 900):
        numbers = []
        for step in (of_the_batch, made):
            runs.clear()
            convex_init_(both("none"), rows_of_values(count), step=step, **QUICK)
            numbers.append(len(runs))
        more.append(numbers[1] - numbers[0])
    assert more == [5, 5]


def test_planned_targets_have_the_draws_of_their_inputs():
    nets = [both("none"), both("none")]
    for net, step in zip(nets, (drawn, drawn_by_python), strict=True):
        convex_init_(net, rows_of_values(600), step=step, **QUICK)
    assert torch.allclose(nets[0].fc2.weight, nets[1].fc2.weight, rtol=1e-4, atol=1e-6)


def test_targets_that_a_step_makes_of_folded_samples():
    """No axis of the batch's tensors counts the samples."""
    folded = [(inputs.unflatten(0, (2, -1)), labels.unflatten(0, (2, -1))) for inputs, labels in batches(300, 100)]
    found = []
    for data in (folded, batches(300, 100)):

        def step(net, batch):
            inputs, labels = batch[0].reshape(-1, PIXELS), batch[1].flatten()
            return functional.mse_loss(net(inputs)[1].mean(0), inputs.mean(1, keepdim=True) * torch.eye(CLASSES)[labels])

        found.append(convex_init_(both("none"), data, step=step, **QUICK).after.loss)
    assert found[0] == pytest.approx(found[1])


def test_rows_of_several_labels_are_values_though_the_first_batch_has_one_in_each():
    inputs, labels = train_data(300)
    rows = torch.eye(CLASSES)[labels]
    rows[100:, 0] = 1.0
    data = list(zip(inputs.split(100), rows.split(100), strict=True))
    report = convex_init_(both("none"), data, step=lambda net, b: functional.mse_loss(net(b[0])[1].mean(0), b[1]), **QUICK)
    assert math.isnan(report.after.accuracy)


# -- targets at every step ---------------------------------------------------------------------------------------------------------
class EachStep(nn.Module):
    """A net of sequences (B, T, 8) whose membranes are scores at every step."""

    def __init__(self, outputs):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 40), nn.Linear(40, outputs)
        self.lif1, self.lif2 = snn.Leaky(beta=BETA), snn.Leaky(beta=BETA, reset_mechanism="none")

    def forward(self, x):
        hidden, membrane, membranes = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for step in x.unbind(1):
            spikes, hidden = self.lif1(self.fc1(step), hidden)
            membrane = self.lif2(self.fc2(spikes), membrane)[1]
            membranes.append(membrane)
        return torch.stack(membranes)


class AllSteps(nn.Module):
    """The same with neurons that get all steps at once, and membranes that no neuron returns."""

    def __init__(self, outputs):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 40), nn.Linear(40, outputs)
        self.lif1 = neuron.LIFNode(tau=2.0, v_threshold=0.2, step_mode="m")
        self.lif2 = neuron.LIFNode(tau=2.0, v_threshold=1e6, step_mode="m", store_v_seq=True)

    def forward(self, x):
        sj_functional.reset_net(self)
        self.lif2(self.fc2(self.delayed(self.lif1(self.fc1(x.transpose(0, 1))))))
        return self.lif2.v_seq

    def delayed(self, spikes):
        return spikes


class OneStepLate(AllSteps):
    """Spikes of the last step change no score."""

    def delayed(self, spikes):
        return torch.cat([torch.zeros_like(spikes[:1]), spikes[:-1]])


class Balanced(AllSteps):
    """The sum of the scores does not change with spikes, as behind a quantised readout of two classes."""

    def __init__(self, outputs):
        super().__init__(outputs)
        if outputs > 1:
            self.fc2.weight.data[-1] = -self.fc2.weight.data[:-1].sum(0)


class Zero(AllSteps):
    """No score changes with spikes."""

    def __init__(self, outputs):
        super().__init__(outputs)
        nn.init.zeros_(self.fc2.weight)


def step_losses(net, batch):
    loss = functional.mse_loss if batch[1].is_floating_point() else ce
    return sum(loss(scores, batch[1][:, step]) for step, scores in enumerate(net(batch[0])))


AT_EACH_STEP = {
    "labels, time first": (3, lambda net, b: ce(net(b[0]).flatten(0, 1), b[1].T.flatten())),
    "labels, samples first": (3, lambda net, b: ce(net(b[0]).transpose(0, 1).reshape(-1, 3), b[1].flatten())),
    "labels, time last": (3, lambda net, b: ce(net(b[0]).permute(1, 2, 0), b[1])),
    "values, targets swapped": (1, lambda net, b: functional.mse_loss(net(b[0]), b[1].transpose(0, 1))),
    "values, scores swapped": (1, lambda net, b: functional.mse_loss(net(b[0]).transpose(0, 1), b[1])),
    "values without an axis of outputs": (1, lambda net, b: functional.mse_loss(net(b[0]).squeeze(2).T, b[1].squeeze(2))),
    "the same, time first": (1, lambda net, b: functional.huber_loss(net(b[0]).squeeze(2), b[1].squeeze(2).T, delta=50.0)),
}


NETS = [(EachStep, 200), (EachStep, 6), (EachStep, 1), (AllSteps, 200), (AllSteps, 6), (OneStepLate, 6), (Balanced, 6)]


@pytest.mark.parametrize(("make_net", "size"), NETS, ids=[f"{net.__name__}, {size} samples of 6 steps" for net, size in NETS])
@pytest.mark.parametrize("name", AT_EACH_STEP)
def test_targets_at_every_step_are_those_of_a_loop_over_them(name, make_net, size):
    outputs, step = AT_EACH_STEP[name]
    inputs = torch.rand(198 if size > 1 else 90, 6, 8, generator=torch.Generator().manual_seed(0))
    sums = inputs.cumsum(1)
    targets = sums[..., :3].argmax(2) if outputs > 1 else sums[..., :1] - 3
    data = list(zip(inputs.split(size), targets.split(size), strict=True))
    found = []
    for each in (step, step_losses):
        torch.manual_seed(0)
        found.append(convex_init_(make_net(outputs), data, step=each, **QUICK))
    assert [report.readout.kind for report in found] == ["membrane_per_step"] * 2
    share = 0.85 if size > 1 and make_net is not OneStepLate else 1.0  # of the loss: fewer samples and late spikes decide worse
    assert found[0].after.loss == found[1].after.loss < share * found[0].before.loss


class TimeLast(EachStep):
    def forward(self, x):
        return super().forward(x).permute(1, 2, 0)


class SamplesFirst(EachStep):
    def forward(self, x):
        return super().forward(x)[..., 0].T


PLAIN = {  # nets, and what a step passes to their losses as it is: targets (B, T) or (B, T, 1), changed
    "labels, time last": (TimeLast, 3, lambda targets: targets),
    "one-hot rows, time last": (TimeLast, 3, lambda targets: torch.eye(3)[targets].transpose(1, 2)),
    "values, time first": (EachStep, 1, lambda targets: targets.transpose(0, 1)),
    "values without an axis of outputs": (SamplesFirst, 1, lambda targets: targets[..., 0]),
}


@pytest.mark.parametrize("size", [200, 6], ids=["", "as many samples as steps"])
@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_step_is_read_as_a_loop_over_the_steps_and_so_is_its_smaller_last_batch(name, size):
    make_net, outputs, changed = PLAIN[name]
    inputs = torch.rand(196, 6, 8, generator=torch.Generator().manual_seed(0))
    targets = inputs[..., :3].cumsum(1).argmax(2) if outputs > 1 else inputs.cumsum(1)[..., :1] - 3
    parts, loss, found = (
        list(zip(inputs.split(size), targets.split(size), strict=True)),
        ce if outputs > 1 else functional.mse_loss,
        [],
    )
    for make, data, step in (
        (make_net, [(x, changed(y)) for x, y in parts], lambda net, batch: loss(net(batch[0]), batch[1])),
        (EachStep, parts, step_losses),
    ):
        torch.manual_seed(0)
        found.append(convex_init_(make(outputs), data, step=step, **QUICK).after.loss)
    assert found[0] == found[1]


def test_scores_that_change_with_no_step_have_their_time_axis_by_their_shape_or_are_refused():
    inputs = torch.rand(60, 6, 8, generator=torch.Generator().manual_seed(0))
    data, found = list(zip(inputs.split(12), (inputs.cumsum(1)[..., :1] - 3).split(12), strict=True)), []
    for step in (step_losses, AT_EACH_STEP["values, scores swapped"][1]):
        torch.manual_seed(0)
        found.append(convex_init_(Zero(1), data, step=step, **QUICK).after.loss)
    assert found[0] == found[1]
    labels = inputs[..., :3].cumsum(1).argmax(2)
    with pytest.raises(NetworkError, match=r"tensor \[60, 3\]"):
        convex_init_(Zero(3), [(inputs[:10], labels[:10])], step=AT_EACH_STEP["labels, samples first"][1], **QUICK)
