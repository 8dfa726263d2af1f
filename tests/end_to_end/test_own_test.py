"""The report shows what the user's own test shows."""

import warnings

import pytest
import snntorch.functional as SF
import torch

from benchmarks.idioms_snntorch import States, sequential
from snn_recon_plugin import ReadoutWarning, convex_init_, over_time
from snn_recon_plugin.errors import OptionError
from snn_recon_plugin.stages.stream import split_samples

from ..helpers import TRAIN, assert_as_before, batches, snapshot, test_data, train_data
from .own_tests import SIZES, STEPS, forward_pass, loop_of, loud, own_test, spikes_of, states_of

OPTIONS = {"hidden": "keep", "strength": 1e-3}


def stepped():
    return sequential("subtract", SIZES)


def states():
    return States("none", SIZES)


# Name: the net, options of the call, and the user's way to the spikes that SF.accuracy_rate counts.
NETS = {
    "tutorial 5": (loop_of, {}, spikes_of),
    "tutorial 6": (loop_of, {"loss": SF.ce_rate_loss()}, spikes_of),
    "tutorial 7": (stepped, {"loss": SF.mse_count_loss(0.8, 0.2), "forward": over_time(STEPS)}, forward_pass),
    "counts": (loop_of, {"loss": SF.ce_count_loss()}, spikes_of),
    "counts of a neuron that never resets": (lambda: loop_of(reset="none"), {"loss": SF.mse_count_loss(0.8, 0.2)}, spikes_of),
    "one step": (lambda: loop_of(steps=1), {}, spikes_of),
    "one step, counts": (lambda: loop_of(steps=1), {"loss": SF.mse_count_loss()}, spikes_of),
    "one step from outside": (stepped, {"forward": over_time(1)}, lambda net, data: forward_pass(net, data, 1)),
    "StateLeaky": (states, {"forward": over_time(STEPS)}, states_of),
    "StateLeaky, counts": (states, {"forward": over_time(STEPS), "loss": SF.mse_count_loss(0.8, 0.2)}, states_of),
}


@pytest.mark.parametrize("name", NETS)
def test_the_accuracies_are_those_of_the_users_own_test(name):
    make, options, spikes = NETS[name]
    torch.manual_seed(0)
    net = loud(make())
    before = own_test(net, spikes, train_data(), split_samples(TRAIN, 0.2, 0).heldout)
    report = convex_init_(net, batches(), **OPTIONS, **options)
    assert report.readout_kind == "spike_count"
    assert report.accuracy_before == pytest.approx(before, abs=1e-9)
    assert report.accuracy_written == pytest.approx(own_test(net, spikes, train_data()), abs=1e-9)
    # Of samples that took no part: 120 of the training data in the report, 400 others here.
    assert own_test(net, spikes, test_data()) > max(0.5, report.accuracy_after - 0.08)


def test_a_loss_of_membranes_reads_them_beside_spikes():
    net = loud(loop_of(reset="none"))
    report = convex_init_(net, batches(), loss=SF.ce_max_membrane_loss(), **OPTIONS)
    assert report.readout_kind == "membrane_max"
    inputs, labels = train_data()
    with torch.no_grad():
        own = float((net(inputs)[1].amax(0).argmax(1) == labels).double().mean())
    assert report.accuracy_written == pytest.approx(own)


def test_target_counts_that_tell_no_classes_apart_are_refused():
    """Over one step snnTorch rounds 0.8 and 0.2 spikes down to none."""
    net = loop_of(steps=1)
    before = snapshot(net)
    with pytest.raises(OptionError, match="target is 0 for the right class and for all others") as caught:
        convex_init_(net, batches(), loss=SF.mse_count_loss(0.8, 0.2), **OPTIONS)
    assert "correct_rate=1.0" in caught.value.fix
    assert_as_before(net, before)


# -- the other value that the net returns -------------------------------------------------------------------------------------


def one_step(**options):
    torch.manual_seed(0)
    net = loud(loop_of(steps=1))
    return net, lambda: convex_init_(net, batches(), **OPTIONS, **options)


def test_another_value_that_decides_differently_is_warned_of():
    net, call = one_step()
    with pytest.warns(ReadoutWarning, match="decided by the spike count of output") as caught:
        report = call()
    (other,) = report.others
    inputs, labels = train_data()
    with torch.no_grad():
        spikes, membranes = (values[:, split_samples(TRAIN, 0.2, 0).heldout].sum(0).argmax(1) for values in net(inputs))
    assert other.differing == pytest.approx(float((spikes != membranes).double().mean()))
    held = labels[split_samples(TRAIN, 0.2, 0).heldout]
    assert other.accuracy == pytest.approx(float((membranes == held).double().mean()))
    assert other.own_accuracy == pytest.approx(float((spikes == held).double().mean()))
    assert other.differing > 0.02
    assert "readout='membrane_mean' if your test reads it, readout='spike_count' if not" in str(caught[0].message)
    lines = str(report).splitlines()
    assert any(line.split() == ["classes", "by", "spike", "count", "of", "output[0]"] for line in lines)
    assert any(f"membrane mean of output[1] decides {100 * other.differing:.1f} % differently" in line for line in lines)
    assert report.to_dict()["others"][0]["option"] == "membrane_mean"


@pytest.mark.parametrize("said", [{"readout": "spike_count"}, {"readout": "membrane_mean"}, {"loss": SF.mse_count_loss()}])
def test_what_was_said_is_not_warned_of(said):
    _, call = one_step(**said)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = call()
    assert report.others[0].notable
    assert "differently" not in str(report)


def test_a_warning_made_an_error_leaves_the_net_as_it_was():
    net, call = one_step()
    before = snapshot(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ReadoutWarning):
            call()
    assert_as_before(net, before)


# -- what differs from pass to pass -------------------------------------------------------------------------------------------


def test_spikes_drawn_in_forward_are_drawn_anew_for_the_report():
    """On the draws that it was fitted on a net is several points better than its user ever sees."""
    torch.manual_seed(0)
    net, run = loud(loop_of()), over_time_of_rates
    report = convex_init_(net, batches(), forward=run, **OPTIONS)
    inputs, labels = train_data()
    with torch.no_grad():
        own = [float((run(net, inputs)[0].sum(0).argmax(1) == labels).double().mean()) for _ in range(10)]
    assert report.accuracy_written == pytest.approx(sum(own) / 10, abs=0.03)


def over_time_of_rates(net, inputs):
    return net(torch.bernoulli(inputs.clamp(0, 1)))


def test_a_net_that_keeps_its_membranes_between_calls():
    """Its user must reset it as the package does: a warning says so, and the report is right for who does."""

    class Keeps(torch.nn.Sequential):
        def forward(self, x):
            return torch.stack([super(Keeps, self).forward(x)[0] for _ in range(STEPS)])

    torch.manual_seed(0)
    net = Keeps(*stepped())
    with pytest.warns(ReadoutWarning, match="keeps its membranes from one call to the next") as caught:
        report = convex_init_(net, batches(), **OPTIONS)
    assert caught[0].filename == __file__
    inputs, labels = train_data()
    for module in net.modules():
        if hasattr(module, "reset_mem"):
            module.reset_mem()
    with torch.no_grad():
        own = float((net(inputs).sum(0).argmax(1) == labels).double().mean())
    assert report.accuracy_written == pytest.approx(own)
