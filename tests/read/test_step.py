"""Options read from a training step: what the loss gets is the score, and where its second argument comes from is the target."""

from functools import partial

import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
import torchmetrics
from snntorch import spikegen
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from snn_recon_plugin import convex_init_, diagnose, fast_steps, hidden_init_, refit_, statistics_of
from snn_recon_plugin.errors import DataError, NetworkError, OptionError
from snn_recon_plugin.options import Options
from snn_recon_plugin.read.step import read_first

from ..helpers import batches, data_loader, loop_net, snapshot, test_data, train_data, values
from ..nets import BETA, CLASSES, STEPS
from .steps import (
    QUICK,
    AtOnce,
    both,
    ce,
    dictionaries,
    images,
    looped,
    membranes_at_each_step,
    outside,
    repeated,
    run,
    spikes,
    time_first,
    trains,
    voters,
)

pytestmark = pytest.mark.usefixtures("no_other_neurons")


class WithLoss(nn.Module):
    """Returns its loss beside its scores."""

    def __init__(self):
        super().__init__()
        self.net = both()

    def forward(self, image, label):
        scores = self.net(image)[0].sum(0)
        return {"loss": functional.cross_entropy(scores, label), "logits": scores}


def own_formula(scores, labels):
    return -scores.log_softmax(1).gather(1, labels[:, None]).mean()


def mean_membrane(net, x):
    return net(x)[1].mean(0)


def penalised(net, batch):
    counts = net(batch[0])[0]
    penalties = (
        functional.mse_loss(counts.mean(), torch.tensor(0.1)),
        functional.mse_loss(counts.mean((0, 1)), torch.full((10,), 0.1)),
    )
    return sum(penalties) + ce(counts.sum(0), batch[1])


def weighs_both(net, batch):
    counts, membranes = net(batch[0])
    return ce(counts.sum(0), batch[1]) + 0.3 * ce(membranes.mean(0), batch[1])


def penalised_alike(net, batch):
    scores, rows = net(batch[0])[1].mean(0), functional.one_hot(batch[1], CLASSES).float()
    return 0.01 * functional.mse_loss(scores, torch.full_like(scores, 0.1)) + functional.mse_loss(scores + 0, rows)


integrators = partial(both, "none")


def row(step, kind, scores=spikes, net=both, loader=batches):
    """A step, the readout that is solved, the user's scores for pixels, net, and loader."""
    return step, kind, scores, net, loader


STEPS_OF_USERS = {
    "counts of spikes": row(lambda net, b: ce(net(b[0])[0].sum(0), b[1]), "spike_count"),
    "images that the step flattens": row(lambda net, b: ce(net(b[0].flatten(1))[0].sum(0), b[1]), "spike_count", loader=images),
    "a function that trains": row(trains, "spike_count"),
    "membranes that reset at each step": row(membranes_at_each_step, "spike_count"),
    "membranes at each step": row(membranes_at_each_step, "membrane_per_step", mean_membrane, integrators),
    "all steps as samples, time first": row(
        lambda net, b: ce(net(b[0])[1].flatten(0, 1), b[1].repeat(STEPS)), "membrane_per_step", mean_membrane, integrators
    ),
    "all steps as samples, samples first": row(
        lambda net, b: ce(net(b["image"])[1].transpose(0, 1).flatten(0, 1), b["label"].repeat_interleave(STEPS)),
        *("membrane_per_step", mean_membrane, integrators, dictionaries),
    ),
    "all steps on the last axis": row(
        lambda net, b: ce(net(b[0])[1].permute(1, 2, 0), b[1][:, None].expand(-1, STEPS)), "spike_count"
    ),
    "membranes that reset, where a test sees nothing else": row(
        lambda net, b: ce(net(b[0]).mean(0), b[1]),
        *("membrane_mean", lambda net, x: net(x).mean(0)),
        lambda: loop_net(output=snn.Leaky(beta=BETA), decode=lambda _, membranes: membranes),
    ),
    "the largest membrane, log_softmax and nll_loss": row(
        lambda net, b: functional.nll_loss(net(b[0])[1].amax(0).log_softmax(1), b[1]),
        *("membrane_max", lambda net, x: net(x)[1].amax(0), integrators),
    ),
    "rates of spikes, log_softmax and nll_loss": row(
        lambda net, b: functional.nll_loss(net(b[0])[0].mean(0).log_softmax(1), b[1]), "spike_rate"
    ),
    "a time loop": row(lambda net, b: SF.ce_rate_loss()(run(net, repeated(b[0])), b[1]), "spike_count", looped, outside),
    "rates drawn in the step": row(
        lambda net, b: SF.mse_count_loss(0.8, 0.2)(run(net, spikegen.rate(b[0].clamp(0, 1), STEPS)), b[1]),
        *("spike_count", looped, outside),
    ),
    "time first": row(lambda net, b: SF.ce_count_loss()(run(net, b[0]), b[1]), "spike_count", looped, outside, time_first),
    "dictionaries": row(
        lambda net, b: functional.cross_entropy(net(b["image"])[0].sum(0), b["label"], label_smoothing=0.1),
        "spike_count",
        loader=dictionaries,
    ),
    "one-hot rows made in the step": row(
        lambda net, b: functional.mse_loss(net(b[0])[0].mean(0), functional.one_hot(b[1], CLASSES).float()), "spike_rate"
    ),
    "rows of two values made in the step": row(
        lambda net, b: functional.mse_loss(net(b[0])[1][-1], 2.5 * functional.one_hot(b[1], CLASSES) - 0.5),
        *("membrane_last", lambda net, x: net(x)[1][-1], integrators),
    ),
    "spikes of the last steps": row(
        lambda net, b: ce(net(b[0])[0][-3:].sum(0), b[1]), "custom_spikes", lambda net, x: net(x)[0][-3:].sum(0)
    ),
    "spike times": row(
        lambda net, b: SF.ce_temporal_loss()(net(b[0])[0], b[1]),
        *("first_spike", lambda net, x: -(net(x)[0].cumsum(0) == 0).sum(0)),
    ),
    "outputs that vote": row(
        lambda net, b: ce(nn.AvgPool1d(4)(net(b[0])[0]).mean(0), b[1]),
        *("spike_count", lambda net, x: net(x)[0].sum(0).unflatten(1, (CLASSES, 4)).sum(2), voters),
    ),
    "a formula of its own, of counts": row(lambda net, b: own_formula(net(b[0])[0].sum(0), b[1]), "spike_count", net=integrators),
    "a formula of its own, of the last membrane": row(
        lambda net, b: own_formula(net(b[0])[1][-1], b[1]), "membrane_last", lambda net, x: net(x)[1][-1], integrators
    ),
    "a formula of its own, of the largest membrane": row(
        lambda net, b: own_formula(net(b[0])[1].amax(0), b[1]), "membrane_max", lambda net, x: net(x)[1].amax(0), integrators
    ),
    "a formula of its own, of mean membranes": row(
        lambda net, b: own_formula(net(b[0])[1].mean(0), b[1]), "membrane_mean", mean_membrane, integrators
    ),
    "a penalty on a rate before the loss": row(penalised, "spike_count"),
    "spikes, and membranes beside them": row(weighs_both, "spike_count"),
    "the same of neurons that get all steps at once": row(weighs_both, "spike_count", net=AtOnce),
    "labels with an axis to squeeze": row(
        lambda net, b: ce(net(b[0])[0].sum(0), b[1].squeeze(1)),
        "spike_count",
        loader=lambda: [(inputs, labels[:, None]) for inputs, labels in batches()],
    ),
    "a penalty of the same kind and shape before the loss": row(penalised_alike, "membrane_mean", mean_membrane, integrators),
    "the whole batch to the net": row(
        lambda net, b: net(**b)["loss"], "spike_count", lambda net, x: net.net(x)[0].sum(0), WithLoss, dictionaries
    ),
}


# Of these each is read as another one of the list.
NEIGHBOURS = (
    *("images that the step flattens", "all steps as samples, samples first", "time first", "one-hot rows made in the step"),
    *("rates of spikes, log_softmax and nll_loss", "counts of spikes", "a time loop"),
)


@pytest.mark.filterwarnings("ignore::snn_recon_plugin.errors.ReadoutWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in NEIGHBOURS else name for name in STEPS_OF_USERS]
)
def test_a_step_says_all_that_options_say(name):
    step, kind, scores, build, loader = STEPS_OF_USERS[name]
    net, (inputs, labels) = build(), test_data()
    report = convex_init_(net, loader(), step=step, **QUICK)
    assert report.readout.kind == kind
    with torch.no_grad():
        own = float((scores(net.eval(), inputs).argmax(1) == labels).float().mean())
    assert own > 0.75
    assert own == pytest.approx(report.accuracy_after, abs=0.15)  # of 60 held-out samples


def test_a_plain_step_is_the_line_without_it():
    """The same bits: its loss is all that is read."""
    smooth = nn.CrossEntropyLoss(label_smoothing=0.1)
    nets = [loop_net(decode=lambda _, membranes: membranes.mean(0)) for _ in range(2)]
    with_step = convex_init_(nets[0], batches(300), step=lambda net, batch: smooth(net(batch[0]), batch[1]), **QUICK)
    plain = convex_init_(nets[1], batches(300), loss=smooth, **QUICK)
    assert values(nets[0]) == values(nets[1])
    assert (with_step.loss, plain.loss) == ("CrossEntropyLoss (step)", "CrossEntropyLoss")


def test_reading_is_one_pass_of_the_first_batch():
    sizes = []

    def step(net, batch):
        sizes.append(len(batch[1]))
        return ce(net(batch[0])[0].sum(0), batch[1])

    read = read_first(both(), batches(300, 100), Options(step=step))
    assert sizes == [100]
    assert read.criterion.name == "CrossEntropyLoss (step)"


def test_options_that_are_given_win():
    report = convex_init_(both(), batches(300), step=trains, loss="squared_hinge", **QUICK)
    assert report.loss == "squared_hinge"
    with pytest.raises(OptionError, match="forward= beside step="):
        convex_init_(both(), batches(300), step=trains, forward=lambda net, x: net(x))
    with pytest.raises(OptionError, match="step=3"):
        convex_init_(both(), batches(300), step=3)


def test_the_loader_is_read_once_and_a_refit_reads_the_step_again():
    taken = []

    class Counted(list):
        def __iter__(self):
            taken.append(1)
            return super().__iter__()

    loader = Counted(batches(300))
    convex_init_(net := both(), loader, step=trains, **QUICK)
    assert len(taken) == 1
    assert refit_(net, data_loader(300), step=trains, progress=False).readout.kind == "spike_count"


@pytest.mark.parametrize("option", ["step", "forward"])
def test_a_reset_of_all_neurons_reaches_those_of_the_copy_alone(option):
    """snnTorch's acts on a list of all that were ever built."""
    net = outside()
    net(train_data(5)[0])
    before = [net[1].mem, net[3].mem]
    way = looped if option == "forward" else lambda net, batch: SF.ce_count_loss()(run(net, repeated(batch[0])), batch[1])
    convex_init_(net, batches(300), **{option: way}, **QUICK)
    assert net[1].mem is before[0]
    assert net[3].mem is before[1]


def test_batches_of_another_number_of_steps_each():
    """Hidden layers are chosen on padded batches; the readout is solved on the batches as they are."""
    parts = [
        (inputs.expand(steps, *inputs.shape).clone(), labels) for steps, (inputs, labels) in enumerate(batches(300, 100), STEPS - 1)
    ]
    net = outside()
    report = convex_init_(
        net, parts, step=lambda net, b: SF.ce_count_loss()(run(net, b[0]), b[1]), hidden="reconstruct", progress=False
    )
    assert (report.least_steps, report.num_steps) == (STEPS - 1, STEPS + 1)
    assert report.layers[0].witnesses is not None


ENTRIES = {
    "diagnose": lambda net, loader, step: diagnose(net, loader, step=step).accuracy_solved > 0.7,
    "hidden_init_": lambda net, loader, step: hidden_init_(net, loader, step=step).layers[0].after.firing_rate > 0.03,
    "fast_steps": lambda net, loader, step: fast_steps(net, loader, step=step).difference < 1e-4,
    "statistics_of": lambda net, loader, step: sum(statistics_of(net, loader, step=step).counts) == 300,
}


@pytest.mark.parametrize("name", ENTRIES)
def test_other_functions_read_the_step_too(name):
    def step(net, batch):
        return ce(net(batch["image"])[1].mean(0), batch["label"])

    assert ENTRIES[name](integrators(), dictionaries(), step)


def by_hand(net, batch):
    chances = net(batch[0].flatten(1))[0].sum(0).log_softmax(1)
    return -chances.gather(1, batch[1][:, None]).mean()


def test_a_formula_of_ones_own_takes_what_the_net_returns():
    net, (inputs, labels) = both(), test_data()
    with pytest.warns(UserWarning, match="What the net returns is taken as its scores.* cross_entropy is solved"):
        report = convex_init_(net, images(), step=by_hand, **QUICK)
    assert (report.readout.kind, report.loss) == ("spike_count", "cross_entropy")
    with torch.no_grad():
        assert float((spikes(net, inputs).argmax(1) == labels).float().mean()) > 0.75
    rows = [(inputs, torch.eye(CLASSES)[labels]) for inputs, labels in batches(300)]
    with pytest.warns(UserWarning, match="squared is solved"):
        read = read_first(both(), rows, Options(step=lambda net, b: (net(b[0])[0].mean(0) - b[1]).abs().mean()))
    assert (read.forward, read.unpack) == (None, None)
    assert convex_init_(both(), images(), step=by_hand, loss="hinge", **QUICK).loss == "hinge"


def test_steps_in_reverse_order_are_not_the_last_one():
    step = lambda net, b: sum(ce(scores, b[1]) for scores in net(b[0])[1].flip(0))  # noqa: E731
    with pytest.raises(NetworkError, match=r"tensor \[\d+, "):
        convex_init_(integrators(), batches(300), step=step, **QUICK)


def test_a_formula_of_a_step_in_the_middle_is_not_the_largest_membrane():
    with pytest.warns(UserWarning, match="taken as its scores, what is second"):
        read = read_first(integrators(), batches(300), Options(step=lambda net, b: own_formula(net(b[0])[1][3], b[1])))
    assert read.readout == "auto"


# -- bad input ---------------------------------------------------------------------------------------------------------------------
class Stream(IterableDataset):
    def __iter__(self):
        return iter(TensorDataset(*train_data(200)))


def test_a_loader_that_can_only_be_iterated():
    report = convex_init_(both(), DataLoader(Stream(), 50), step=trains, **QUICK)
    assert (report.program.samples, report.accuracy_after > 0.7) == (200, True)


METRIC = torchmetrics.Accuracy(task="multiclass", num_classes=CLASSES)
# Whether the output neuron resets; the test of a user who trains membranes at each step; the readout that is solved.
TESTS = {
    "spikes of an integrator": ("none", lambda net, b: net(b[0])[0].sum(0).argmax(1) == b[1], "spike_count"),
    "snnTorch's accuracy": ("none", lambda net, b: SF.accuracy_rate(net(b[0])[0], b[1]), "spike_count"),
    "rates": ("subtract", lambda net, b: torch.topk(net(b[0])[0].mean(0), 2).indices, "spike_count"),
    "membranes that reset": ("subtract", lambda net, b: net(b[0])[1].sum(0).max(1)[1], "membrane_mean"),
    "their softmax": ("subtract", lambda net, b: net(b[0])[1].mean(0).softmax(1).data.max(1, keepdim=True)[1], "membrane_mean"),
    "a metric": ("subtract", lambda net, b: METRIC.update(net(b[0])[1].mean(0), b[1]), "membrane_mean"),
    "a metric that is called": ("none", lambda net, b: METRIC(net(b[0])[0].sum(0), b[1]), "spike_count"),
    "a loss": ("subtract", lambda net, b: ce(net(b[0])[1].sum(0), b[1]), "spike_count"),
    "labels": ("none", lambda net, b: torch.eye(CLASSES)[b[1]].argmax(1), "membrane_per_step"),
}


@pytest.mark.parametrize("name", TESTS)
def test_what_a_test_takes_the_largest_of_decides(name):
    reset, test, kind = TESTS[name]
    METRIC.update(torch.eye(CLASSES), torch.arange(CLASSES))
    before, counted = METRIC.tp.clone(), METRIC._update_count
    net, generator = both(reset), torch.get_rng_state()
    read = read_first(net, batches(300), Options(step=membranes_at_each_step, test=test))
    assert (torch.equal(METRIC.tp, before), METRIC._update_count) == (True, counted)
    assert torch.equal(torch.get_rng_state(), generator)
    found = convex_init_(both(reset), batches(300), step=membranes_at_each_step, test=test, **QUICK)
    assert (found.readout.kind, read.test) == (kind, None)


def test_a_report_has_the_accuracy_by_what_is_tested_and_by_what_is_trained():
    """Spikes of an integrator: alone its membranes would decide, and spikes would not follow."""
    nets, (inputs, labels) = [integrators(), integrators()], test_data()
    test = TESTS["spikes of an integrator"][1]
    report = convex_init_(nets[0], batches(300), step=membranes_at_each_step, test=test, **QUICK)
    convex_init_(nets[1], batches(300), step=membranes_at_each_step, **QUICK)
    with torch.no_grad():
        tested, untested = (float((spikes(net, inputs).argmax(1) == labels).float().mean()) for net in nets)
    assert tested > max(0.75, untested)
    (trained,) = report.readout.others
    assert (report.readout.kind, trained.option) == ("spike_count", "membrane_mean")
    assert min(trained.accuracy, trained.own_accuracy) > 0.7
    assert "also decides" in report.details()
    assert "membrane mean of output['loss']" in report.details()


def test_a_test_that_raises_leaves_spikes_with_a_warning():
    with pytest.warns(UserWarning, match="The test was not read, and spikes .*raised KeyError"):
        report = convex_init_(both(), batches(300), step=membranes_at_each_step, test=lambda net, b: {}["image"], **QUICK)
    assert report.readout.kind == "spike_count"


def test_a_test_needs_a_step():
    with pytest.raises(OptionError, match="test= without step="):
        convex_init_(both(), batches(300), test=TESTS["rates"][1])


LIVE = both()


class Trainer:
    def step(self, net, batch):
        return ce(LIVE(batch[0])[0].sum(0), batch[1])


def contrastive(net, batch):
    views = [functional.normalize(net(x)[1].mean(0), dim=1) for x in (batch[0], batch[0].flip(0))]
    return ce(views[0] @ views[1].T, torch.arange(len(batch[1])))


def raises_later(net, batch):
    if len(batch[1]) < 200:
        raise ValueError("too few")
    return ce(net(batch[0])[0].sum(0), batch[1])


def mixup(net, batch):
    order, share, rows = torch.randperm(len(batch[1])), torch.rand(()), torch.eye(CLASSES)[batch[1]]
    scores = net(share * batch[0] + (1 - share) * batch[0][order])[1].mean(0)
    return ce(scores, share * rows + (1 - share) * rows[order])


REFUSED = {
    "probabilities of mixed classes": (mixup, "labels of shape .200, 10.\nNeeded: one class index a sample"),
    "a formula, and two calls of the net": (lambda net, b: (net(b[0])[0] - net(b[0])[0]).sum(), "calls no known loss"),
    "NaN": (lambda net, b: ce(net(b[0])[0].sum(0) * torch.nan, b[1]), "NaN"),
    "a contrast of two views": (contrastive, "runs the net 2 times on a batch"),
    "a batch that the loader does not give": (lambda net, b: ce(net(b["image"])[0].sum(0), b["label"]), "raised TypeError"),
    "a bound method that runs the live net": (Trainer().step, "runs another net than the one passed"),
    "a loss of something else": (lambda net, b: ce(b[0][:, :10], b[1]), r"\(CrossEntropyLoss\) get no scores of the net's"),
    "a loss of a mean": (lambda net, b: functional.mse_loss(net(b[0])[0].mean(), torch.tensor(0.1)), "MSELoss. get no scores"),
    "it raises": (lambda net, b: net(b[0], 3), "raised TypeError"),
    "it is the loss": (ce, "it gets a net and a batch, as in step=lambda net, batch: "),
    "labels from 1": (lambda net, b: ce(net(b[0])[0].sum(0), b[1] + 1), "labels from 1 to 10\nNeeded: class indices from 0 to 9"),
    "probabilities": (
        lambda net, b: ce(net(b[0])[0].sum(0).softmax(1), b[1]),
        "do in step all that your script does around the net, and give its loss spikes or membranes over time",
    ),
    "rows of values, where spikes decide": (
        lambda net, b: functional.mse_loss(net(b[0])[0].mean(0), torch.eye(10)[b[1]] + b[0][:, 20:30] / 10),
        "unpack=lambda .*; it takes the place of step=",
    ),
    "it raises on a later batch": (raises_later, "the training step raised ValueError: too few, for inputs of batch 2"),
    "another net": (lambda net, b: ce(LIVE(b[0])[0].sum(0), b[1]), "runs another net than the one passed"),
    "an absolute error": (lambda net, b: functional.l1_loss(net(b[0])[0].mean(0), torch.ones(len(b[1]), 10)), "L1Loss"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_steps_that_are_refused_by_name_with_nothing_changed(name):
    step, words = REFUSED[name]
    before = snapshot(LIVE)
    with pytest.raises((DataError, NetworkError, OptionError), match=words):
        convex_init_(LIVE, batches(300), step=step, **QUICK)
    assert snapshot(LIVE) == before
