"""What the report says of samples, and of old weights that are better."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import WriteError
from snn_recon_plugin.networks.capture import capture
from snn_recon_plugin.options import Options
from snn_recon_plugin.stages.collect import decode_batches
from snn_recon_plugin.stages.initialize import initialize_network
from snn_recon_plugin.stages.run import START
from snn_recon_plugin.stages.stream import split_samples

from ..helpers import CLASSES, batches, divided, loop_net, one_line, refused, train_data, untouched
from ..nets import shallow, spikes_and_membranes

pytestmark = pytest.mark.usefixtures("two_rates")


@pytest.mark.parametrize("fit_loss", ["squared_hinge", "same"])
def test_the_loss_before_is_that_of_the_network(fit_loss):
    net, loss, (inputs, labels) = loop_net(), nn.CrossEntropyLoss(torch.linspace(1, 9, CLASSES)), train_data(300)
    held = split_samples(300, 0.2, 0).heldout
    with torch.no_grad():
        before = loss(net(inputs[held]).mean(0), labels[held])
    report = convex_init_(net, batches(300), loss=loss, hidden="keep", fit_loss=fit_loss, progress=False)
    assert report.before.loss == pytest.approx(float(before), rel=1e-4)


# -- spikes that another order of sums changes, between the samples captured and the network's own run ----------------------------
@pytest.fixture
def captured_otherwise(monkeypatch):
    """Return a function after which the features of the first ``count`` samples lack a spike that the network has."""

    def change(count):
        def capture_others(*arguments, **options):
            found = capture(*arguments, **options)
            features = found.features.clone()
            features[:count, int(features[:count].sum(0).argmax())] -= 1.0
            return replace(found, features=features)

        monkeypatch.setattr("snn_recon_plugin.stages.collect.capture", capture_others)

    return change


@pytest.mark.parametrize("count", [0, 2])
def test_a_few_samples_with_changed_spikes_are_written_and_reported(captured_otherwise, count):
    captured_otherwise(count)
    report = convex_init_(loop_net(), batches(300), hidden="keep", strength=1e-3, progress=False)
    assert not report.kept_old
    assert (report.exactness.max_difference > report.exactness.tolerance) is (count > 0)
    assert ("changed spikes of a few samples" in one_line(report)) is (count > 0)


def test_one_of_a_few_dozen_samples_may_have_a_changed_spike(captured_otherwise):
    captured_otherwise(1)
    report = convex_init_(loop_net(), batches(60), hidden="keep", strength=1e-3, write="always", progress=False)
    assert report.exactness.max_difference > report.exactness.tolerance


def test_many_samples_with_changed_spikes_are_refused(captured_otherwise):
    captured_otherwise(4)
    refused(loop_net(), batches(300), WriteError, "in 4 of 300 samples", hidden="keep", strength=1e-3)


def test_one_sample_with_other_scores_and_the_same_spikes_is_refused(monkeypatch):
    monkeypatch.setattr("snn_recon_plugin.stages.place.decode_batches", changed_scores)
    refused(loop_net(), batches(300), WriteError, "in 1 of 300 samples", hidden="keep", strength=1e-3)


def changed_scores(run, stored, decoders):
    """Return scores, or features, that decoders make of stored batches, with the scores of one sample changed."""
    found = decode_batches(run, stored, decoders)
    if found[0].shape[1] == CLASSES:
        found[0][5] += 0.1
    return found


# -- old weights that are better -----------------------------------------------------------------------------------------------
def trained(size=1.0, width=48, **options):
    """A net whose readout has seen the samples before, multiplied by ``size`` since."""
    net = loop_net(hidden=width)
    convex_init_(net, batches(300), **options).write_solved()
    with torch.no_grad():
        for parameter in net.fc2.parameters():
            parameter.mul_(size)
    return net


@pytest.mark.parametrize("options", [{"hidden": "keep"}, {"hidden": "rescale"}])
def test_old_weights_stay_unless_the_heldout_loss_falls(options):
    net = trained(fit_loss="same")
    with untouched(net):
        report = convex_init_(net, batches(300), **options)
        assert report.kept_old
        assert report.parameters == []
        with pytest.raises(WriteError, match="not written, as its held-out loss was no lower"):
            report.write_solved()
        report.undo()
    assert not report.solved.compared < report.before.compared
    assert "\nNOT kept" in f"\n{report}"
    losses = f"{report.before.compared:.4g} -> {report.solved.compared:.4g} at the best scales on the same 60 held-out samples"
    assert losses in one_line(report)
    assert "NOT kept" in repr(report)
    assert convex_init_(net, batches(300), write="always", **options).parameters


@pytest.mark.parametrize(
    ("loss", "named"),
    [
        (None, "held-out loss "),
        (nn.MultiMarginLoss(), "held-out cross-entropy, not the training loss, "),
        (nn.BCEWithLogitsLoss(), "held-out loss "),
    ],
)
def test_the_losses_compared_are_named_where_they_are_not_the_training_loss(loss, named):
    data = batches(300)
    if isinstance(loss, nn.BCEWithLogitsLoss):
        data = [(inputs, nn.functional.one_hot(labels, CLASSES).float()) for inputs, labels in data]
    net = loop_net()
    convex_init_(net, data, hidden="keep", loss=loss, write="always").write_solved()
    report = convex_init_(net, data, hidden="keep", loss=loss, strength=10.0)
    assert report.kept_old
    for text in (one_line(report), str(report)):
        assert f"{named}{report.before.compared:.4g}" in text


def test_an_exploding_net_is_written():
    net = loop_net()
    net.fc2.weight.data.sign_().mul_(1e30)
    report = convex_init_(net, batches(300), hidden="keep")
    assert report.parameters
    assert report.solved.compared < 1e-20 * report.before.compared


def test_a_small_factor_on_all_scores_does_not_make_old_weights_worse():
    report = convex_init_(trained(1 / 16, fit_loss="same"), batches(300), hidden="keep")
    assert report.before.loss > report.solved.loss >= report.solved.compared > report.before.compared
    assert report.kept_old


def test_both_losses_are_of_the_same_samples():
    """The net is run before on the first 100 samples alone; the solution is that of the fitted samples."""
    (inputs, labels), split = train_data(300), split_samples(300, 0.2, 0)
    options = {"fit_loss": "same", "strength": 1e-2, "tol": 1e-9}
    net, before = divided(loop_net()), divided(loop_net())
    report = initialize_network(net, batches(300, 50), Options(hidden="rescale", **options), replace(START, verified_samples=100))
    held = split.heldout[split.heldout < 100]
    assert report.before.samples == len(held) < report.after.samples
    convex_init_(net, [(inputs[split.fitted], labels[split.fitted])], hidden="keep", write="always", **options)
    for found, own in ((report.before.compared, before), (report.solved.compared, net)):
        with torch.no_grad():
            scores = own(inputs[held]).mean(0)
        losses = [float(nn.functional.cross_entropy(2.0 ** (k / 20) * scores, labels[held])) for k in range(-80, 120)]
        assert found == pytest.approx(min(losses), rel=5e-3)


def test_spiking_readouts_are_compared_on_the_same_samples():
    def found(samples):
        net = divided(shallow(spikes_and_membranes, reset_mechanism="subtract"))
        options = Options(hidden="rescale", strength=1e-2)
        return initialize_network(net, batches(300, 50), options, replace(START, verified_samples=samples))

    some, every = found(100), found(300)
    assert (some.after.loss, some.before.samples) == (every.after.loss, 19)
    assert 0 < some.solved.compared != every.solved.compared <= every.solved.loss


@pytest.mark.parametrize("loss", [nn.MultiMarginLoss(), nn.MSELoss(), nn.HuberLoss()], ids=lambda loss: type(loss).__name__)
def test_counts_are_compared_at_the_factor_that_suits_them(loss):
    """Labels of 0 and 1 are far from counts, whose decisions are better nevertheless."""
    net = shallow(lambda spikes, membranes: spikes.sum(0), reset_mechanism="subtract")
    report = convex_init_(net, batches(300), loss=loss, hidden="rescale")
    assert not report.kept_old
    assert report.accuracy_after > report.accuracy_before + 0.2


def test_a_layer_that_was_replaced_is_not_written():
    net = loop_net()
    report = convex_init_(net, batches(300), hidden="keep")
    net.fc2 = nn.Linear(net.fc2.in_features, net.fc2.out_features)
    with untouched(net), pytest.raises(WriteError, match="removed or replaced"):
        report.write_solved()


@pytest.mark.parametrize(("threshold", "warns"), [(1e6, True), (10.0, False)])
def test_a_threshold_out_of_reach_is_warned_of(threshold, warns):
    net = shallow(lambda spikes, membranes: spikes, reset_mechanism="subtract", threshold=threshold)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        convex_init_(net, batches(200), hidden="keep", strength=1e-2, write="always")
    assert ["Lower that neuron's threshold" in str(each.message) for each in caught] == [True] * warns
